"""Files and folders as people have them: other cases, hidden ones, broken ones, strays."""

from __future__ import annotations

import gc
import io
import json
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from fedpeft.core.errors import DataError
from fedpeft.data.files import READERS
from fedpeft.data.folders import find_by_class, pictures_in, split_named
from fedpeft.data.images import Canvas, InFolder, read_pixels
from fedpeft.data.labels import encode_labels
from fedpeft.data.places import Numbered
from fedpeft.data.request import DataRequest
from fedpeft.data.source import choose_splits, read_source
from fedpeft.data.tables import values_of


def draw(path, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 9).save(path)


def opened(path, **keys):
    request = DataRequest(str(path), **keys)
    return choose_splits(read_source(request), request)


@pytest.mark.parametrize("names", [("Train", "Test"), ("TRAIN", "val"), ("training", "Testing")])
def test_splits_are_recognised_in_usual_spellings(tmp_path, names):
    for split in names:
        for kind in ("cat", "dog"):
            draw(tmp_path / split / kind / "0.png")
    train, test, _ = opened(tmp_path)
    assert values_of(train.columns["label"]) == ["cat", "dog"] and len(test) == 2
    again, _, _ = opened(tmp_path, train_split=names[0], test_split=names[1])
    assert len(again) == 2


@pytest.mark.parametrize("names", [("fold-1", "fold-2"), ("Test", "site"), ("all",)])
def test_folders_that_hold_the_same_folders_are_no_classes(tmp_path, names):
    for outer in names:
        for kind in ("cat", "dog"):
            draw(tmp_path / outer / kind / "0.png")
    with pytest.raises(DataError, match=r"are no classes: they hold the folders 'cat', 'dog'"):
        opened(tmp_path)


def test_two_spellings_of_one_split_are_refused(tmp_path):
    for split in ("Train", "training"):
        draw(tmp_path / split / "cat" / "0.png")
    with pytest.raises(DataError, match="both name the train split"):
        opened(tmp_path)


def test_splits_of_tables_have_any_case(tmp_path):
    for name in ("Train.csv", "TEST.tsv"):
        mark = "\t" if name.endswith("tsv") else ","
        (tmp_path / name).write_text(f"text{mark}label\na{mark}0\n")
    train, test, _ = opened(tmp_path)
    assert (len(train), len(test)) == (1, 1) and list(test.columns) == ["text", "label"]
    lone = tmp_path / "all.jsonl"
    lone.write_text("\n".join(json.dumps({"y": 1, "split": s}) for s in ("Train", "TRAIN ", "Val")))
    with pytest.raises(DataError, match="both name"):
        opened(lone)


def test_hidden_files_and_folders_are_no_data(tmp_path):
    draw(tmp_path / "cat" / "0.png")
    draw(tmp_path / "dog" / "1.png")
    for hidden in (
        ".ipynb_checkpoints/0.png",
        "cat/.ipynb_checkpoints/0.png",
        "__MACOSX/cat/0.png",
    ):
        draw(tmp_path / hidden)
    draw(tmp_path / "dog" / "._1.png")
    train, _, _ = opened(tmp_path)
    assert values_of(train.columns["label"]) == ["cat", "dog"]


def test_linked_folders_are_read_and_loops_end(tmp_path):
    draw(tmp_path / "elsewhere" / "0.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    draw(tmp_path / "data" / "dog" / "0.png")
    train, _, _ = opened(tmp_path / "data")
    assert values_of(train.columns["label"]) == ["cat", "dog"]
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="a link back"):
        pictures_in(tmp_path / "data")


@pytest.mark.parametrize("name", ["test.xlsx", "TEST.csv.gz", "val.txt"])
def test_a_split_of_no_kind_that_is_read_is_refused(tmp_path, name):
    (tmp_path / "train.csv").write_text("text,label\na,0\n")
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=f"{name} names a split"):
        opened(tmp_path)


