"""Pictures that a table beside them names."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from fedpeft.core.errors import DataError
from fedpeft.data.load import load_data
from fedpeft.data.request import DataRequest
from fedpeft.data.schemes import PartitionRequest
from fedpeft.data.source import choose_splits, read_source
from fedpeft.data.tables import values_of
from fedpeft.models.source import ModelRequest, load_model


def draw(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 9).save(path)


def opened(path):
    request = DataRequest(str(path))
    return choose_splits(read_source(request), request)


def pictures(folder, count=8):
    for number in range(count):
        draw(folder / f"{number}.png")


def listed(names, **columns):
    head = ",".join(["file_name", *columns])
    return "\n".join([head, *map(",".join, zip(names, *columns.values(), strict=True))]) + "\n"


@pytest.mark.parametrize("name", ["metadata.csv", "Metadata.CSV", "metadata.jsonl"])
def test_a_lone_table_is_read_with_its_rows(tmp_path, name):
    pictures(tmp_path / "pics")
    names = [f"pics/{number}.png" for number in range(8)]
    labels = ["cat", "dog"] * 4
    rows = [json.dumps({"file_name": n, "label": k}) for n, k in zip(names, labels, strict=True)]
    jsonl = name.endswith("jsonl")
    (tmp_path / name).write_text("\n".join(rows) if jsonl else listed(names, label=labels))
    train, test, _ = opened(tmp_path)
    assert values_of(train.columns["label"]) == labels and test is None
    assert train.place(4).endswith(f"of {tmp_path / name}") and "5" in train.place(4)


def test_splits_come_from_a_column_or_from_folders(tmp_path):
    for split in ("train", "Test"):
        pictures(tmp_path / split, 4)
    names = [f"{split}/{number}.png" for split in ("train", "Test") for number in range(4)]
    labels = ["cat", "dog"] * 4
    (tmp_path / "metadata.csv").write_text(listed(names, label=labels))
    train, test, _ = opened(tmp_path)
    assert values_of(train.columns["file_name"]) == names[:4] and len(test) == 4
    (tmp_path / "metadata.csv").write_text(
        listed(names, label=labels, split=["test"] * 2 + ["train"] * 6)
    )
    train, test, _ = opened(tmp_path)
    assert (len(train), len(test)) == (6, 2)


def test_each_split_may_have_its_own(tmp_path):
    for split in ("train", "test"):
        pictures(tmp_path / split, 2)
        (tmp_path / split / "metadata.csv").write_text(
            listed(["0.png", "1.png"], label=["cat", "dog"])
        )
    train, test, _ = opened(tmp_path)
    assert train.folder == str(tmp_path / "train") and len(test) == 2


def test_pictures_are_found_from_the_table_and_others_are_told(tmp_path, caplog):
    pictures(tmp_path / "pics", 12)
    draw(tmp_path / "pics" / "more.png")
    names = [f"pics\\{n}.png" if n % 2 else f"pics/{n}.png" for n in range(12)]
    (tmp_path / "metadata.csv").write_text(listed(names, label=["cat", "dog"] * 6))
    loaded = load_model(ModelRequest("preset:tiny-vit", num_labels=2))
    request = DataRequest(
        str(tmp_path), partition=PartitionRequest("iid", clients=2, min_examples=1)
    )
    assert len(load_data(request, loaded.inputs).train) == 10
    assert "more.png" in caplog.text and "0.png" not in caplog.text.replace("10.png", "")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"metadata.csv": "image,label\na.png,cat\n"}, r"needed is file_name"),
        ({"metadata.csv": "file_name\n", "metadata.jsonl": "{}"}, r"remove one"),
        (
            {"train/metadata.csv": "file_name\na\n", "Training/metadata.csv": "file_name\na\n"},
            "both",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, files, message):
    for name, content in files.items():
        draw((tmp_path / name).parent / "a.png")
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_a_table_of_splits_beside_it_counts_first(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,0\n")
    (tmp_path / "metadata.csv").write_text("key,value\na,b\n")
    train, _, _ = opened(tmp_path)
    assert "text" in train.columns
