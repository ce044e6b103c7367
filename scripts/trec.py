"""Write the question types of TREC (Li and Roth, COLING 2002) as `data/trec/{train,test}.jsonl`.

    the hub's CogComp/trec, or a folder with train_5500.label and TREC_10.label of its home page,
    or a jsonl file (split, label, text) -> one spelling of every text -> data/trec

The bed `text` reads that folder. 5,452 questions are for training, 500 for testing, in the order of
the source, with their coarse class: ABBR, DESC, ENTY, HUM, LOC or NUM. Nobody states a licence.

    python scripts/trec.py                      from the hub
    python scripts/trec.py --source FOLDER      the two files of https://cogcomp.seas.upenn.edu/Data/QA/QC/
    python scripts/trec.py --source FILE.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

__all__ = ["DIGESTS", "Question", "clean", "read_jsonl", "read_label_file", "write_split"]

FOLDER = Path(__file__).resolve().parent.parent / "data" / "trec"
HUB_ID, REVISION = "CogComp/trec", "refs/convert/parquet"
DIGESTS = {
    "train": "45b56d17ad750855ba91aa5bc9a911efe87582371f89bb2476576ac348f4fe3e",
    "test": "9c25612a804f42f458af2c323e0ba2687853ab04d026eb5a30debe2880e7e95d",
}
"""SHA-256 of the files that the project's results were made with."""

Question = tuple[str, str]
"""Coarse class and text."""


def main() -> None:
    """Read the source that the command line names, and write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, help="a folder or a jsonl file; else the hub")
    parser.add_argument("--to", type=Path, default=FOLDER)
    given = parser.parse_args()
    for split, questions in _read(given.source).items():
        digest = write_split(given.to / f"{split}.jsonl", questions)
        note = "as expected" if digest == DIGESTS[split] else "NOT those of our results"
        print(f"{given.to / split}.jsonl: {len(questions)} questions, {note}")


def _read(source: Path | None) -> Mapping[str, list[Question]]:
    if source is None:
        return _read_hub()
    if source.is_dir():
        files = {"train": "train_5500.label", "test": "TREC_10.label"}
        return {split: read_label_file(source / name) for split, name in files.items()}
    return {split: read_jsonl(source, split) for split in ("train", "test")}


def read_label_file(file: Path) -> list[Question]:
    """Return the questions of a file of lines `COARSE:fine text`, in Latin-1."""
    lines = (line.partition(" ") for line in file.read_text("latin-1").splitlines())
    return [clean(label.partition(":")[0], text) for label, _, text in lines]


def read_jsonl(file: Path, split: str) -> list[Question]:
    """Return the questions of one split of a file of objects with split, label and text."""
    rows = map(json.loads, file.read_text("utf-8").splitlines())
    return [clean(row["label"], row["text"]) for row in rows if row["split"] == split]


def _read_hub() -> Mapping[str, list[Question]]:
    import datasets

    found = datasets.load_dataset(HUB_ID, revision=REVISION)
    return {split: _of_hub(found[split]) for split in ("train", "test")}


def _of_hub(table: Iterable[Mapping[str, object]]) -> list[Question]:
    names: Sequence[str] = table.features["coarse_label"].names  # type: ignore[attr-defined]
    return [clean(names[int(str(row["coarse_label"]))], str(row["text"])) for row in table]


def clean(label: str, text: str) -> Question:
    """Return class and text in one spelling, whatever copy they come from.

    One question has the byte F0 between two words, a letter in Latin-1, a blank on the hub.

    Example:
      >>> clean("LOC", "a sister\\u00f0city ? ")
      ('LOC', 'a sister city ?')
    """
    return label, text.replace("\u00f0", " ").strip()


def write_split(file: Path, questions: Sequence[Question]) -> str:
    """Write one JSON object a line and return the SHA-256 (hex) of the file."""
    rows = [{"text": text, "label": label} for label, text in questions]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    main()