def test_what_is_not_read_is_said_and_a_stray_table_hides_no_pictures(tmp_path, caplog):
    for kind in ("cat", "dog"):
        draw(tmp_path / kind / "0.png")
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "README.md").write_text("words")
    train, _, _ = opened(tmp_path)
    assert "image" in train.columns
    assert "not read: notes.csv" in caplog.text and "README" not in caplog.text


def test_pictures_that_a_table_names_count_from_its_folder(tmp_path):
    draw(tmp_path / "pictures" / "0.png")
    (tmp_path / "train.csv").write_text("file_name,label\npictures/0.png,cat\n")
    train, _, _ = opened(tmp_path / "train.csv")
    assert train.folder == str(tmp_path) and values_of(train.columns["file_name"])


@pytest.mark.filterwarnings("ignore:Exception ignored")  # `datasets` leaves its file open
def test_metadata_beside_pictures_is_read(tmp_path):
    draw(tmp_path / "train" / "0.png")
    draw(tmp_path / "train" / "1.png")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n0.png,cat\n1.png,dog\n")
    train, _, _ = opened(tmp_path)
    assert sorted(values_of(train.columns["label"])) == ["cat", "dog"]
    gc.collect()


def test_a_missing_label_is_named_by_the_row_of_its_file(tmp_path):
    lines = [json.dumps({"text": f"t {i}", "label": "ab"[i % 2]}) for i in range(30)]
    lines[24] = json.dumps({"text": "t"})
    (tmp_path / "a.jsonl").write_text("\n\n".join(lines))
    train, test, _ = opened(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"missing in line 49 of .*a\.jsonl"):
        encode_labels(train, test or train, "label")


def test_an_empty_cell_is_missing_in_the_files_own_row(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nx,yes\ny,\n")
    train, _, _ = opened(tmp_path / "a.csv")
    with pytest.raises(
        DataError, match=r"missing in row 2 after the header \(line 3\) of .*a\.csv"
    ):
        encode_labels(train, train, "label")
    assert Numbered("f", (4, 9), "line")[1] == "line 9 of f"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,text,label\na,b,c\n", "names the column 'text' twice"),
        ("a.csv", "text,label\ncaf\u00e9,a\n".encode("latin-1"), "is not UTF-8"),
        ("a.jsonl", '{"text": "caf\u00e9"}'.encode("latin-1"), "is not UTF-8"),
        ("a.jsonl", b'{"a":' * 100_000, "line 1 is not JSON"),
        ("a.csv", b"0.5,1\n0.25,0\n", "the first line must name the columns"),
        ("a.csv", b"", "is not a csv file"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path / name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"text": "a"}\r\n')
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,label\r\na,0\r\n")
    for name in ("a.jsonl", "a.csv"):
        assert "text" in opened(tmp_path / name)[0].columns


def whole_files():
    buffers = {suffix: io.BytesIO() for suffix in (".png", ".jpg", ".gif", ".tif", ".webp")}
    noise = np.random.default_rng(1).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for suffix, buffer in buffers.items():
        Image.fromarray(noise).save(buffer, Image.registered_extensions()[suffix])
    return {suffix: buffer.getvalue() for suffix, buffer in buffers.items()}


def test_broken_pictures_and_tables_are_one_sentence_each(tmp_path):
    """Cuts and flipped bytes: what is read is read, and the rest is a `DataError` with its name."""
    rng, refused = np.random.default_rng(2), 0
    np.savez(tmp_path / "w.npz", x=np.zeros((3, 4, 4), np.uint8), y=np.arange(3))
    whole = whole_files() | {".npz": (tmp_path / "w.npz").read_bytes()}
    for suffix, content in whole.items():
        for number in range(40):
            broken = bytearray(content[: int(rng.integers(0, len(content) + 1))])
            for place in rng.integers(0, max(1, len(broken)), 3 * (number % 2)) if broken else ():
                broken[place] = rng.integers(256)
            path = tmp_path / f"b{suffix}"
            path.write_bytes(broken)
            try:
                if suffix == ".npz":
                    READERS[suffix](path)
                else:
                    read_pixels([str(path)], Canvas(8, 8, 3), place=lambda row, p=path: str(p))
            except DataError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 100


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pictures_of_32_bits_are_refused(kind):
    picture = Image.fromarray(np.full((4, 4), 200, kind))
    with pytest.raises(DataError, match="whose white is not known"):
        read_pixels([picture], Canvas(4, 4, 1))


def test_only_usual_names_are_splits():
    assert [split_named(n) for n in ("Dev", " TEST ", "trained", "testament")] == [
        "validation",
        "test",
        None,
        None,
    ]


def test_classes_of_a_folder_are_found_without_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        draw(tmp_path / "cat" / "0.png")
        draw(tmp_path / "dog" / "more" / "0.png")
        assert list(find_by_class(tmp_path, pictures_in)) == ["train"]
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("training_set", "train"),
        ("train2017", "train"),
        ("01_Train", "train"),
        ("trainset", "train"),
        ("Test Images", "test"),
        ("Validation-Data", "validation"),
        ("entra\u00eenement", "train"),
        ("validac\u0327a\u0303o", "validation"),
        ("测试集", "test"),
        ("train station", None),
        ("test tube", None),
        ("train_r1", None),
        ("tr", None),
    ],
)
def test_splits_are_named_in_many_spellings(name, split):
    assert split_named(name) == split


