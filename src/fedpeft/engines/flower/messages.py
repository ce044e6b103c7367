"""Requests and answers as Flower messages: one flat buffer of bytes, and a few fields beside it.

    Request ──> RecordDict{ fedpeft: run, client, round, ... ;  blob: Array(uint8) } ──> Message
    Answer  <── RecordDict{ fedpeft: client, round, ...      ;  blob: Array(uint8) } <── Message

The buffer is the encoded message itself, as every engine sends and counts it; it is not decoded
here. An answer comes from outside, so its form and size are checked before anything is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedpeft.core.errors import DeltaMismatchError, EngineError
from fedpeft.core.text import plain
from fedpeft.engines.flower.requests import Answer, Request

if TYPE_CHECKING:
    from flwr.app import RecordDict


_WORDS = "fedpeft"
_BUFFERS = "buffers"
_STYPE = "fedpeft.bytes"
_SLACK = 65_536
_LONGEST_LINE = 2000
_LONGEST_TURN = 1e9


def require_flower(*, simulation: bool = False) -> None:
    """Check that Flower is installed, and Ray where a simulation needs it.

    Raises:
      EngineError: if it is not; says how to install it.
    """
    try:
        import flwr.app  # noqa: F401  # whether it can be imported is the question

        if simulation:
            import ray  # noqa: F401  # the same
    except ImportError as error:
        raise EngineError(
            f"engine.name: Flower is not installed here ({error}). Install the extra: "
            "pip install 'fedpeft[flower]', or use engine.name = 'local'"
        ) from error


def write_request(request: Request, memory: bytes = b"") -> RecordDict:
    """Write a request as the content of a message.

    Args:
      request: the request.
      memory: encoded memory of the client, where the server stores it (simulation); else empty.
    """
    seed = str(request.seed)  # 63 bits and more: beyond what a record's integer holds
    return _content(vars(request) | {"seed": seed}, memory)


def read_request(content: RecordDict) -> tuple[Request, bytes]:
    """Return the request and the client's memory that `write_request` wrote.

    Raises:
      DeltaMismatchError: if it is not a request.
    """
    words, buffers = _parts(content, limit=None)
    action = _text(words, "action")
    if action not in ("handshake", "train"):
        raise DeltaMismatchError(f"request: action is {action!r}; allowed are handshake and train")
    request = Request(
        "handshake" if action == "handshake" else "train",
        _text(words, "run_id"),
        _text(words, "client"),
        _number(words, "round"),
        _number(words, "committed"),
        int(_text(words, "seed")),
        _number(words, "version"),
        _text(words, "experiment"),
        buffers["blob"],
    )
    return request, buffers["memory"]


def write_answer(answer: Answer, memory: bytes = b"") -> RecordDict:
    """Write an answer as the content of a message; `memory` as in `write_request`."""
    facts = json.dumps(dict(answer.facts), sort_keys=True)
    return _content(vars(answer) | {"seconds": float(answer.seconds), "facts": facts}, memory)


def read_answer(
    content: RecordDict, *, limit: int, with_memory: bool = True
) -> tuple[Answer, bytes]:
    """Return the answer and the memory in a client's message, which may hold anything.

    Its reasons and facts become single lines without control characters.

    Args:
      content: content of the message.
      limit: largest size of the reply's buffer, in bytes.
      with_memory: whether a client's memory may come with it (simulation).

    Raises:
      DeltaMismatchError: if it is not an answer, or too long.
    """
    try:
        words, buffers = _parts(content, limit=limit, with_memory=with_memory)
        answer = Answer(
            _text(words, "client"),
            _number(words, "round"),
            buffers["blob"],
            _seconds(words.get("seconds", 0.0)),
            _line(words, "refused"),
            _facts(_text(words, "facts")),
        )
    except DeltaMismatchError:
        raise
    except Exception as error:  # a record can be wrong in any way
        raise DeltaMismatchError(f"answer: cannot be read: {plain(repr(error), 200)}") from error
    return answer, buffers["memory"]


def _line(words: Mapping[str, object], name: str) -> str:
    return plain(_text(words, name), _LONGEST_LINE)


def _seconds(value: object) -> float:
    if not isinstance(value, float) or not 0 <= value <= _LONGEST_TURN:
        raise DeltaMismatchError(
            f"answer: seconds is {_shown(value)}; allowed is a number from 0 to {_LONGEST_TURN:g}"
        )
    return value


def _facts(text: str) -> dict[str, str]:
    """Read the facts of a site: a JSON table, whose values become lines of text."""
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DeltaMismatchError(f"answer: facts cannot be read: {plain(error, 200)}") from error
    if not isinstance(facts, dict):
        raise DeltaMismatchError(f"answer: facts are {_shown(facts)}; allowed is a table")
    return {plain(name, 80): plain(value, _LONGEST_LINE) for name, value in facts.items()}


def error_words(code: int, reason: str | None) -> str:
    """Describe what Flower's error of a message means for a turn."""
    details = plain(reason or "", 300)
    meaning = _ERRORS.get(code, f"Flower's error {code}")
    return f"{meaning}: {details}" if details else meaning


