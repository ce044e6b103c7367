"""From which folder a relative path counts: in a file from the file's, elsewhere from here."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from support import TINY

import fedpeft
from fedpeft.cli import main
from fedpeft.core.errors import ConfigError
from fedpeft.data.bundled import BUNDLED_DATASETS
from fedpeft.experiment.paths import _KEYS
from fedpeft.experiment.read import apply_overrides, read_experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.experiment.site_file import read_site
from fedpeft.experiment.sweep_rows import read_rows
from fedpeft.federation.deploying import _absolute_files
from fedpeft.models import locate

ROOT = Path(__file__).parents[2]
NEEDED = {"engine": {"name": "flower", "superlink": "127.0.0.1:8000"}, "stability": {}}
ENDS = {"trace": ".csv"}
FILES = sorted([*ROOT.glob("examples/*.toml"), *ROOT.glob("experiments/*/*.toml")])
KEYS = [".".join(key) for key in _KEYS]


def write(file: Path, *pairs: tuple[str, object], base: dict[str, object] | None = None) -> Path:
    """Write an experiment file with some dotted keys."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tables = {key.split(".")[0] for key, _ in pairs}
    start = {"data": {"partition": {"clients": 9}}} if "engine" in tables else {}
    start |= {name: table for name, table in NEEDED.items() if name in tables}
    file.write_text(tomli_w.dumps(apply_overrides({**start, **(base or {})}, pairs)))
    return file


def value_of(experiment: object, key: str) -> object:
    for part in key.split("."):
        experiment = getattr(experiment, "start" if part == "from" else part)
    return experiment[0] if isinstance(experiment, list) else experiment


def used(file: Path | None, key: str, *sets: str) -> object:
    """Return the value of a key as a run, or the submission of one, takes it.

    A run takes the text of a chat template's file: see `touch`.
    """
    resolved = resolve(read_experiment(file, sets)).experiment
    found = str(value_of(_absolute_files(resolved), key))
    return found.removeprefix("{{").removesuffix("}}")


def touch(file: Path) -> None:
    """Make a file whose text, as that of a chat template, says where it is."""
    file.write_text(f"{{{{{file.resolve()}}}}}")


def named(key: str, name: str) -> tuple[str, object]:
    name += ENDS.get(key.rpartition(".")[2], "")
    return name, [name] if key.endswith("signatures") else name


def put(path: Path, key: str) -> None:
    """Make what a key may name: an empty file, or an adapter."""
    if key != "tuning.from":
        touch(path)
        return
    path.mkdir()
    config = {"peft_type": "LORA", "target_modules": ["query"]}
    (path / "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder of a file, and the current one."""
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path))
    return there, here


@pytest.mark.parametrize("form", ["mine", "./mine", "sub/mine", "../there/mine"])
@pytest.mark.parametrize("key", KEYS)
def test_a_path_in_a_file_counts_from_the_file(folders, key, form):
    there, _ = folders
    name, value = named(key, form)
    (there / name).parent.mkdir(exist_ok=True)
    put(there / name, key)
    file = write(there / "exp.toml", (key, value))
    assert used(file, key) == str((there / name).resolve())


@pytest.mark.parametrize("key", KEYS)
def test_a_path_on_the_command_line_counts_from_the_current_folder(folders, key):
    """The negative control: the same words beside the file, and in it, change nothing."""
    there, here = folders
    name, value = named(key, "mine")
    put(there / name, key)
    put(here / name, key)
    file = write(there / "exp.toml", (key, value))
    assert used(file, key, f"{key}={json.dumps(value)}") == str(here / name)


@pytest.mark.parametrize("key", KEYS)
def test_a_home_folder_is_written_out_in_a_file_and_on_the_command_line(folders, key):
    there, _ = folders
    name, value = named(key, "~/mine")
    home = there.parent / name.removeprefix("~/")
    put(home, key)
    file = write(there / "exp.toml", (key, value))
    assert used(file, key) == used(None, key, *sets_for(key, value)) == str(home)


