"""One data set in every form, read back alike; and what cannot be read."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
from PIL import Image

from fedpeft.core.errors import DataError
from fedpeft.data.request import Columns, DataRequest
from fedpeft.data.source import choose_splits, read_source
from fedpeft.data.tables import Table, draw_holdout, find_column, select, values_of

TRAIN = {
    "text": ["a cat", "a dog, \n loud", "a cow"],
    "label": [0, 1, 0],
    "client": ["x", "y", "x"],
}
TEST = {"text": ["the cat"], "label": [1], "client": ["x"]}


def rows(columns):
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def jsonl(path, records):
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n", "utf-8")


def write_csv_folder(path):
    datasets.Dataset.from_dict(TRAIN).to_csv(path / "train.csv", index=False)
    datasets.Dataset.from_dict(TEST).to_csv(path / "test.csv", index=False)
    return path


def write_parquet_folder(path):
    datasets.Dataset.from_dict(TRAIN).to_parquet(path / "train-00000-of-00001.parquet")
    datasets.Dataset.from_dict(TEST).to_parquet(path / "test-00000-of-00001.parquet")
    return path


def write_jsonl_with_split(path):
    records = [{**row, "split": "train"} for row in rows(TRAIN)]
    jsonl(path / "all.jsonl", [{**rows(TEST)[0], "split": "test"}, *records])
    return path / "all.jsonl"


def write_saved(path):
    parts = {"train": TRAIN, "test": TEST}
    saved = datasets.DatasetDict({k: datasets.Dataset.from_dict(v) for k, v in parts.items()})
    saved.save_to_disk(path / "saved")
    return path / "saved"


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def open_splits(source, **options):
    request = DataRequest(source=str(source), **options)
    return choose_splits(read_source(request), request)


def as_lists(table, names=("text", "label", "client")):
    return {name: values_of(table.columns[name]) for name in names}


@pytest.mark.parametrize(
    "write", [write_csv_folder, write_parquet_folder, write_jsonl_with_split, write_saved]
)
def test_every_form_gives_the_same_tables(write, tmp_path):
    train, test, validation = open_splits(write(tmp_path))
    assert as_lists(train) == TRAIN and as_lists(test) == TEST and validation is None


def test_saved_lone_data_set_is_the_training_split(tmp_path):
    datasets.Dataset.from_dict(TRAIN).save_to_disk(tmp_path / "s")
    train, test, _ = open_splits(tmp_path / "s")
    assert as_lists(train) == TRAIN and test is None


def test_parquet_keeps_class_names(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    part = {name: TRAIN[name] for name in features}
    datasets.Dataset.from_dict(part, features=features).to_parquet(tmp_path / "a.parquet")
    train, _, _ = open_splits(tmp_path / "a.parquet")
    assert train.names == {"label": ("no", "yes")}


def test_npz_reads_both_forms(tmp_path):
    x, y = np.zeros((4, 2, 2), np.uint8), np.array([0, 1, 1, 0])
    np.savez(
        tmp_path / "split.npz",
        x_train=x, y_train=y, domain_train=y, x_test=x[:1], y_test=y[:1], domain_test=y[:1],
        classes=np.array(["cat", "dog"]), domains=np.array(["photo", "art"]),
    )  # fmt: skip
    train, test, _ = open_splits(tmp_path / "split.npz")
    assert (len(train), len(test)) == (4, 1)
    assert train.names == {"y": ("cat", "dog"), "domain": ("photo", "art")}
    np.savez(tmp_path / "plain.npz", x=x, y=y, client=y, other=np.zeros(3))
    train, test, _ = open_splits(tmp_path / "plain.npz")
    assert list(train.columns) == ["x", "y", "client"] and test is None


def test_image_folder_reads_classes(tmp_path):
    for split, kind in (("train", "cat"), ("train", "dog"), ("test", "cat")):
        folder = tmp_path / split / kind
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4), "red").save(folder / "1.png")
    train, test, _ = open_splits(tmp_path)
    assert values_of(train.columns["label"]) == ["cat", "dog"] and len(test) == 1
    alone, none, _ = open_splits(tmp_path / "train")
    assert values_of(alone.columns["label"]) == ["cat", "dog"] and none is None
    assert alone.columns["image"][0] == str(tmp_path / "train" / "cat" / "1.png")


def test_splits_are_chosen_by_name(tmp_path):
    for name in ("train", "val", "extra"):
        jsonl(tmp_path / f"{name}.jsonl", rows(TRAIN if name == "train" else TEST))
    train, test, validation = open_splits(tmp_path)
    assert (len(train), len(test), validation) == (3, 1, None)
    train, _, validation = open_splits(tmp_path, train_split="val", test_split="train")
    assert len(train) == 1 and validation is None
    with pytest.raises(DataError, match=r"data.test_split: there is no split 'tset'"):
        open_splits(tmp_path, test_split="tset")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no split 'train'; found are extra, val"):
        open_splits(tmp_path)


def test_hub_splits_are_read(monkeypatch):
    parts = datasets.DatasetDict(train=datasets.Dataset.from_dict(TRAIN))
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: calls.append((a, k)) or parts)
    train, _, _ = open_splits("someone/cats", subset="small", revision="v1")
    assert as_lists(train) == TRAIN
    assert calls == [(("someone/cats", "small"), {"revision": "v1"})]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (datasets.exceptions.DatasetNotFoundError("gone"), r"'digit' is unknown.*'digits' meant"),
        (ConnectionError("offline"), r"hub cannot be reached"),
        (ValueError("Config name is missing"), r"cannot be loaded from the hub: Config name"),
    ],
)
def test_unknown_and_unreachable_are_told_apart(monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=message):
        open_splits("digit")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": 1}\nnope\n', r"line 2 is not JSON"),
        ("a.jsonl", "[1]\n", r"line 1 is not a JSON object"),
        ("a.jsonl", "", r"has no rows"),
        ("a.csv", "a,b\n1\n", r"is not a csv file"),
        ("a.parquet", "nope", r"is not a parquet file"),
        ("a.npz", "nope", r"is not an npz file"),
        ("a.pkl", "nope", r"ends in '.pkl'; allowed are .parquet"),
    ],
)
def test_broken_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        open_splits(tmp_path / name)


def test_pickled_and_foreign_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "o.npz", x=np.array([{}, {}], dtype=object))
    with pytest.raises(DataError, match=r"npz file of plain arrays"):
        open_splits(tmp_path / "o.npz")
    np.savez(tmp_path / "t.npz", tokens=np.zeros(3))
    with pytest.raises(DataError, match=r"holds the arrays tokens; needed are x_train"):
        open_splits(tmp_path / "t.npz")
    np.savez(tmp_path / "l.npz", x=np.zeros(3), y=np.zeros(2))
    with pytest.raises(DataError, match=r"x has 3 rows and y has 2"):
        open_splits(tmp_path / "l.npz")


def test_folders_that_hold_nothing_of_use_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds none of"):
        open_splits(tmp_path)
    with pytest.raises(DataError, match=r"there is no file or folder './nothing'"):
        open_splits("./nothing")


@pytest.mark.parametrize("folder", [".", "data"])
def test_a_split_may_have_several_files(tmp_path, monkeypatch, folder):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / "set" / folder
    place.mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        jsonl(place / f"{name}.jsonl", rows(TRAIN))
    train, test, _ = open_splits(tmp_path / "set")
    assert test is not None and len(train) == 2 * len(test) > 0


def test_saved_folder_that_is_corrupt_is_refused(tmp_path):
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"is not a folder that `datasets` saved"):
        open_splits(tmp_path)


def test_columns_are_found_or_named():
    table = Table({"question": ["a"], "fine": [0], "user": ["u"]})
    assert find_column(table, "text", Columns(), required=True) == "question"
    assert find_column(table, "label", Columns(label="fine"), required=True) == "fine"
    assert find_column(table, "image", Columns(), required=False) is None
    with pytest.raises(DataError, match=r"no column 'f'; found are question, fine, user"):
        find_column(table, "label", Columns(label="f"), required=False)
    with pytest.raises(DataError, match=r"none of the columns question, fine, user"):
        find_column(table, "label", Columns(), required=True)


def test_rows_are_selected_in_order():
    lazy = datasets.Dataset.from_dict(TRAIN)
    table = Table({"a": [1, 2, 3], "b": np.arange(3), "c": lazy["text"]})
    picked = select(select(table, np.array([2, 1, 0])), np.array([0, 2]))
    assert [values_of(c) for c in picked.columns.values()] == [[3, 1], [2, 0], ["a cow", "a cat"]]
    assert list(picked.columns["c"]) == ["a cow", "a cat"] and len(picked) == 2


def test_holdout_is_stratified_and_fixed():
    groups = ["a"] * 50 + ["b"] * 10
    kept, held = draw_holdout(groups, fraction=0.2)
    assert sorted([*kept, *held]) == list(range(60))
    assert [groups[row] for row in held] == ["a"] * 10 + ["b"] * 2
    assert np.array_equal(held, draw_holdout(groups, fraction=0.2)[1])
    with pytest.raises(DataError, match=r"too few to hold 20% of each out"):
        draw_holdout(["a", "b"], fraction=0.2)