GONE = frozenset({3, 4, 5})
"""Flower's errors that the SuperLink gives where a node or its answer is not there."""

_ERRORS: Mapping[int, str] = {
    0: "the client's process failed",
    1: "the site could not load the app",
    2: "the client raised an error",
    3: "the message or its reply is not available any more",
    4: "the reply is not available",
    5: "the site is gone",
    6: "the site refused the message",
    7: "the site refused the app bundle",
    8: "the client's process ended before it answered",
}


def _content(fields: Mapping[str, Any], memory: bytes) -> RecordDict:
    """Write the fields of a request or an answer; its blob and the memory become buffers."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    arrays = {
        name: Array("uint8", (len(data),), _STYPE, data)
        for name, data in (("blob", fields["blob"]), ("memory", memory))
        if data
    }
    words = {name: value for name, value in fields.items() if name != "blob"}
    records = {_WORDS: ConfigRecord(words)}
    return RecordDict(records | ({_BUFFERS: ArrayRecord(arrays)} if arrays else {}))


def _parts(
    content: RecordDict, *, limit: int | None, with_memory: bool = True
) -> tuple[dict[str, object], dict[str, bytes]]:
    """Return the fields and the buffers of a message, after a check of forms and sizes."""
    from flwr.app import ArrayRecord, ConfigRecord, RecordDict

    if not isinstance(content, RecordDict) or not set(content) <= {_WORDS, _BUFFERS}:
        raise DeltaMismatchError("message: its content is not of this package's form")
    arrays = content.get(_BUFFERS, ArrayRecord())
    words = content.get(_WORDS)
    if not isinstance(arrays, ArrayRecord) or not isinstance(words, ConfigRecord):
        raise DeltaMismatchError("message: its records are not of this package's form")
    for name, array in arrays.items():
        if name not in (("blob", "memory") if with_memory else ("blob",)):
            raise DeltaMismatchError(f"message: a buffer is named {name[:40]!r}")
        if name == "blob" and limit is not None and len(array.data) > limit:
            raise DeltaMismatchError(
                f"message of {len(array.data)} bytes; allowed are at most {limit} for this delta"
            )
        if array.stype != _STYPE or array.shape != (len(array.data),):
            raise DeltaMismatchError(
                f"message: buffer {name} claims {array.shape} {array.stype[:40]!r} and has "
                f"{len(array.data)} bytes"
            )
    if limit is not None and sum(len(str(word)) for word in words.values()) > _SLACK:
        raise DeltaMismatchError(f"message: its fields have more than {_SLACK} characters")
    found = {name: bytes(array.data) for name, array in arrays.items()}
    return dict(words), {"blob": b"", "memory": b""} | found


def _text(words: Mapping[str, object], name: str) -> str:
    value = words.get(name, "")
    if not isinstance(value, str):
        raise DeltaMismatchError(f"message: {name} is {_shown(value)}; allowed is text")
    return value


def _number(words: Mapping[str, object], name: str) -> int:
    value = words.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise DeltaMismatchError(f"message: {name} is {_shown(value)}; allowed is a whole number")
    return value


def _shown(value: object) -> str:
    return plain(repr(value), 60)
