"""Inputs of a prediction: what a person names in the terminal becomes a list of inputs.

a text                       itself
a picture, clip or .txt      that file
a folder                     every picture, clip or .txt in it, in the order of their names
.jsonl .csv .tsv .parquet    the column of texts, prompts, conversations or pictures
-                            standard input, a text a line
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedpeft.core.errors import DataError
from fedpeft.core.text import home, shown
from fedpeft.data.clip_files import CLIP_SUFFIXES, ClipFile
from fedpeft.data.conversations import (
    ConversationColumns,
    conversation_columns,
    conversations_of,
)
from fedpeft.data.files import READERS
from fedpeft.data.folders import IMAGE_SUFFIXES, is_seen
from fedpeft.data.images import InFolder
from fedpeft.data.request import DataRequest
from fedpeft.data.tables import Table, column_of, values_of
from fedpeft.data.texts import check_text
from fedpeft.models.tasks import Task, task_named

_TEXT_SUFFIXES = frozenset((".txt", ".md"))
_TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
_NO_ANSWER = "no answer"
OF_DATA = re.compile(r"^data\.[a-z_]+:")
"""The key that a message about data begins with; here it is the INPUT."""
_WORDS = {"image": "a picture", "video": "a clip", "text": "a text file"}


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
      name: what it is called in the output: a file's name, a row's place, or the text itself.
      value: a text, a list of messages, or what `data.images` and `data.clips` decode.
    """

    name: str
    value: object


def read_inputs(given: str, task: Task, lines: Iterable[str] = ()) -> list[Input]:
    """Read the inputs that a text of the command line names.

    Args:
      given: a text, the path of a file or folder, or `-`.
      task: of the model.
      lines: of standard input, for `-`.

    Raises:
      DataError: if there is no such file, or it holds nothing that the task reads.
    """
    if given == "-":
        texts = [line.rstrip("\n") for line in lines if line.strip()]
        return [_named_text(text) for text in texts] if task.inputs == "text" else _no_text(task)
    path = home(given)
    if path.is_dir():
        return _in_folder(path, task)
    if path.is_file():
        return _in_file(path, task)
    if task.inputs == "text" and not _looks_like_a_file(given):
        return [_named_text(given)]
    raise DataError(
        f"INPUT: there is no file or folder {shown(given)}; name {_WORDS.get(str(task.inputs))}, "
        f"a folder of such files, or a table ({', '.join(_TABLE_SUFFIXES)})"
        + (", or write a text" if task.inputs == "text" else "")
    )


def _named_text(text: str) -> Input:
    if not text.strip():
        raise DataError("INPUT: the text is empty; write one, or name a file")
    try:
        return Input(text, check_text(text, "the text"))
    except DataError as error:
        raise DataError(OF_DATA.sub("INPUT:", str(error), count=1)) from error


def _no_text(task: Task) -> list[Input]:
    raise DataError(
        f"INPUT: found '-', lines of text; the model's task is {task.name}: name a file or a folder"
    )


def _looks_like_a_file(given: str) -> bool:
    suffixes = (*_TABLE_SUFFIXES, *_TEXT_SUFFIXES)
    return given.startswith(("/", "./", "../", "~")) or given.lower().endswith(suffixes)


def _in_folder(folder: Path, task: Task) -> list[Input]:
    files = [file for file in sorted(folder.rglob("*")) if _is_input(file, task)]
    if not files:
        raise DataError(
            f"INPUT: the folder {folder} holds nothing that the model reads; its task is "
            f"{task.name}: files that end in {', '.join(_suffixes(task))} are read"
        )
    return [Input(str(file.relative_to(folder)), _content(file, task)) for file in files]


def _is_input(file: Path, task: Task) -> bool:
    seen = is_seen(file.name) and file.is_file()
    return seen and file.suffix.lower() in _suffixes(task)


def _suffixes(task: Task) -> Sequence[str]:
    if task.inputs == "video":
        return CLIP_SUFFIXES
    return sorted(IMAGE_SUFFIXES if task.inputs == "image" else _TEXT_SUFFIXES)


def _content(file: Path, task: Task) -> object:
    if task.inputs == "video":
        return ClipFile(str(file))
    if task.inputs == "image":
        return str(file)
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"INPUT: {file} is no text in UTF-8: {error.reason}") from error


def _in_file(file: Path, task: Task) -> list[Input]:
    if _is_input(file, task):
        return [Input(file.name, _content(file, task))]
    if file.suffix.lower() not in _TABLE_SUFFIXES or task.inputs == "video":
        raise DataError(
            f"INPUT: {file} is not read; the model's task is {task.name}: allowed are files that "
            f"end in {', '.join((*_suffixes(task), *_TABLE_SUFFIXES))}"
        )
    try:
        table = READERS[file.suffix.lower()](file)["train"]
        values = _values(table, DataRequest(str(file), task))
    except DataError as error:
        raise DataError(OF_DATA.sub("INPUT:", str(error), count=1)) from error
    return [Input(table.place(row), value) for row, value in enumerate(values)]


def _values(table: Table, request: DataRequest) -> Sequence[object]:
    """Return the inputs in a table: conversations, prompts, texts, or pictures."""
    task = task_named(request.task)
    if task.goes_on:
        asked = _asked(table, request)
        if asked is not None:
            return asked
    kind = "prompt" if task.targets == "text" else str(task.inputs)
    column = column_of(table, kind, request, required=True)
    assert column is not None, "required"
    values = values_of(table.columns[column])
    if task.targets == "tags":
        return [_checked_words(value, table.place(row)) for row, value in enumerate(values)]
    if task.inputs == "image":
        return list(InFolder(values, table.folder)) if table.folder else values
    return [check_text(value, table.place(row)) for row, value in enumerate(values)]


def _checked_words(value: object, place: str) -> object:
    """Return a text, or a list of words, after a check that it is one."""
    words = value if isinstance(value, list) and value else [value]
    checked = [check_text(word, place) for word in words]
    return checked if isinstance(value, list) else checked[0]


def _asked(table: Table, request: DataRequest) -> Sequence[object] | None:
    """Return conversations, also of a table without answers; None where there are only texts."""
    columns = conversation_columns((table, table), request)
    if columns is not None:
        return conversations_of(table, columns)
    prompt = column_of(table, "prompt", request, required=False)
    if prompt is None:
        return None
    below = column_of(table, "input", request, required=False) or ""
    empty = replace(table, columns={**table.columns, _NO_ANSWER: ["-"] * len(table)})
    whole = conversations_of(empty, ConversationColumns("", prompt, _NO_ANSWER, below))
    return [turns[:-1] for turns in whole]
