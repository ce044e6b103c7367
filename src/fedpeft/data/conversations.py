"""Conversations: the rows of a table as lists of messages, whatever its columns are called.

messages                       [{"role": "user", "content": ...}, {"role": "assistant", ...}]
prompt, completion             a turn of the user's and one of the assistant's
instruction, input, output     the same, the input below its instruction
question, answer               the same
text                           no conversation but a document
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fedpeft.core.errors import DataError
from fedpeft.data.request import DataRequest
from fedpeft.data.tables import Table, column_of, required_column, values_of
from fedpeft.data.texts import check_text

Message: TypeAlias = dict[str, object]
"""`role` and `content`, and what else a template may read, such as `tool_calls`."""

Conversation: TypeAlias = list[Message]

ASSISTANT = "assistant"
"""The role whose turns are learnt."""

LEARN = ("answers", "last", "all")
"""What of a conversation is learnt: every answer, the last one, or every token."""

SIDES = ("left", "right")
"""The sides on which a conversation that is too long can be cut."""

_OF_CONVERSATIONS = ("chat_template", "learn", "truncation")
"""Keys of `[data]` that say nothing about documents."""
_CHAT_KEYS = ("messages", "prompt", "input", "completion")
_ROLES = {"human": "user", "gpt": ASSISTANT}
"""Roles of the form with `from` and `value`, where they have other names."""
_FORM = 'a list such as [{"role": "user", "content": "..."}, {"role": "assistant", ...}]'


@dataclass(frozen=True)
class ConversationColumns:
    """The columns that hold conversations: `messages`, or `prompt` and `completion`.

    Attributes:
      messages: column of lists of messages.
      prompt: column of what is asked.
      completion: column of what is answered.
      input: column of what is put below the prompt; may be empty in a row.
    """

    messages: str = ""
    prompt: str = ""
    completion: str = ""
    input: str = ""


def conversation_columns(
    tables: tuple[Table, Table], request: DataRequest
) -> ConversationColumns | None:
    """Return the columns that hold conversations; None where the data are documents.

    What the request names goes before what is found by its name, and a conversation before a text.

    Raises:
      DataError: if a named column is not there, or keys contradict each other or the data.
    """
    for key, allowed in (("learn", LEARN), ("truncation", SIDES)):
        if (found := getattr(request, key)) not in (None, *allowed):
            raise DataError(f"data.{key}: found {found!r}; allowed are {', '.join(allowed)}")
    columns = _columns(tables, request)
    for key in _OF_CONVERSATIONS if columns is None else ():
        if getattr(request, key) is not None:
            raise DataError(
                f"data.{key}: found, but the examples are documents, of which all is learnt and "
                "nothing is cut off; leave the key out, or name the columns of conversations in "
                "data.messages, or in data.prompt and data.completion"
            )
    return columns


def _columns(tables: tuple[Table, Table], request: DataRequest) -> ConversationColumns | None:
    named = [key for key in _CHAT_KEYS if getattr(request.columns, key) is not None]
    if request.columns.text is not None and named:
        raise DataError(
            f"data.{named[0]}: found beside data.text: an example is a conversation or a document; "
            "leave one of the two keys out"
        )
    if "messages" in named and len(named) > 1:
        raise DataError(
            f"data.{named[1]}: found beside data.messages, which holds whole conversations; leave "
            "one of the two keys out"
        )
    if request.columns.text is not None:
        return None
    kinds = ("messages", "prompt", "completion", "input")
    messages, prompt, completion, below = (
        column_of(tables[0], kind, request, required=False) for kind in kinds
    )
    if "messages" in named or (messages and not named):
        return ConversationColumns(messages=required_column(tables, "messages", request))
    if not named and not (prompt and completion):
        return None
    asked, answered = (required_column(tables, kind, request) for kind in kinds[1:3])
    below = required_column(tables, "input", request) if below else ""
    return ConversationColumns("", asked, answered, below)


def conversations_of(table: Table, columns: ConversationColumns) -> list[Conversation]:
    """Return the conversation of each row.

    Raises:
      DataError: naming the first row that holds none.
    """
    if columns.messages:
        values = values_of(table.columns[columns.messages])
        return [_messages(value, table.place(row), "messages") for row, value in enumerate(values)]
    prompts, completions = (
        values_of(table.columns[name]) for name in (columns.prompt, columns.completion)
    )
    inputs = values_of(table.columns[columns.input]) if columns.input else [None] * len(prompts)
    return [
        _pair(each, table.place(row))
        for row, each in enumerate(zip(prompts, inputs, completions, strict=True))
    ]


def _pair(values: tuple[object, object, object], place: str) -> Conversation:
    """Make a conversation of a prompt, what is put below it, and a completion."""
    prompt, below, completion = values
    if isinstance(prompt, list | dict):
        messages = _messages(prompt, place, "prompt")
    else:
        text = check_text(prompt, place, "prompt")
        if below is not None and below == below and str(below).strip():
            text += "\n\n" + check_text(below, place, "input")
        messages = [{"role": "user", "content": text}]
    if isinstance(completion, list | dict):
        return messages + _messages(completion, place, "completion")
    answer = check_text(completion, place, "completion")
    return [*messages, {"role": ASSISTANT, "content": answer}]


def _messages(value: object, place: str, key: str) -> Conversation:
    """Return a cell as messages: a list of objects, such a list as JSON, or an object of lists."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(
                f"data.{key}: {place} is not JSON: {error}; allowed is {_FORM}"
            ) from error
    if isinstance(value, Mapping):  # how older data sets of the hub store a list of objects
        lists = [each for each in value.values() if isinstance(each, list)]
        if len(lists) == len(value) > 0 and len({*map(len, lists)}) == 1:
            value = [dict(zip(value, each, strict=True)) for each in zip(*lists, strict=True)]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not len(value):
        found = "empty" if value is None or value == [] else f"{type(value).__name__}"
        raise DataError(
            f"data.{key}: {place} is {found}; allowed is {_FORM}. Name the column of conversations "
            "in data.messages, or that of documents in data.text"
        )
    return [_message(each, f"turn {turn} of {place}", key) for turn, each in enumerate(value, 1)]


def _message(value: object, place: str, key: str) -> Message:
    """Return a message with a role and a content that is a text, or empty beside a tool call.

    Raises:
      DataError: if it has none.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"data.{key}: {place} is {type(value).__name__}; allowed is {_FORM}")
    names = ("role", "content") if "role" in value else ("from", "value")
    role, content = (value.get(name) for name in names)
    if not isinstance(role, str) or not role:
        raise DataError(
            f"data.{key}: {place} has the keys {', '.join(map(str, value)) or 'none'}; needed are "
            f"a role and a content: {_FORM}"
        )
    rest = {k: v for k, v in value.items() if k not in names and v is not None}
    if isinstance(content, list) and all(_is_text(part) for part in content):
        content = "".join(str(part["text"]) for part in content)
    if content is None and rest:
        return {"role": _ROLES.get(role, role), "content": "", **rest}
    text = check_text(content, place, key, blank=bool(rest) or role != ASSISTANT)
    return {"role": _ROLES.get(role, role), "content": text, **rest}


def _is_text(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and "text" in part