def sets_for(key: str, value: object) -> list[str]:
    section = key.split(".")[0]
    base = {f"{section}.{k}": v for k, v in NEEDED.get(section, {}).items()}
    pairs = {"data.partition.clients": 9, **base, key: value}
    return [f"{k}={json.dumps(v)}" for k, v in pairs.items()]


@pytest.mark.parametrize("key", KEYS)
def test_a_path_that_exists_only_in_the_current_folder_is_refused_with_both(folders, key):
    there, here = folders
    name, value = named(key, "mine")
    put(here / name, key)
    file = write(there / "exp.toml", (key, value))
    with pytest.raises(ConfigError) as caught:
        read_experiment(file)
    message = str(caught.value)
    assert f"{key}: found '{name}'" in message
    assert f"there is no {there / name}, but there is {here / name}" in message
    advised = f"../here/{name}"
    assert f"Write {advised!r}" in message
    write(file, (key, [advised] if isinstance(value, list) else advised))
    assert used(file, key) == str(here / name)


def test_all_misplaced_paths_are_listed_at_once(folders):
    there, here = folders
    (here / "data").mkdir()
    (here / "model").mkdir()
    file = write(there / "exp.toml", ("model.name", "model"), ("data.source", "data"))
    with pytest.raises(ConfigError, match=r"2 problems\n  model.name.*\n  data.source"):
        read_experiment(file)


def test_a_misplaced_path_that_is_not_used_is_no_problem(folders):
    there, here = folders
    (here / "data").mkdir()
    file = write(there / "exp.toml", ("data.source", "data"))
    assert used(file, "data.source", "data.source=data") == str(here / "data")
    assert used(file, "data.source", 'data={source="digits"}') == "digits"


@pytest.mark.parametrize(("key", "name"), [
    ("data.source", "digits"), ("model.name", "vit-glyphs-8"), ("model.name", "preset:tiny-vit"),
    ("stability.trace", "phones"),
])  # fmt: skip
def test_a_name_that_comes_with_the_package_goes_before_a_folder(folders, key, name):
    for folder in folders:
        (folder / name).mkdir()
    assert used(write(folders[0] / "exp.toml", (key, name)), key) == name
    assert used(None, key, *sets_for(key, name)) == name


def test_a_name_of_the_other_kind_is_a_path(folders):
    there, _ = folders
    (there / "minilm").mkdir()
    assert "minilm" in locate.BUNDLED and "minilm" not in BUNDLED_DATASETS
    file = write(there / "exp.toml", ("data.source", "minilm"))
    assert used(file, "data.source") == str(there / "minilm")


@pytest.mark.parametrize("name", ["google/vit-base-patch16-224", "bert-base", "owner/data-v1.5"])
@pytest.mark.parametrize("key", ["model.name", "model.config", "data.source"])
def test_a_name_of_the_hub_stays(folders, key, name):
    assert used(write(folders[0] / "exp.toml", (key, name)), key) == name


@pytest.mark.parametrize("name", ["./mine", "../mine", "a/b/c", "mine.csv", "rows/mine.PARQUET"])
def test_a_missing_path_is_named_where_it_was_looked_for(folders, name):
    there, _ = folders
    file = write(there / "exp.toml", ("data.source", name))
    expected = os.path.normpath(there / name)
    assert used(file, "data.source") == expected
    with pytest.raises(fedpeft.FedpeftError, match="there is no file or folder") as caught:
        fedpeft.run(file, {"model.name": "preset:tiny-vit"})
    assert expected in str(caught.value)


def test_rows_of_a_sweep_count_from_the_file_and_over_from_here(folders):
    there, here = folders
    for place in (there / "a", there / "b", here / "a", here / "c"):
        place.mkdir()
    rows = [{"data.source": "a"}, {"data": {"source": "b"}}]
    file = write(there / "exp.toml", base={"sweep": rows})
    assert [value_of(row.experiment, "data.source") for row in read_rows(file)] == [
        str(there / "a"), str(there / "b")
    ]  # fmt: skip
    over = read_rows(file, overs=["data.source=a,c"])
    found = [resolve(row.experiment).experiment.data.source for row in over]
    assert found == [str(here / "a"), str(here / "c")]
    assert [row.name for row in over] == ["source=a", "source=c"]


