"""Law: a results file counts local models and data by what is in them, not by where they are."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest

from fedpeft.core.errors import RunFolderError
from fedpeft.experiment.experiment import Experiment
from fedpeft.results.contents import content_digest, portable
from fedpeft.results.lines import line_digest


def tree(folder: Path) -> Path:
    (folder / "train").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "train" / "a.bin").write_bytes(bytes(range(100)))
    return folder


def of(**places: Path) -> str:
    chosen = {"model": {"name": "preset:tiny-vit"}, "data": {"source": "digits"}}
    for table, path in places.items():
        chosen[table] = {"name" if table == "model" else "source": str(path)}
    return line_digest(Experiment().changed(**chosen))


@pytest.mark.parametrize("table", ["model", "data"])
def test_a_moved_folder_is_the_same_and_a_changed_byte_is_not(tmp_path: Path, table: str) -> None:
    here = tree(tmp_path / "here")
    first = of(**{table: here})
    there = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(here, there)
    assert of(**{table: there}) == first

    byte = bytearray((there / "train" / "a.bin").read_bytes())
    byte[50] ^= 1
    (there / "train" / "a.bin").write_bytes(byte)
    os.utime(there / "train" / "a.bin", ns=(1, 1))
    assert of(**{table: there}) != first
    assert of(**{table: here}) == first


def test_names_inside_count_and_hidden_files_do_not(tmp_path: Path) -> None:
    first = content_digest(tree(tmp_path / "one"))
    other = tree(tmp_path / "two")
    (other / ".git").mkdir()
    (other / ".git" / "HEAD").write_text("x")
    (other / ".cache").write_text("x")
    assert content_digest(other) == first
    (other / "train" / "a.bin").rename(other / "train" / "b.bin")
    assert content_digest(other) != first


def test_links_are_followed_once(tmp_path: Path) -> None:
    first = content_digest(tree(tmp_path / "real"))
    (tmp_path / "link").mkdir()
    for name in ("config.json", "train"):
        (tmp_path / "link" / name).symlink_to(tmp_path / "real" / name)
    assert content_digest(tmp_path / "link") == first
    (tmp_path / "real" / "train" / "again").symlink_to(tmp_path / "real" / "train")
    assert content_digest(tmp_path / "real") == first, "a circle ends"


def test_a_file_of_a_set_stands_for_the_set(tmp_path: Path) -> None:
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (tmp_path / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(b"x", mtime=0))
    named = tmp_path / "train-images-idx3-ubyte.gz"
    first = content_digest(named)
    (tmp_path / "notes.txt").write_text("no part of it")
    assert content_digest(named) == first
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"y", mtime=0))
    assert content_digest(named) != first


def test_a_config_stands_for_its_folder_and_a_table_for_itself(tmp_path: Path) -> None:
    folder = tree(tmp_path / "model")
    assert content_digest(folder / "config.json") == content_digest(folder)
    (tmp_path / "a.csv").write_text("text,label\n")
    first = content_digest(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("other\n")
    assert content_digest(tmp_path / "a.csv") == first != content_digest(tmp_path / "b.csv")


def test_names_that_are_no_paths_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = of()
    tree(tmp_path / "digits")  # a folder that happens to have a bundled name
    assert of() == before
    assert portable({"data.source": "digits", "model.name": "owner/name"}) == {
        "data.source": "digits",
        "model.name": "owner/name",
    }


def test_settings_of_a_line_hold_no_path(tmp_path: Path) -> None:
    folder = tree(tmp_path / "questions")
    found = portable(
        {
            "model.name": str(folder),
            "data.source": str(tmp_path / "gone" / "data.npz"),
            "engine.signatures": [str(tmp_path)],
            "client.lr": 0.1,
        }
    )
    assert found == {
        "model.name": f"questions@{content_digest(folder)[:8]}",
        "data.source": "data.npz",
        "client.lr": 0.1,
    }


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tree(tmp_path / "model")
    (folder / "config.json").chmod(0)
    with pytest.raises(RunFolderError, match=r"config\.json: cannot be read"):
        content_digest(folder)


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"gone\.npz: cannot be read"):
        content_digest(tmp_path / "gone.npz")