def test_a_class_may_be_called_train(tmp_path):
    for kind in ("bus", "car", "train"):
        draw(tmp_path / kind / "0.png")
    train, test, _ = opened(tmp_path)
    assert values_of(train.columns["label"]) == ["bus", "car", "train"] and test is None


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (("train/0.png", "test/0.png"), "hold no folders of classes"),
        (("train/images/cat/0.png", "train/images/dog/0.png", "test/x/cat/0.png"), "no classes"),
        (("train/cat/0.png", "odd/cat/0.png"), "'odd' holds the same folders as 'train'"),
        (("cat/0.png", "dog/0.png", "test/cat/0.png"), "'test' stands beside classes"),
        (("train/cat/0.png", "test/cat/x.txt"), "the test split, holds no folder"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, pictures, message):
    for name in pictures:
        draw(tmp_path / name) if name.endswith("png") else (tmp_path / name).parent.mkdir(
            parents=True
        )
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_what_lies_about_in_folders_of_classes_is_told(tmp_path, caplog):
    for kind in ("cat", "dog"):
        draw(tmp_path / "train" / kind / "0.png")
    (tmp_path / "train" / "bird").mkdir()
    draw(tmp_path / "train" / "loose.png")
    (tmp_path / "train" / "cat" / "1.heic").write_text("x")
    for seen in ("@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information"):
        draw(tmp_path / "train" / seen / "0.png")
    (tmp_path / "train" / "cat" / "Thumbs.db").write_text("x")
    train, _, _ = opened(tmp_path)
    assert values_of(train.columns["label"]) == ["cat", "dog"]
    for told in ("nothing is in it: bird", "1 pictures in no folder", "no pictures: 1 .heic"):
        assert told in caplog.text
    assert "Thumbs" not in caplog.text and "eaDir" not in caplog.text


def test_rows_are_split_by_a_column_in_any_case_and_others_are_told(tmp_path, caplog):
    lines = ["text,label,Split", *(f"t{n},a,{'TRAIN' if n % 2 else 'test'}" for n in range(8))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    train, test, _ = opened(tmp_path / "a.csv")
    assert (len(train), len(test)) == (4, 4) and not caplog.text
    (tmp_path / "a.csv").write_text("\n".join(lines).replace("Split", "part"))
    train, test, _ = opened(tmp_path / "a.csv")
    assert test is None and "'part' holds names of splits and is not used" in caplog.text
    (tmp_path / "a.csv").write_text("\n".join([*lines, "t,a,"]))
    with pytest.raises(DataError, match=r"the split is missing in row 9 .*line 10"):
        opened(tmp_path / "a.csv")


def test_splits_that_are_not_read_are_told(tmp_path, caplog):
    for name in ("train", "test", "extra"):
        (tmp_path / f"{name}.csv").write_text("text,label\na,0\n")
    (tmp_path / "~$train.csv").write_text("x")
    opened(tmp_path)
    assert "not read: the splits extra" in caplog.text


def test_a_folder_of_a_data_set_is_read_with_its_own_rows(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("text,label\na,0\nb,\n")
    train, _, _ = opened(tmp_path)
    assert train.place(1).endswith("train.csv")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "text": "b"}', "line 2 is not JSON: it names 'text' twice"),
        ('{"text": Infinity}', "line 2 is not JSON: it holds Infinity"),
        ('[{"text": "a"}]', "is not a JSON object but a list"),
        ('{"text": "a",}', "line 2 is not JSON"),
    ],
)
def test_a_line_that_is_no_object_is_refused(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "a.jsonl")


