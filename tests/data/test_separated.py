"""Tables of separated values: as people write them, with the file's own row and line."""

from __future__ import annotations

import csv
import gzip
import io
from dataclasses import replace

import numpy as np
import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.labels import encode_labels
from fedpeft.data.request import Columns, DataRequest
from fedpeft.data.rows import check_rows
from fedpeft.data.schemes import PartitionRequest
from fedpeft.data.separated import Separated, read_separated
from fedpeft.data.source import choose_splits, read_source
from fedpeft.data.tables import column_of, values_of


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def opened(path, **keys):
    request = DataRequest(str(path), task="text-classification", **keys)
    return choose_splits(read_source(request), request)[0]


def test_places_are_the_lines_of_the_file(tmp_path):
    """A row's place is the line on which it begins, whatever its cells and the file's ends."""
    rng = np.random.default_rng(0)
    for number in range(20):
        buffer, lines, row_count = io.StringIO(), [], 12
        end = ["\n", "\r\n"][number % 2]
        writer = csv.writer(buffer, lineterminator=end)
        writer.writerow(["text", "label"])
        for row in range(row_count):
            if rng.integers(3) == 0:
                buffer.write(end)
            lines.append(1 + buffer.getvalue().count("\n"))
            text = ["plain", "a, comma", 'a "quote"', "two\nlines", "\n\nthree"][rng.integers(5)]
            writer.writerow([f"{text} {row}", "ab"[row % 2]])
        table = opened(write(tmp_path / "a.csv", buffer.getvalue()))
        assert [int(place.split("(line ")[1].split(")")[0]) for place in table.places] == lines
        assert [place.split()[1] for place in table.places] == [str(1 + n) for n in range(12)]


def test_another_place_is_told_apart(tmp_path):
    table = opened(write(tmp_path / "a.csv", 'text,label\n"two\nlines",a\nb,b\n'))
    assert list(table.places) != [f"row {n} after the header (line {n + 1})" for n in (1, 2)]


def test_a_file_without_a_header_keeps_its_first_row(tmp_path):
    path = write(tmp_path / "a.csv", "a cat,cat\na dog,dog\n,cow\n")
    table = opened(path, header=False)
    assert values_of(table.columns["column_2"]) == ["cat", "dog", "cow"]
    assert table.place(2) == f"row 3 (line 3) of {path}"
    with pytest.raises(DataError, match=r"data\.header = false"):
        column_of(opened(path), "text", DataRequest(task="text-classification"), required=True)
    named = DataRequest(columns=Columns(text="text"))
    with pytest.raises(DataError, match=r"data\.header = false"):
        column_of(opened(path), "text", named, required=False)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_a_separator_can_be_named_and_a_forgotten_one_is_told(tmp_path, mark):
    path = write(tmp_path / "a.csv", f"text{mark}label\na, b{mark}cat\n")
    assert values_of(opened(path, separator=mark).columns["text"]) == ["a, b"]
    with pytest.raises(DataError, match=r"is the separator .* Set data\.separator"):
        opened(path)


@pytest.mark.parametrize("mark", ["", ";;", "\n", '"', "é"])
def test_a_separator_is_one_character(tmp_path, mark):
    if mark:
        with pytest.raises(DataError, match=r"data\.separator: found"):
            read_separated(write(tmp_path / "a.csv", "a\n"), Separated(separator=mark))


def test_names_of_columns_have_any_case_and_blanks(tmp_path):
    table = opened(write(tmp_path / "A.CSV", " Text ,LABEL\nx,a\n"))
    request = DataRequest(task="text-classification")
    assert column_of(table, "text", request, required=True) == " Text "
    assert column_of(table, "label", request, required=True) == "LABEL"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,b\nx,y,z\n", r"line 3 has 3 cells, needed are 2 \(text, label\)"),
        ('text,label\n"a\nb",b\nx\n', r"line 4 has 1 cell, needed are 2"),
        ('text,label\na,b\n"x,y\nc,d\n', r"line 3 has 1 cell.*a quote opened"),
        ("text,label\n".encode("utf-16"), r"not UTF-8 but UTF-16"),
        ("text,label\n".encode("utf-16-le"), r"line 1 holds a NUL byte"),
        ("text,label\na,é\n".encode("latin-1"), r"line 2 has the byte 0xe9, which is 'é'"),
        ("téxt,label\na,b\n".encode("latin-1"), r"is not UTF-8: line 1 has the byte 0xe9"),
        (gzip.compress(b"text,label\na,b\n", mtime=0), r"is packed with gzip"),
        (b"PK\x03\x04" + bytes(99), r"is a zip archive"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, content, message):
    path = write(tmp_path / "a.csv", content)
    with pytest.raises(DataError, match=message) as error:
        opened(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.zip", "a.tar"])
def test_a_packed_source_is_to_be_unpacked(tmp_path, name):
    with pytest.raises(DataError, match="is packed: unpack it"):
        opened(write(tmp_path / name, b"PK\x03\x04"))


def test_a_long_cell_is_read(tmp_path):
    long = "w " * 1_000_000
    path = write(tmp_path / "a.csv", f"text,label\n{long},a\nx,b\n")
    assert values_of(opened(path).columns["text"]) == [long, "x"]


def test_an_error_names_the_row_after_rows_were_held_out(tmp_path):
    rows = [f"text {n},{'ab'[n % 2]}" for n in range(40)]
    rows[24] = "text 24,"
    path = write(tmp_path / "a.csv", "\n".join(["text,label", *rows]))
    table = opened(path)
    with pytest.raises(DataError, match=r"missing in row 25 after the header \(line 26\)"):
        encode_labels(table, table, "label")


def test_a_quote_that_is_opened_and_never_closed_is_no_traceback(tmp_path):
    path = write(tmp_path / "a.csv", '"text,label\n' + "a,b\n" * 50_000)
    with pytest.raises(DataError, match=r"a\.csv"):
        opened(path)


def test_a_header_that_is_repeated_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,b\n\ntext,label\nc,d\n")
    with pytest.raises(DataError, match=r"line 4 repeats the header"):
        opened(path)
    assert len(opened(path, header=False)) == 4


def test_keys_of_separated_values_are_for_these_only(tmp_path):
    write(tmp_path / "a.jsonl", '{"text": "a"}\n')
    with pytest.raises(DataError, match=r"data\.separator: .*a\.jsonl is no file of separated"):
        opened(tmp_path / "a.jsonl", separator=";")
    with pytest.raises(DataError, match=r"data\.header: digits is no file"):
        opened("digits", header=False)


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        ("a,x,h\nb,,h\n", {}, r"'label' is missing in row 2"),
        ("a,x,h\n,y,h\n", {}, r"data\.text: row 2 .* is empty"),
        ("a,x,h\nb,y,\n", {"partition": PartitionRequest("natural")}, r"'client' is missing"),
        ("a,x,h\nb,y,h\n", {"columns": Columns(label="z")}, r"there is no column 'z'"),
    ],
)
def test_rows_are_checked_without_a_model(tmp_path, rows, keys, message):
    write(tmp_path / "train.csv", "text,label,client\n" + rows)
    write(tmp_path / "test.csv", "text,label,client\na,x,h\n")
    request = DataRequest(str(tmp_path), task="text-classification")
    check_rows(replace(request, source=str(tmp_path / "test.csv"), whole=True))
    with pytest.raises(DataError, match=message):
        check_rows(replace(request, **keys))
