"""The processor or tokenizer of an export, written from the run's own preprocessing.

    pictures   preprocessor_config.json: resize -> centre crop -> rescale -> normalise
    texts      the tokenizer, with the run's padding token, longest text, and padding on the right

Nothing of the base model's own processor is kept: what its file says and the run did not do would
make other tensors than those that were evaluated.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fedpeft.core.errors import ModelError
from fedpeft.data.images import RESAMPLE, Canvas
from fedpeft.data.preprocessing import PicturePreprocessing, TextPreprocessing
from fedpeft.data.transforms import View
from fedpeft.models.loaded import ImageInput, TextInput, VideoInput
from fedpeft.models.padding import choose_padding, open_tokenizer
from fedpeft.models.quiet import quiet
from fedpeft.runs.files import write_json
from fedpeft.runs.load import FinishedRun

_PROCESSOR = "preprocessor_config.json"
_VIDEO_PROCESSOR = "video_preprocessor_config.json"
_OWN_FILES = (
    *(_PROCESSOR, _VIDEO_PROCESSOR, "processor_config.json", "image_processor_config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab*", "merges.txt", "*.model"),
)


def write_inputs(run: FinishedRun, folder: Path) -> None:
    """Write the files by which stock libraries make a model's inputs.

    Where a run did not record its preprocessing, they are those of the base model.
    """
    loaded, made = run.tuned.loaded, run.preprocessing
    if isinstance(loaded.inputs, TextInput):
        text = made.text if made else None
        whole = loaded.task.goes_on  # trained on blocks, but made for texts of any length
        longest = text.max_length if text and not whole else loaded.inputs.max_length
        if not _write_tokenizer(loaded.inputs, text, longest, folder):
            _copy_own_files(loaded.folder, folder)
    elif made is not None and made.picture is not None:
        _write_processors(made.picture, loaded.folder, folder)
    else:
        _copy_own_files(loaded.folder, folder)
        if loaded.inputs is not None and not (folder / _PROCESSOR).exists():
            _write_processors(_of_model(loaded.inputs), loaded.folder, folder)


def _of_model(inputs: ImageInput | VideoInput) -> PicturePreprocessing:
    """Return the preprocessing that a model's config implies, for one without a processor."""
    own = inputs.picture if isinstance(inputs, VideoInput) else inputs
    canvas = Canvas(own.height, own.width, own.channels, own.resample)
    view = View(own.height, own.width, own.rescale, own.mean, own.std)
    frames = inputs.frames if isinstance(inputs, VideoInput) else None
    return PicturePreprocessing(canvas, view, canvas.full_scale, frames)


def _write_tokenizer(
    inputs: TextInput, text: TextPreprocessing | None, longest: int, folder: Path
) -> bool:
    """Write the tokenizer, with the run's chat template; False where the model has none."""
    if not inputs.folder:
        return False
    try:
        tokenizer = open_tokenizer(inputs.folder)
    except ModelError:
        return False
    pad = choose_padding(inputs, tokenizer) if text is None else text.pad_id
    if text is not None and text.chat_template:
        tokenizer.chat_template = text.chat_template
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = longest
    with quiet():
        tokenizer.save_pretrained(str(folder))
    return True


def _write_processors(made: PicturePreprocessing, source: Path | None, folder: Path) -> None:
    if made.frames is None:
        write_json(folder / _PROCESSOR, _processor(made, "ViTImageProcessor"))
        return
    write_json(folder / _PROCESSOR, _processor(made, "VideoMAEImageProcessor"))
    own = source / _VIDEO_PROCESSOR if source else None
    if own is not None and own.is_file():
        kind = json.loads(own.read_text("utf-8")).get("video_processor_type")
        found = _processor(made, "VideoMAEImageProcessor")
        write_json(folder / _VIDEO_PROCESSOR, {**found, "video_processor_type": kind})


def _processor(made: PicturePreprocessing, kind: str) -> dict[str, object]:
    """Return the content of a processor's file."""
    canvas, view = made.canvas, made.view
    cropped = (view.height, view.width) != (canvas.height, canvas.width)
    return {
        "image_processor_type": kind,
        "do_convert_rgb": canvas.channels == 3,
        "do_resize": True,
        "size": {"height": canvas.height, "width": canvas.width},
        "resample": RESAMPLE[canvas.resample],
        "do_center_crop": cropped,
        "crop_size": {"height": view.height, "width": view.width},
        "do_rescale": True,
        "rescale_factor": view.factor,
        "do_normalize": True,
        "image_mean": list(view.mean),
        "image_std": list(view.std),
    }


def _copy_own_files(source: Path | None, folder: Path) -> None:
    for pattern in _OWN_FILES if source else ():
        for file in sorted(source.glob(pattern)) if source else ():
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
