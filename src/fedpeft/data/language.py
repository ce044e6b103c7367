"""Examples of a language model: conversations, documents, and what does not fit.

    conversation   an example; its answers are learnt; cut at `max_length` on one side
    document       joined with its client's others and cut into blocks of `max_length`

A conversation without an answer that fits teaches nothing and is left out. What is cut and what is
left out is counted, and said once.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedpeft.core.errors import DataError
from fedpeft.data.answers import Written, write_conversations
from fedpeft.data.chat_templates import ChatTemplate, open_template
from fedpeft.data.conversations import (
    LEARN,
    ConversationColumns,
    conversation_columns,
    conversations_of,
)
from fedpeft.data.request import DataRequest
from fedpeft.data.rows import draw_budget, owners_of
from fedpeft.data.tables import Table, required_column, select
from fedpeft.data.tensors import TextExamples, flat_tokens
from fedpeft.data.texts import (
    BLOCK_LENGTH,
    Tokenizer,
    blocks_of,
    check_tokens,
    load_tokenizer,
    tokenize,
)
from fedpeft.models.loaded import TextInput

CONVERSATION_LENGTH = 1024
"""Most tokens of a conversation, unless `max_length` is given."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageData:
    """The examples of a language model, before the partition.

    Attributes:
      train: the training examples.
      test: the evaluation examples.
      tokenizer: of the model.
      owners: natural client of each example of (train, test), where the data names them.
      template: the chat template; "" for documents.
      packed: whether the training examples of a client are to be packed into rows.
    """

    train: TextExamples
    test: TextExamples
    tokenizer: Tokenizer
    owners: tuple[list[str] | None, list[str] | None]
    template: str = ""
    packed: bool = False


@dataclass(frozen=True)
class _Short:
    """A conversation that was cut to fit, or left out.

    Attributes:
      tokens: int32 [T].
      learnt: bool [T]; nowhere true for one that is left out.
      gone: numbers of tokens that were cut off, and of those among them that were to be learnt.
      ends: whether its last answer ended with a special token before the cut; None without answer.
    """

    tokens: npt.NDArray[np.int32]
    learnt: npt.NDArray[np.bool_]
    gone: tuple[int, int]
    ends: bool | None


def load_language(
    tables: tuple[Table, Table], request: DataRequest, inputs: TextInput
) -> LanguageData:
    """Load the examples of a language model.

    Raises:
      DataError: if a conversation or a document cannot be read, none fits, or a key is for data of
        the other kind.
      ModelError: if the model has no tokenizer.
    """
    columns = conversation_columns(tables, request)
    if columns is None:
        return _documents(tables, request, inputs)
    return _conversations(tables, columns, request, inputs)


def _conversations(
    tables: tuple[Table, Table],
    columns: ConversationColumns,
    request: DataRequest,
    inputs: TextInput,
) -> LanguageData:
    """Load conversations; a budget counts those of the source, also what does not fit."""
    length = request.max_length or min(inputs.max_length, CONVERSATION_LENGTH)
    tokenizer = load_tokenizer(inputs, length)
    template = open_template(tokenizer.encode, request.chat_template, inputs.folder)
    drawn = select(tables[0], draw_budget(len(tables[0]), request))
    train, test = (
        [
            _cut(each, length, request.truncation == "left", template.ends)
            for each in _written(table, columns, template, tokenizer, request)
        ]
        for table in (drawn, tables[1])
    )
    for part, name in ((train, "training"), (test, "test")):
        _say(part, length, request, name)
    owners = owners_of(drawn, tables[1], request)
    return LanguageData(
        train=_examples(train, tokenizer),
        test=_examples(test, tokenizer),
        tokenizer=tokenizer,
        owners=(_some(owners[0], train), _some(owners[1], test)),
        template=template.text,
        packed=bool(request.packing),
    )


def _written(
    table: Table,
    columns: ConversationColumns,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    request: DataRequest,
) -> Iterator[Written]:
    conversations, learn = conversations_of(table, columns), request.learn or LEARN[0]
    written = write_conversations(conversations, template, learn, table.place)
    for row, each in enumerate(written):
        check_tokens(each.tokens, tokenizer, table.place(row))
        yield each


