"""Write the tokenizer of `preset:narrow-bert`: the most frequent word pieces of BERT's vocabulary.

    vocab.txt of a BERT (here MiniLM's): special tokens, single characters, then pieces by frequency
        -> special tokens, ASCII characters, the first of the pieces -> 688 lines

The order of BERT's pieces is that of their frequency in Wikipedia and books, so nothing is learnt
from anybody's examples. `python scripts/frequent_words.py` needs the package of `minilm`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedpeft.models.locate import BUNDLED

__all__ = ["SIZE", "most_frequent"]

SIZE = 688
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FOLDER = Path(__file__).resolve().parent.parent / "src/fedpeft/models/bundled/frequent-words"


def main() -> None:
    """Write vocabulary and settings of the tokenizer."""
    pieces = (BUNDLED["minilm"].folder() / "vocab.txt").read_text("utf-8").splitlines()
    _FOLDER.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{piece}\n" for piece in most_frequent(pieces, SIZE))
    (_FOLDER / "vocab.txt").write_text(lines, "utf-8")
    settings = {"do_lower_case": True, "model_max_length": 64, "tokenizer_class": "BertTokenizer"}
    text = json.dumps(settings, indent=1) + "\n"
    (_FOLDER / "tokenizer_config.json").write_text(text, "utf-8")


def most_frequent(pieces: Sequence[str], size: int) -> list[str]:
    """Return special tokens, all single ASCII characters, and then pieces in their order.

    Args:
      pieces: BERT's vocabulary.
      size: number of pieces to return.

    Example:
      >>> most_frequent(["[PAD]", "a", "the", "##a", "of"], 8)[-3:]
      ['a', '##a', 'the']
    """
    short = [piece for piece in pieces if _is_short(piece)]
    return [*_SPECIAL, *short, *_words(pieces)][:size]


def _words(pieces: Sequence[str]) -> Iterator[str]:
    for piece in pieces:
        if piece.isascii() and not piece.startswith("[") and not _is_short(piece):
            yield piece


def _is_short(piece: str) -> bool:
    return piece.isascii() and len(piece.removeprefix("##")) == 1


if __name__ == "__main__":
    main()
