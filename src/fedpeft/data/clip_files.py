"""Files of clips: a folder with a folder for each class, or one file of tensors; never unpickled.

    clips/train/CLASS/wave.npy         a clip: an array of frames (.npy .npz .pt .safetensors)
    clips/train/CLASS/wave.gif         an animated picture (.gif .webp)
    clips/train/CLASS/wave/001.png     pictures, in the order of their names
    clips/train/CLASS/wave.mp4         a film (.mp4 .mkv .mov .avi .webm); needs fedpeft[video]
    clips/test/CLASS/...               without train/ and test/: one split

    clips.safetensors, clips.npz       `pixel_values` [N, T, C, H, W] and `labels` [N]; names that
                                       end in _train, _validation or _test make splits

Pixels are whole numbers of 0 to 255. Our own design: the paper has no video experiment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedpeft.core.errors import DataError
from fedpeft.data.files import part_by_suffix, read_arrays, read_split_files
from fedpeft.data.folders import IMAGE_SUFFIXES, by_split, find_by_class, is_seen, pictures_in
from fedpeft.data.places import reading
from fedpeft.data.tables import USUAL_NAMES, Table

Array = npt.NDArray[np.generic]

_ANIMATED = (".gif", ".webp")
_FILMS = (".mp4", ".mkv", ".mov", ".avi", ".webm")


@dataclass(frozen=True)
class ClipFile:
    """A clip on disk, read on demand.

    Attributes:
      path: path of the file, or of a folder of pictures.
    """

    path: str

    def frames(self) -> Sequence[object]:
        """Return its frames in order.

        Raises:
          DataError: if the file is no clip.
        """
        path = Path(self.path)
        return _read_pictures(path) if path.is_dir() else _READERS[path.suffix.lower()](path)


def read_clip_folder(path: Path) -> dict[str, Table]:
    """Read `train/CLASS/clip` and `test/CLASS/clip`, or `CLASS/clip` as one split.

    A folder with one file of tensors for each split (`train.npz`, `test.npz`) is read too.

    Raises:
      DataError: if the folder holds no clips.
    """
    files = [file for file in sorted(path.iterdir()) if file.suffix in _TENSORS]
    if files:
        if len(files) == 1:
            return read_clip_file(files[0])
        names = by_split([file.stem for file in files], path)
        return read_split_files(files, list(names), read_clip_file)
    tables = {
        split: Table({"video": [ClipFile(str(clip)) for clip in clips], "label": labels})
        for split, (clips, labels) in find_by_class(path, _clips).items()
        if clips
    }
    if not tables:
        raise DataError(
            f"data.source: the folder {path} holds no clips; allowed are CLASS/clip or "
            f"train/CLASS/clip, a clip being a file that ends in {', '.join(CLIP_SUFFIXES)} or a "
            "folder of pictures, and files of tensors such as train.safetensors"
        )
    return tables


def read_clip_file(path: Path) -> dict[str, Table]:
    """Read clips and labels from one file of tensors, laid out as the module's docstring says.

    Raises:
      DataError: if the file is of another kind, is broken, or holds no clips with labels.
    """
    if path.suffix not in _TENSORS:
        raise DataError(
            f"data.source: {path} ends in {path.suffix!r}; for clips allowed are a folder and "
            f"files that end in {', '.join(_TENSORS)}"
        )
    arrays = _TENSORS[path.suffix](path)
    return {split: _table(path, columns) for split, columns in part_by_suffix(arrays).items()}


def _table(path: Path, columns: Mapping[str, Array]) -> Table:
    """Make a table of a file's arrays, after a check that all have one row for each clip."""
    clips = next((columns[n] for n in USUAL_NAMES["video"] if n in columns), None)
    if clips is None or clips.ndim not in (4, 5):
        found = ", ".join(f"{name} {list(array.shape)}" for name, array in columns.items())
        raise DataError(
            f"data.source: {path} holds {found or 'nothing'}; needed are pixel_values "
            "[clips, frames, channels, height, width] of whole numbers and labels [clips]"
        )
    odd = {name: len(a) for name, a in columns.items() if a.ndim and len(a) != len(clips)}
    if odd:
        name, rows = next(iter(odd.items()))
        raise DataError(f"data.source: {path} has {len(clips)} clips and {rows} rows of {name!r}")
    return Table({name: array for name, array in columns.items() if array.ndim})


def _clips(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_clip(path))


def _is_clip(path: Path) -> bool:
    if not is_seen(path.name):
        return False
    if path.is_dir():
        return any(inner.suffix.lower() in IMAGE_SUFFIXES for inner in path.iterdir())
    return path.suffix.lower() in _READERS


def _read_pictures(path: Path) -> Sequence[object]:
    files = [file for file in pictures_in(path) if file.parent == path]
    return [_opened(file)[0] for file in files]


def _opened(path: Path) -> list[object]:
    """Return all frames of a picture file, grey or RGB."""
    from PIL import Image, ImageSequence

    with reading(path, "a picture"), Image.open(path) as picture:
        grey = picture.mode in ("1", "L", "LA")
        return [frame.convert("L" if grey else "RGB") for frame in ImageSequence.Iterator(picture)]


def _read_film(path: Path) -> Sequence[object]:
    try:
        import av
    except ImportError as error:
        raise DataError(
            f"data.source: {path} is a film, which the library PyAV decodes; install it with "
            "`pip install 'fedpeft[video]'`, or turn the clips into .gif or .npy files"
        ) from error
    with reading(path, "a film"), av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def _read_array(path: Path) -> Sequence[object]:
    """Read the one array of a file: the frames of a clip, in a layout that `clips.py` lists."""
    arrays = _ARRAYS[path.suffix.lower()](path)
    if len(arrays) != 1:
        raise DataError(
            f"data.source: {path} holds {', '.join(arrays) or 'no array'}; a clip is one array"
        )
    array = next(iter(arrays.values()))
    if array.ndim not in (3, 4) or array.dtype.kind not in "ui":
        raise DataError(
            f"data.source: {path} holds an array of {array.dtype}{list(array.shape)}; allowed are "
            "whole numbers [frames, height, width, channels], also without or before channels"
        )
    return list(array)


def _safetensors(path: Path) -> dict[str, Array]:
    from safetensors.numpy import load_file

    with reading(path, "a safetensors file"):
        return dict(load_file(path))


def _pt(path: Path) -> dict[str, Array]:
    import torch

    with reading(path, "a file of one tensor (code in it is never run)"):
        found = torch.load(path, map_location="cpu", weights_only=True)
    tensors = found if isinstance(found, dict) else {"tensor": found}
    return {
        str(name): value.numpy()
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor)
    }


_TENSORS: Mapping[str, Callable[[Path], dict[str, Array]]] = {
    ".safetensors": _safetensors,
    ".npz": read_arrays,
}
_ARRAYS = {**_TENSORS, ".npy": read_arrays, ".pt": _pt}
_READERS: Mapping[str, Callable[[Path], Sequence[object]]] = {
    **dict.fromkeys(_ARRAYS, _read_array),
    **dict.fromkeys(_ANIMATED, _opened),
    **dict.fromkeys(_FILMS, _read_film),
}
CLIP_SUFFIXES = tuple(_READERS)
"""Suffixes of files that hold one clip each."""
