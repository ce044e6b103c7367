import json

import pytest

from fedpeft.core.errors import DataError
from fedpeft.inference.inputs import Input, read_inputs
from fedpeft.models.tasks import CAUSAL_LM, IMAGE_CLASSIFICATION, TEXT_CLASSIFICATION
from fedpeft.models.tasks import VIDEO_CLASSIFICATION as VIDEO


def values(given, task, lines=()):
    return [each.value for each in read_inputs(str(given), task, lines)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.JPG").write_bytes(b"")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "note.txt").write_text("a note\n")
    (tmp_path / "wave.gif").write_bytes(b"")
    return tmp_path


def test_a_text_is_itself():
    assert read_inputs("where is it?", TEXT_CLASSIFICATION) == [
        Input("where is it?", "where is it?")
    ]


def test_lines_of_standard_input():
    assert values("-", CAUSAL_LM, ["one\n", "\n", "two\n"]) == ["one", "two"]
    with pytest.raises(DataError, match="found '-', lines of text; the model's task is image"):
        read_inputs("-", IMAGE_CLASSIFICATION, ["one"])


def test_files_of_the_task_in_a_folder(folder):
    found = read_inputs(str(folder), IMAGE_CLASSIFICATION)
    assert [each.name for each in found] == ["b.png", "in/a.JPG", "wave.gif"]
    assert values(folder, TEXT_CLASSIFICATION) == ["a note\n"]
    assert [each.name for each in read_inputs(str(folder), VIDEO)] == ["wave.gif"]


def test_one_file(folder):
    assert values(folder / "b.png", IMAGE_CLASSIFICATION) == [str(folder / "b.png")]
    assert values(folder / "note.txt", CAUSAL_LM) == ["a note\n"]


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ({"prompt": "q", "text": "other"}, [{"role": "user", "content": "q"}]),
        (
            {"question": "q", "answer": "a"},
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        ),
        ({"instruction": "q", "input": "x"}, [{"role": "user", "content": "q\n\nx"}]),
        ({"text": "q"}, "q"),
        ({"messages": [{"role": "user", "content": "q"}]}, [{"role": "user", "content": "q"}]),
    ],
)
def test_rows_for_a_language_model(tmp_path, row, value):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert values(tmp_path / "rows.jsonl", CAUSAL_LM) == [value]


def test_names_of_pictures_count_from_their_table(folder):
    (folder / "rows.csv").write_text("image\nb.png\n")
    assert values(folder / "rows.csv", IMAGE_CLASSIFICATION) == [str(folder / "b.png")]


@pytest.mark.parametrize(
    ("given", "task", "match"),
    [
        ("none.jsonl", TEXT_CLASSIFICATION, "there is no file or folder 'none.jsonl'"),
        ("a word", IMAGE_CLASSIFICATION, "there is no file or folder 'a word'; name a picture"),
        (" ", CAUSAL_LM, "the text is empty"),
    ],
)
def test_what_is_no_input_is_refused(given, task, match):
    with pytest.raises(DataError, match=match):
        read_inputs(given, task)


def test_files_of_another_kind_are_refused(folder):
    with pytest.raises(DataError, match=r"note\.txt is not read; the model's task is image"):
        read_inputs(str(folder / "note.txt"), IMAGE_CLASSIFICATION)
    with pytest.raises(DataError, match="holds nothing that the model reads"):
        read_inputs(str(folder / "in"), TEXT_CLASSIFICATION)
    (folder / "rows.jsonl").write_text('{"text": 3}')
    with pytest.raises(DataError, match=r"^INPUT: line 1 of .* is int, not a text"):
        read_inputs(str(folder / "rows.jsonl"), CAUSAL_LM)
    (folder / "rows.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"^INPUT: .*line 1 is not JSON"):
        read_inputs(str(folder / "rows.jsonl"), CAUSAL_LM)
    with pytest.raises(DataError, match=r"^INPUT: the text is no valid text"):
        read_inputs("a\ud800b", CAUSAL_LM)
    (folder / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"bad\.txt is no text in UTF-8"):
        read_inputs(str(folder / "bad.txt"), CAUSAL_LM)
