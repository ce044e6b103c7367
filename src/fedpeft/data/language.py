"""Examples of a language model: conversations, documents, and what does not fit.

    conversation   an example; its answers are learnt; cut at `max_length` on one side
    document       joined with its client's others and cut into blocks of `max_length`

A conversation without an answer that fits teaches nothing and is left out. What is cut and what is
left out is counted, and said once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
class _Fit:
    """What was done so that conversations fit.

    Attributes:
      kept: rows with something to learn, sorted.
      examples: their tokens.
      cut: number of conversations that are cut.
      lost: number of tokens cut off, and how many of them were to be learnt.
      without: number of conversations left out because none of their tokens is to be learnt.
      emptied: number left out because their answers do not fit.
    """

    kept: list[int] = field(default_factory=list)
    examples: list[Written] = field(default_factory=list)
    cut: int = 0
    lost: tuple[int, int] = (0, 0)
    without: int = 0
    emptied: int = 0


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
        _fitted(_written(table, columns, template, tokenizer, request), tokenizer, request, name)
        for table, name in ((drawn, "training"), (tables[1], "test"))
    )
    owners = owners_of(drawn, tables[1], request)
    return LanguageData(
        train=_examples(train.examples, tokenizer),
        test=_examples(test.examples, tokenizer),
        tokenizer=tokenizer,
        owners=(_some(owners[0], train.kept), _some(owners[1], test.kept)),
        template=template.text,
        packed=bool(request.packing),
    )


def _written(
    table: Table,
    columns: ConversationColumns,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    request: DataRequest,
) -> list[Written]:
    conversations = conversations_of(table, columns)
    learn = request.learn or LEARN[0]
    written = list(write_conversations(conversations, template, learn, table.place))
    for row, each in enumerate(written):
        check_tokens(each.tokens, tokenizer, table.place(row))
    if learn != "all" and not any(_ends(each, template) for each in written):
        _log.warning(
            "data.chat_template: the template ends no answer with a special token: a model does "
            "not learn from it where to stop"
        )
    return written


def _ends(written: Written, template: ChatTemplate) -> bool:
    """Whether the last token that is learnt is a special one."""
    learnt = [t for t, mark in zip(written.tokens, written.learnt, strict=True) if mark]
    return not learnt or learnt[-1] in template.ends


def _fitted(
    written: Sequence[Written], tokenizer: Tokenizer, request: DataRequest, name: str
) -> _Fit:
    """Cut what is too long, leave out what teaches nothing, and say both."""
    length, fit = tokenizer.max_length, _Fit()
    keep = slice(-length, None) if request.truncation == "left" else slice(length)
    for row, each in enumerate(written):
        if not any(each.learnt):
            fit = replace(fit, without=fit.without + 1)
            continue
        short = Written(each.tokens[keep], each.learnt[keep])
        if len(short) < len(each):
            short.learnt[0] = False
            gone = len(each) - len(short), sum(each.learnt) - sum(short.learnt)
            lost = fit.lost[0] + gone[0], fit.lost[1] + gone[1]
            fit = replace(fit, cut=fit.cut + 1, lost=lost)
        if not any(short.learnt):
            fit = replace(fit, emptied=fit.emptied + 1)
            continue
        fit.kept.append(row)
        fit.examples.append(short)
    _say(fit, len(written), length, request.truncation or "right", name)
    return fit


def _say(fit: _Fit, count: int, length: int, side: str, name: str) -> None:
    if fit.without:
        _log.warning(
            "data: %d of %d %s conversations have no answer to learn: they are left out",
            *(fit.without, count, name),
        )
    if fit.cut:
        _log.warning(
            "data.max_length: %d of %d %s conversations are longer than %d tokens: they are cut on "
            "the %s, which takes %d tokens, %d of them to be learnt; %d of them have none left and "
            "are left out",
            *(fit.cut, count, name, length, side, *fit.lost, fit.emptied),
        )
    if not fit.kept:
        raise DataError(
            f"data.max_length: none of the {count} {name} conversations has an answer within "
            f"{length} tokens; raise it, or cut on the other side (data.truncation)"
            if fit.cut
            else f"data: none of the {count} {name} conversations has a turn of the assistant's "
            "that answers something: there is nothing to learn"
        )


def _examples(written: Sequence[Written], tokenizer: Tokenizer) -> TextExamples:
    learnt = [mark for each in written for mark in each.learnt]
    return TextExamples(
        *flat_tokens([each.tokens for each in written]),
        None,
        tokenizer.pad_id,
        torch.tensor(learnt, dtype=torch.bool),
    )


def _some(names: list[str] | None, rows: Sequence[int]) -> list[str] | None:
    return None if names is None else [names[row] for row in rows]


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