def _cut(written: Written, length: int, left: bool, special: Collection[int]) -> _Short:
    """Cut a conversation on the left or the right to at most `length` tokens."""
    tokens, learnt = np.array(written.tokens, np.int32), np.array(written.learnt, np.bool_)
    places = np.flatnonzero(learnt)
    ends = int(tokens[places[-1]]) in special if len(places) else None
    keep = slice(-length, None) if left else slice(length)
    short, marks = tokens[keep], learnt[keep].copy()
    if len(short) < len(tokens):
        marks[0] = False  # what was before it is gone
    return _Short(short, marks, (len(tokens) - len(short), len(places) - int(marks.sum())), ends)


def _say(part: Sequence[_Short], length: int, request: DataRequest, name: str) -> None:
    """Say what is cut and what is left out; a model without anything to learn is refused."""
    count, answered = len(part), [each for each in part if each.ends is not None]
    cut = [each for each in answered if each.gone[0]]
    emptied = sum(1 for each in cut if not each.learnt.any())
    if len(answered) < count:
        _log.warning(
            "data: %d of %d %s conversations have no answer to learn: they are left out",
            *(count - len(answered), count, name),
        )
    if cut:
        gone, targets = (sum(each.gone[which] for each in cut) for which in (0, 1))
        _log.warning(
            "data.max_length: %d of %d %s conversations are longer than %d tokens: they are cut on "
            "the %s, which takes %d tokens, %d of them to be learnt; %d of them have none left and "
            "are left out",
            *(len(cut), count, name, length, request.truncation or "right"),
            *(gone, targets, emptied),
        )
    if emptied == len(answered):
        raise DataError(
            f"data.max_length: none of the {count} {name} conversations has an answer within "
            f"{length} tokens; raise it, or cut on the other side (data.truncation)"
            if cut
            else f"data: none of the {count} {name} conversations has a turn of the assistant's "
            "that answers something: there is nothing to learn"
        )
    if request.learn != "all" and not any(each.ends for each in answered):
        _log.warning(
            "data.chat_template: the template ends no answer with a special token: a model does "
            "not learn from it where to stop"
        )


def _examples(part: Sequence[_Short], tokenizer: Tokenizer) -> TextExamples:
    kept = [each for each in part if each.learnt.any()]
    lengths = [len(each.tokens) for each in kept]
    return TextExamples(
        torch.from_numpy(np.concatenate([each.tokens for each in kept])),
        torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64)),
        None,
        tokenizer.pad_id,
        torch.from_numpy(np.concatenate([each.learnt for each in kept])),
    )


def _some(names: list[str] | None, part: Sequence[_Short]) -> list[str] | None:
    """Return the names that belong to the conversations that are kept."""
    if names is None:
        return None
    return [name for name, each in zip(names, part, strict=True) if each.learnt.any()]


def _documents(
    tables: tuple[Table, Table], request: DataRequest, inputs: TextInput
) -> LanguageData:
    """Load documents in pieces: blocks of them joined, or each alone; a budget counts pieces."""
    column = required_column(tables, "text", request)
    length = request.max_length or min(inputs.max_length, BLOCK_LENGTH)
    tokenizer = load_tokenizer(inputs, length)
    owners = owners_of(*tables, request)
    joined = request.packing is None
    train, test = (
        _pieces(table, column, own, tokenizer, joined=joined)
        for table, own in zip(tables, owners, strict=True)
    )
    rows = draw_budget(len(train[0]), request)
    return LanguageData(
        train=TextExamples(*flat_tokens([train[0][row] for row in rows]), None, tokenizer.pad_id),
        test=TextExamples(*flat_tokens(test[0]), None, tokenizer.pad_id),
        tokenizer=tokenizer,
        owners=(
            [train[1][row] for row in rows] if owners[0] is not None else None,
            test[1] if owners[1] is not None else None,
        ),
        packed=bool(request.packing),
    )


def _pieces(
    table: Table,
    column: str,
    owners: Sequence[str] | None,
    tokenizer: Tokenizer,
    *,
    joined: bool,
) -> tuple[list[list[int]], list[str]]:
    """Return pieces of documents of at most `max_length` tokens, and the owner of each."""
    tokens = tokenize(table.columns[column], tokenizer, truncate=False, place=table.place)
    names, length = list(owners or [""] * len(tokens)), tokenizer.max_length
    if joined:
        return blocks_of(tokens, names, length=length)
    places = [str(number) for number in range(len(tokens))]
    pieces, found = blocks_of(tokens, places, length=length)  # each document by itself
    return pieces, [names[int(place)] for place in found]
