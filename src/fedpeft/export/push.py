"""Upload to the Hugging Face hub: an export, made in a temporary folder, becomes a repository.

    run ──export──> temporary folder ──upload_folder──> https://huggingface.co/OWNER/NAME

Nothing of this machine travels with it: no path and no log-in.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedpeft.core.errors import ConfigError, RunFolderError
from fedpeft.core.text import plain
from fedpeft.export.export import export_run
from fedpeft.runs.load import EXPORT_FILE


class Hub(Protocol):
    """The calls of `huggingface_hub.HfApi` that an upload makes."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> object:
        """Create a repository, or find it."""
        ...

    def list_repo_files(self, repo_id: str) -> list[str]:
        """Return the names of its files."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> object:
        """Commit all files of a folder."""
        ...


@dataclass(frozen=True)
class Pushed:
    """An upload.

    Attributes:
      url: address of the repository.
      files: number of files.
      size: of all files, in bytes.
    """

    url: str
    files: int
    size: int


def push_run(
    run: Path, name: str, *, form: str = "", public: bool = False, hub: Hub | None = None
) -> Pushed:
    """Export a finished run and upload it to the hub.

    Args:
      run: a run folder.
      name: `OWNER/NAME` of the repository, which is created where there is none.
      form: as of `export_run`.
      public: whether a new repository is public; one that exists stays as it is.
      hub: what uploads; None is the hub, with the log-in of this machine.

    Raises:
      RunFolderError: if the run cannot be exported, or the repository holds something else.
      ConfigError: if the name is none, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # of no list

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"push {plain(name, 80)}: {plain(error, 200)}; give OWNER/NAME"
        ) from error
    client = hub or HfApi()
    with tempfile.TemporaryDirectory(prefix="fedpeft-push-") as place:
        folder = export_run(run, Path(place) / "export", form=form, published=True)
        files = [file for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        with _answering(name):
            client.create_repo(name, private=not public, exist_ok=True)
            _check_ours(name, client.list_repo_files(name))
            client.upload_folder(
                repo_id=name, folder_path=str(folder), commit_message="Upload by fedpeft"
            )
    return Pushed(f"https://huggingface.co/{name}", len(files), size)


def _check_ours(name: str, found: list[str]) -> None:
    """Refuse a repository with files that no upload of ours made."""
    others = sorted({*found} - {".gitattributes"})
    if others and EXPORT_FILE not in others:
        raise RunFolderError(
            f"push {name}: the repository holds something else ({', '.join(others[:3])}), and "
            "nothing is overwritten; choose another name"
        )


@contextlib.contextmanager
def _answering(name: str) -> Iterator[None]:
    """Turn what the hub's client raises into one error that says what to do."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        raise ConfigError(
            f"push {name}: the hub refuses it ({plain(error, 200)}); log in by `hf auth login` "
            "with a token that may write, and name an owner that you are"
        ) from error
    except (OfflineModeIsEnabled, OSError) as error:
        raise ConfigError(
            f"push {name}: the hub cannot be reached ({plain(error, 200)}); try again with a "
            "network, without HF_HUB_OFFLINE. `fedpeft export` writes the same folder here"
        ) from error
