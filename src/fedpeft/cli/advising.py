"""`advise`: which tuning method the measurements speak for, in a user's setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from fedpeft.cli.printing import say, show, show_table
from fedpeft.core.errors import ConfigError
from fedpeft.core.text import byte_count, byte_words
from fedpeft.experiment.read import read_experiment
from fedpeft.plan.advice import Advice, advise
from fedpeft.results.advice import Ranked, regret_words
from fedpeft.results.evidence import Cell, read_evidence

_COLUMNS = ("method", "accuracy", "behind", "a turn up", "a client up", "rounds", "beds", "seeds")


def advise_command(
    file: Path | None,
    sets: Sequence[str],
    upload: str | None,
    evidence: Path | None,
    *,
    as_json: bool,
) -> None:
    """Print the advice for an experiment.

    Raises:
      ConfigError: if `--upload` is no number of bytes, or the evidence cannot be read.
    """
    limit = None if upload is None else byte_count(upload)
    if upload is not None and limit is None:
        raise ConfigError(
            f"--upload: found {upload!r}; allowed is a number of bytes above 0, with B, kB, MB or "
            "GB after it, such as 500kB"
        )
    found = advise(read_experiment(file, sets), read_evidence(evidence), limit)
    show(found.as_json(), _head(found), as_json=as_json)
    if as_json:
        return
    if found.ranked:
        say("")
        show_table(_COLUMNS, [_cells(found, row) for row in found.ranked], numbers=True)
        say("")
    for line in _tail(found):
        say(line)


def _head(found: Advice) -> Iterator[str]:
    yield found.sentence
    yield f"  yours     {found.setting.words}"
    if found.limit is not None:
        yield f"  limit     {byte_words(found.limit)} of upload a client, whole run, on average"
    if found.ranked:
        for cell in found.cells:
            yield f"  measured  {_where(cell)}"
        yield f"  {regret_words(found.regrets)}"
    elif found.nearest is not None:
        yield f"  nearest   {_where(found.nearest)}"


def _where(cell: Cell) -> str:
    return f"{cell.bed} with {cell.model}: {cell.setting.words}"


def _cells(found: Advice, row: Ranked) -> list[str]:
    cost = (found.costs or {})[row.label]
    behind = row.lead.words.removesuffix(" points") if row.lead else "–"
    beds = f"{len(row.beds)} of {len(found.cells)}"
    return [
        row.label,
        f"{100 * row.accuracy:.1f} %",
        behind,
        byte_words(cost.up),
        byte_words(cost.upload),
        str(cost.rounds),
        beds,
        str(row.seeds),
    ]


def _tail(found: Advice) -> Iterator[str]:
    if found.ranked:
        yield (
            "behind: points of accuracy, ± standard error over seeds; bytes are those of your "
            "model, accuracy that of the measured beds."
        )
    for label, why in (found.left_out or {}).items():
        yield f"left out: {label}: {why}"
    for note in found.notes:
        yield f"note: {note}"