def test_a_row_that_replaces_a_misplaced_path_is_fine_and_one_that_does_not_is_named(folders):
    there, here = folders
    (here / "data").mkdir()
    rows = [{"data.source": "digits"}, {"seed": 2}]
    file = write(there / "exp.toml", ("data.source", "data"), base={"sweep": rows})
    with pytest.raises(ConfigError, match=r"data.source: found 'data'") as caught:
        read_rows(file)
    assert "in the row seed=2" in str(caught.value) and "digits" not in str(caught.value)


def test_a_site_takes_a_bundled_name_before_a_folder_beside_its_file(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "site.toml").write_text('name = "a"\n[data]\nsource = "digits"\n')
    assert read_site(tmp_path / "site.toml").data.source == "digits"
    (tmp_path / "site.toml").write_text('name = "a"\n[data]\nsource = "./digits"\n')
    assert read_site(tmp_path / "site.toml").data.source == str(tmp_path / "digits")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_of_the_repository_mean_the_same_from_everywhere(file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    at_root = [row.experiment for row in read_rows(file)]
    monkeypatch.chdir(tmp_path)
    elsewhere = [row.experiment for row in read_rows(file)]
    assert at_root == elsewhere
    local = {row.model.name for row in at_root if "backbones" in row.model.name}
    assert all(Path(name).is_dir() for name in local)


# --- a whole run --------------------------------------------------------------------------------

OWN = {
    "name": "own",
    "model": {"name": "backbone"},
    "data": {"source": "data/rows.npz", "partition": {"clients": 3, "scheme": "iid"}},
    "federation": {"rounds": 1, "clients_per_round": 2},
    "client": {"epochs": 1},
    "engine": {"workers": 1},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment file, a model and data of its own."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(locate.locate("vit-glyphs-8").folder, folder / "backbone")
    rng = np.random.default_rng(0)
    (folder / "data").mkdir()
    pixels, label = rng.integers(0, 255, (60, 8, 8), np.uint8), np.arange(60) % 3
    np.savez(folder / "data" / "rows.npz", x=pixels, y=label)
    return write(folder / "exp.toml", base=OWN).parent


def command(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main([str(arg) for arg in args])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out + said.err


def test_a_run_is_the_same_from_two_folders_and_its_folder_works_from_a_third(
    project, folders, capsys, monkeypatch
):
    there, here = folders
    monkeypatch.chdir(project)
    inside = fedpeft.run("exp.toml", out=there / "inside")
    monkeypatch.chdir(here)
    file = os.path.relpath(project / "exp.toml", here)
    code, said = command(capsys, "run", file, "--out", "~/there/outside", "--json")
    outside = json.loads(said.splitlines()[0])
    assert code == 0 and outside["delta_digest"] == inside["delta_digest"]
    texts = [(there / name / "experiment.toml").read_text() for name in ("inside", "outside")]
    assert texts[0] == texts[1]
    monkeypatch.chdir("/")
    assert fedpeft.load("~/there/outside").config.num_labels == 3
    for args in (
        ["run", "--resume", "--out=~/there/outside", "--set", "federation.rounds=2"],
        ["export", "~/there/outside", "--to=~/exported"],
        ["report", "~/there/outside", "--out=~/page.html"],
    ):
        code, said = command(capsys, *args)
        assert code == 0, said
    assert (there.parent / "exported").is_dir() and (there.parent / "page.html").is_file()


def test_settings_and_paths_from_python_count_from_the_current_folder(project, folders):
    there, here = folders
    shutil.copytree(project / "data", here / "data")
    (here / "tiny.toml").write_text(TINY)
    found = fedpeft.run(
        "tiny.toml",
        {"data.source": Path("data") / "rows.npz", "data.partition.clients": 3,
         "federation.rounds": 1, "data.partition.min_examples": 1},
        out="~/there/run",
    )  # fmt: skip
    assert found["rounds"] == 1
    recorded = tomllib.loads((there / "run" / "experiment.toml").read_text())
    assert recorded["data"]["source"] == str(here / "data" / "rows.npz")