def test_arrays_that_do_not_fit_are_named(tmp_path):
    x, y = np.zeros((4, 8, 8), np.uint8), np.arange(4)
    for arrays, message in (
        ({"x": x, "y": np.int64(3)}, "x has 4 rows and y has 1"),
        ({"x": np.int64(3), "y": y}, "x is one number"),
        ({"x": x, "y": y, "client": y[:2]}, "x has 4 rows and client has 2"),
        ({"x": x, "y": np.array(["a"] * 4, object)}, "'y' holds Python objects"),
    ):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match=message):
            opened(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_text("words")
    with pytest.raises(DataError, match="is damaged, or of another kind"):
        opened(tmp_path / "a.npz")


def test_pictures_in_parquet_count_from_its_folder(tmp_path):
    draw(tmp_path / "0.png", (8, 8))
    for picture in ("0.png", {"bytes": None, "path": "0.png"}):
        Dataset.from_list([{"image": picture, "label": "a"}]).to_parquet(tmp_path / "a.parquet")
        train, _, _ = opened(tmp_path / "a.parquet")
        located = InFolder(train.columns["image"], train.folder)
        assert len(read_pixels(located, Canvas(8, 8, 1))) == 1


def test_sixteen_bits_that_would_be_black_are_refused(caplog):
    def deep(white):
        return [Image.fromarray(np.full((4, 4), white, np.uint16))]

    with pytest.raises(DataError, match="use the lower 8 only"):
        read_pixels(deep(200), Canvas(4, 4, 1))
    read_pixels(deep(60_000), Canvas(4, 4, 1))
    assert not caplog.text
    read_pixels(deep(4_000), Canvas(4, 4, 1))
    assert "reach 6 % of white" in caplog.text


def test_ragged_numbers_are_no_picture():
    with pytest.raises(DataError, match="row 0 is not a picture"):
        read_pixels([[[1, 2], [3]]], Canvas(2, 2, 1))


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_palettes_with_transparency_and_wide_greys_are_read():
    noise = np.random.default_rng(3).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    palette = Image.fromarray(noise).quantize(8)
    clear = encoded(palette, "PNG", transparency=bytes([0, 128] + [255] * 6))
    read = read_pixels([clear], Canvas(8, 8, 3)).read(torch.arange(1))
    assert np.array_equal(read[0].numpy(), np.asarray(palette.convert("RGB")))
    grey = noise[:, :, 0]
    wide = b"P5\n8 8\n65535\n" + (grey.astype(">u2") * 257).astype(">u2").tobytes()
    read = read_pixels([wide], Canvas(8, 8, 1)).read(torch.arange(1))
    assert np.array_equal(read[0, :, :, 0].numpy(), grey)


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_the_first_of_several_frames_is_used_and_told(kind, caplog):
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (9, 200)]
    read = read_pixels([encoded(frames[0], kind)], Canvas(4, 4, 1)).read(torch.arange(1))
    assert not caplog.text and read.unique().tolist() == [9]
    several = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    read = read_pixels([several], Canvas(4, 4, 1)).read(torch.arange(1))
    assert "row 0 has 2 frames or pages" in caplog.text and read.unique().tolist() == [9]
