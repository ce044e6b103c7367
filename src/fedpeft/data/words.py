"""Tagged words: lists of words with a class for each, as tokens with a class for each word's first.

words    Ada      Lovelace   wrote        tags   B-PER   I-PER   O
tokens   <s> Ada  Love ##lace  wrote </s>
labels   -   B-PER I-PER -     O     -            "-": -100, not predicted
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from fedpeft.core.errors import DataError
from fedpeft.data.labels import warn_of_near_names
from fedpeft.data.request import DataRequest
from fedpeft.data.tables import Column, Table, values_of
from fedpeft.data.tensors import TextExamples, flat_tokens
from fedpeft.data.texts import Tokenizer, check_text, check_tokens

_OUTSIDE = "O"
"""The tag of a word that is part of nothing."""


def read_tags(
    tables: tuple[Table, Table], words: str, column: str, request: DataRequest
) -> tuple[list[list[list[int]]], tuple[str, ...]]:
    """Return the class of each word of each row of both tables, and the names of the classes.

    Names are those of the request, else of the source, else sorted, with `O` first.

    Raises:
      DataError: naming the first row that has no list of tags, one for each word.
    """
    known = tables[0].names.get(column, ())
    rows = [
        [
            _tags(tags, text, table.place(row), known)
            for row, (tags, text) in enumerate(
                zip(*(values_of(table.columns[each]) for each in (column, words)), strict=True)
            )
        ]
        for table in tables
    ]
    seen = {tag for part in rows for tags in part for tag in tags}
    ordered = sorted(seen, key=lambda tag: (tag != _OUTSIDE, tag))
    names = tuple(request.classes) or known or tuple(ordered)
    if not (request.classes or known):
        warn_of_near_names(names, column, "classes")
    if strange := sorted(seen - {*names}):
        raise DataError(
            f"data.classes: the data has the tag {strange[0]!r}, which is not among the "
            f"{len(names)} classes; add it there in the server's order"
        )
    number = {name: place for place, name in enumerate(names)}
    return [[[number[tag] for tag in tags] for tags in part] for part in rows], names


def tagged(
    words: Column, tags: Sequence[Sequence[int]], tokenizer: Tokenizer, place: Callable[[int], str]
) -> TextExamples:
    """Tokenise lists of words; the first token of a word has its class.

    What goes beyond `max_length` tokens is cut off.

    Raises:
      DataError: if the tokenizer takes no words, or a row has none.
    """
    texts = [[check_text(word, place(row)) for word in cast(list[object], each)]
             for row, each in enumerate(values_of(words))]  # fmt: skip
    try:
        found: Any = tokenizer.encode(
            cast(list[str], texts),
            is_split_into_words=True,
            truncation=True,
            max_length=tokenizer.max_length,
            verbose=False,
        )
        ids = [list(each) for each in found["input_ids"]]
        places = [found.word_ids(row) for row in range(len(ids))]
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"model.name: its tokenizer takes no lists of words ({type(error).__name__}: "
            f"{str(error)[:120]}): choose another model, such as a BERT or DeBERTa"
        ) from error
    for row, tokens in enumerate(ids):
        check_tokens(tokens, tokenizer, place(row))
    labels = [label for row, own in enumerate(places) for label in _first_tokens(own, tags[row])]
    return TextExamples(
        *flat_tokens(ids), None, tokenizer.pad_id, tags=torch.tensor(labels, dtype=torch.int64)
    )


def _first_tokens(places: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    before = (None, *places[:-1])
    return [
        tags[here] if here is not None and here != last else -100
        for here, last in zip(places, before, strict=True)
    ]


def _tags(tags: object, words: object, place: str, known: Sequence[str]) -> list[str]:
    """Return the tags of a row as names, after a check that each word has one."""
    for value, key, what in ((words, "text", "words"), (tags, "label", "tags")):
        if not isinstance(value, list | tuple) or not len(value):
            raise DataError(
                f"data.{key}: {place} has {repr(value)[:80]}; allowed is a list of {what}, one for "
                "each word"
            )
    assert isinstance(tags, list | tuple) and isinstance(words, list | tuple), "checked"
    if len(tags) != len(words):
        raise DataError(f"data.label: {place} has {len(words)} words and {len(tags)} tags")
    for tag in tags:
        if isinstance(tag, bool) or not isinstance(tag, str | int):
            raise DataError(
                f"data.label: {place} has the tag {tag!r}; allowed are words and whole numbers"
            )
    return [known[tag] if isinstance(tag, int) and known else str(tag) for tag in tags]
