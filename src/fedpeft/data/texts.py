"""Texts: tokenised once, with the model's own tokenizer.

classification   each text is an example, truncated at max_length
language model   a client's documents are joined and cut into blocks of max_length; no block
                 mixes clients

client a  |<s> doc 1 <s> do|c 2 <s> doc 3|..      client b  |<s> doc 1 ...|
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from fedpeft.core.errors import DataError
from fedpeft.data.tables import Column, values_of
from fedpeft.models.loaded import TextInput
from fedpeft.models.padding import choose_padding, open_tokenizer

BLOCK_LENGTH = 128
"""Tokens of a language model's example, unless `max_length` is given."""
_CHUNK = 1000


class _Encoder(Protocol):
    def __call__(self, texts: list[str], **options: object) -> dict[str, list[list[int]]]: ...


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer.

    Attributes:
      encode: the tokenizer of `transformers`.
      pad_id: the token used for padding.
      max_length: longest text, in tokens.
      num_tokens: number of tokens that the model has embeddings for; None where it is not known.
    """

    encode: _Encoder
    pad_id: int
    max_length: int
    num_tokens: int | None = None


def load_tokenizer(inputs: TextInput, max_length: int | None) -> Tokenizer:
    """Load the tokenizer of a model, without running code that came with the model.

    Args:
      inputs: the form of the model's inputs.
      max_length: the experiment's limit, in tokens; None is the model's own limit.

    Raises:
      DataError: if `max_length` is not within 2 to the model's own.
      ModelError: if there is no tokenizer, or no token to pad with.
    """
    if max_length is not None and not 2 <= max_length <= inputs.max_length:
        raise DataError(
            f"data.max_length: found {max_length}; the model allows 2 to {inputs.max_length} tokens"
        )
    tokenizer = open_tokenizer(inputs.folder)
    pad_id = choose_padding(inputs, tokenizer)
    length, rows = max_length or inputs.max_length, inputs.padding.num_tokens
    return Tokenizer(cast(_Encoder, tokenizer), pad_id, length, rows)


def tokenize(
    column: Column,
    tokenizer: Tokenizer,
    *,
    truncate: bool = True,
    place: Callable[[int], str] = "row {}".format,
) -> list[list[int]]:
    """Return the tokens of each text, special tokens included.

    Args:
      column: the texts.
      tokenizer: the tokenizer of the model.
      truncate: whether texts are truncated at `max_length`.
      place: gives the words for where a row stands, for messages.

    Raises:
      DataError: for the first row that is no text, or for an empty one where texts are truncated;
        a document of a language model may be empty.
    """
    texts = check_texts(column, place, blank=not truncate)
    tokens: list[list[int]] = []
    for start in range(0, len(texts), _CHUNK):
        encoded = tokenizer.encode(
            texts[start : start + _CHUNK],
            truncation=truncate,
            max_length=tokenizer.max_length if truncate else None,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        tokens += encoded["input_ids"]
    for row, text in enumerate(tokens):
        if not text and truncate:
            raise DataError(f"data.text: {place(row)} is empty: leave it out")
        check_tokens(text, tokenizer, place(row))
    return tokens


def check_tokens(tokens: Sequence[int], tokenizer: Tokenizer, place: str) -> None:
    """Check that the model has an embedding for each token of a text.

    Raises:
      DataError: naming the place of the text and its largest token.
    """
    if tokenizer.num_tokens is not None and max(tokens, default=0) >= tokenizer.num_tokens:
        raise DataError(
            f"data.text: {place} holds token {max(tokens)}; the model has embeddings for 0 "
            f"to {tokenizer.num_tokens - 1}: take the tokenizer that belongs to the model"
        )


def check_texts(column: Column, place: Callable[[int], str], *, blank: bool) -> list[str]:
    """Return the texts of a column, after a check that a tokenizer can read each.

    Args:
      column: the texts.
      place: gives the words for where a row stands, for messages.
      blank: whether a text may be empty.

    Raises:
      DataError: for the first row that is no text.
    """
    return [check_text(text, place(row), blank=blank) for row, text in enumerate(values_of(column))]


def blocks_of(
    documents: Sequence[Sequence[int]], owners: Sequence[str], *, length: int
) -> tuple[list[list[int]], list[str]]:
    """Join each client's documents, in order, and cut them into blocks.

    The last block of a client may be shorter; one of a single token is left out, because it has no
    next token to predict.

    Args:
      documents: tokens of each document.
      owners: name of the client that each document belongs to.
      length: tokens of a block, >= 2.

    Returns:
      (blocks, owner of each block), owners in the order of their first document.
    """
    joined: dict[str, list[int]] = {}
    for document, owner in zip(documents, owners, strict=True):
        joined.setdefault(owner, []).extend(document)
    starts = [(o, i) for o, row in joined.items() for i in range(0, len(row) - 1, length)]
    return [joined[o][i : i + length] for o, i in starts], [owner for owner, _ in starts]


def check_text(text: object, place: str, key: str = "text", *, blank: bool = False) -> str:
    """Return a text that a tokenizer can read.

    Args:
      text: a cell of a column.
      place: words for where it stands.
      key: the key of `[data]` that names its column.
      blank: whether it may be empty.

    Raises:
      DataError: if it is something else.
    """
    if text is None or text != text or (isinstance(text, str) and not (blank or text.strip())):
        raise DataError(f"data.{key}: {place} is empty: fill it in or leave it out")
    if not isinstance(text, str):
        hint = (
            "save it as text"
            if isinstance(text, bytes)
            else f"name the column of texts in data.{key}"
        )
        raise DataError(f"data.{key}: {place} is {type(text).__name__}, not a text: {hint}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"data.{key}: {place} is no valid text: character {error.start} is half of a pair "
            f"({error.object[error.start]!a}); leave it out"
        ) from error
    return text
