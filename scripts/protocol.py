"""The evaluation's protocol as data: beds, classes of cells, and the rows of every table.

    bed x table -> rows (class, method, what the row changes) -> experiments/<bed>/<table>.toml

A class of cells shares its local steps, cohort and privacy mode, and with them the learning rate
of each method: `experiments/rates.json`, found by `scripts/search_rates.py`.
`experiments/protocol.md` says in words what stands here, and why.

    python scripts/protocol.py            write the experiment files of all beds that have rates
    python scripts/protocol.py --cost     estimated hours of every bed, from one timed run a cell
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = [
    "BEDS",
    "GAP_SETS",
    "RATES",
    "Bed",
    "Row",
    "pairs_of",
    "read_rates",
    "settings_of",
    "toml_of",
]

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
RATES_FILE = EXPERIMENTS / "rates.json"

RATES = (0.005, 0.01, 0.02, 0.04, 0.08)
"""Learning rates that every search begins with; past an edge it goes on by factors of two."""

Settings = Mapping[str, object]
"""Dotted key of an experiment file -> value."""

FIVE = ("full", "head", "bias", "adapter", "prompt")
FIVE_OF_TEXT = ("full", "head", "bias", "adapter", "prefix_tuning")
MORE = ("lora", "dora", "ia3", "ln_tuning")
"""Methods that the page on methods compares with the paper's."""


@dataclass(frozen=True)
class Row:
    """One row of a table, to be run with every seed.

    Attributes:
      kind: the class of its cell, which has a learning rate.
      method: tuning method.
      changes: settings beside those of the class.
    """

    kind: str
    method: str
    changes: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Bed:
    """A data set, a backbone and a schedule.

    Attributes:
      name: folder of its experiment files.
      base: settings of every row; a folder of data counts from the repository.
      kinds: class -> the settings of its cells, on which its rates are searched.
      tables: table -> rows.
      examples: training examples, test examples.
      milliseconds: method -> CPU time of one example in one epoch, from one timed run.
    """

    name: str
    base: Settings
    kinds: Mapping[str, Settings]
    tables: Mapping[str, Sequence[Row]]
    examples: tuple[int, int]
    milliseconds: Mapping[str, float]


COHORT = "federation.clients_per_round"
ROUNDS = "federation.rounds"
CLIENTS = "data.partition.clients"
SCHEME = "data.partition.scheme"
EVERY = "federation.eval_every"

_BASE: Settings = {
    SCHEME: "dirichlet",
    CLIENTS: 64,
    "data.partition.alpha": 0.1,
    "data.partition.min_examples": 1,
    ROUNDS: 20,
    COHORT: 8,
    EVERY: 20,
    "client.epochs": 2,
    "client.batch_size": 8,
    "engine.workers": 1,
}
_START = 3.0
_SEARCHED = 10
"""Runs of one search: five rates, two of them with two more seeds, one rate past an edge."""
_GRID = ((16, 16), (16, 2), (64, 64), (64, 8))
_CURVE: Settings = {EVERY: 1}


_ALL: Settings = {COHORT: 64, ROUNDS: 8, EVERY: 8}


def _private(mode: str, epsilon: float) -> Settings:
    """Return accounted privacy: for clients (`central`) or for their examples (`example`)."""
    return {
        "privacy.mode": mode,
        "privacy.epsilon": epsilon,
        "privacy.delta": 1e-3,
        "privacy.clip_norm": 1.0,
    }


def _communication(rounds: int, methods: Sequence[str] = FIVE) -> list[Row]:
    """Table 1 and Fig. 3: bytes against accuracy, in as many rounds for all."""
    return [
        Row("usual", "full", _CURVE),
        Row("usual", "full", {COHORT: 4, **_CURVE}),
        Row("few", "full", _CURVE),
        Row("few", "full", {COHORT: 1, **_CURVE}),
        Row("small", "full", _CURVE),
        Row("64-of-64", "head", {ROUNDS: rounds, **_CURVE}),
        *(Row("usual", method, _CURVE) for method in methods if method != "full"),
    ]


def _settings_of_federation() -> list[Row]:
    """Table 2 but for 8 of 64 with skew, which is in table 1."""
    rows = []
    for clients, cohort in _GRID:
        kind = "usual" if (clients, cohort) == (64, 8) else f"{cohort}-of-{clients}"
        for scheme in ("iid", "dirichlet"):
            if (clients, cohort, scheme) != (64, 8, "dirichlet"):
                rows += [Row(kind, method, {SCHEME: scheme}) for method in FIVE]
    both = ("iid", "dirichlet")
    return [*rows, *(Row("16-of-16", "scratch", {SCHEME: scheme}) for scheme in both)]


def _privacy(with_open: bool) -> list[Row]:
    """Table 3: with privacy, and the same cells without, where table 2 has them not."""
    kinds = ("central", "64-of-64") if with_open else ("central",)
    return [Row(kind, method) for kind in kinds for method in FIVE]


def _scarcity(*budgets: int, methods: Sequence[str] = FIVE) -> list[Row]:
    """Table 4: a part of the training examples."""
    return [Row("scarce", m, {"data.budget": budget}) for budget in budgets for m in methods]


def _more() -> list[Row]:
    """Other methods, on the regimes of the advice; few bytes need the accuracy of every round."""
    curves = [Row("usual", method, _CURVE) for method in MORE]
    even = [Row("usual", method, {SCHEME: "iid"}) for method in MORE]
    return [*curves, *even, *(Row(kind, m) for m in MORE for kind in ("scarce", "2-of-16"))]


_GLYPHS: Settings = {"model.name": "vit-glyphs-28"}
_VIT = {
    **{"head": 0.3, "bias": 1.05, "adapter": 1.05, "prompt": 1.3, "full": 1.5, "scratch": 1.5},
    **{"small": 0.5, "lora": 1.2, "dora": 1.6, "ia3": 1.2, "ln_tuning": 1.05},
}
_SMALL = "preset:shufflenet-v2-x0.05-small"


def _characters(source: str, tables: Mapping[str, Sequence[Row]]) -> Bed:
    base = {**_BASE, **_GLYPHS, "data.source": source}
    kinds: Mapping[str, Settings] = {
        "usual": {},
        "few": {COHORT: 2},
        "small": {"model.name": _SMALL},
        "2-of-16": {CLIENTS: 16, COHORT: 2},
        "16-of-16": {CLIENTS: 16, COHORT: 16, ROUNDS: 4, EVERY: 4},
        "64-of-64": _ALL,
        "scarce": {"data.budget": 561},
        "central": {**_ALL, **_private("central", 20.0)},
    }
    return Bed(source, base, kinds, tables, (2244, 1020), _VIT)


def _text() -> Bed:
    """TREC, which `scripts/trec.py` writes; the small network reads as much text in more pieces."""
    base = {
        **_BASE,
        "data.partition.alpha": 0.5,
        ROUNDS: 15,
        EVERY: 15,
        "client.epochs": 1,
        "client.batch_size": 16,
        "model.name": "minilm",
        "model.pooling": "mean",
        "data.source": "data/trec",
        "data.max_length": 16,
        "data.budget": 1500,
    }
    kinds: Mapping[str, Settings] = {
        "usual": {},
        "few": {COHORT: 2},
        "small": {"model.name": "preset:narrow-bert", "data.max_length": 48},
        "64-of-64": {COHORT: 64},
        "scarce": {"data.budget": 500},
        "example": _private("example", 5.0),
    }
    tables = {
        "table1": _communication(15, FIVE_OF_TEXT),
        "table3": [Row("example", method) for method in FIVE_OF_TEXT],
        "table4": _scarcity(250, 500, 750, methods=FIVE_OF_TEXT),
    }
    return Bed("text", base, kinds, tables, (1500, 500), _MINILM)


_MINILM = {
    **{
        "head": 1.0,
        "bias": 13.0,
        "adapter": 13.0,
        "prompt": 13.0,
        "full": 25.0,
        "prefix_tuning": 13.0,
    },
    **{"small": 0.5},
}
GAP_SETS = ("glyphs-new", "characters-blurred", "characters-inverted", "characters-permuted")
"""The gap series, chosen by measured gap (`experiments/results/gap-vit-glyphs-28.json`), but for
`characters`, whose rows are in its own table 1."""


def _gap() -> Bed:
    """Return the sets of the gap series: each has rates of its own, so each is a class."""
    kinds = {name: {"data.source": name} for name in GAP_SETS}
    rows = [Row(name, method) for name in GAP_SETS for method in FIVE]
    return Bed("gap", {**_BASE, **_GLYPHS}, kinds, {"gap": rows}, (2244, 1020), _VIT)


_FEW = _scarcity(280, 561, 1122)
_LISTED = (
    _text(),
    _characters(
        "characters",
        {
            "table1": _communication(20),
            "table2": _settings_of_federation(),
            "table3": _privacy(with_open=False),
            "table4": _FEW,
            "methods": _more(),
        },
    ),
    _characters(
        "characters-hard",
        {"table1": _communication(20), "table3": _privacy(with_open=True), "table4": _FEW},
    ),
    _gap(),
)
BEDS: Mapping[str, Bed] = {bed.name: bed for bed in _LISTED}


def settings_of(bed: Bed, row: Row) -> dict[str, object]:
    """Return the settings of a row on its bed, without learning rate and seed."""
    return {**bed.base, **bed.kinds[row.kind], "tuning.method": row.method, **row.changes}


def pairs_of(bed: Bed) -> list[tuple[str, str]]:
    """List the pairs of class and method that a bed's tables use: each has a search of its own."""
    rows = (row for rows in bed.tables.values() for row in rows)
    return list(dict.fromkeys((row.kind, row.method) for row in rows))


def seconds_of(bed: Bed, row: Row) -> float:
    """Estimate the CPU seconds of one run of a row: start, passes over examples, evaluations."""
    settings = settings_of(bed, row)

    def number(key: str) -> int:
        return int(str(settings[key]))

    train = int(str(settings.get("data.budget", bed.examples[0])))
    passes = number(ROUNDS) * number(COHORT) * number("client.epochs") * train / number(CLIENTS)
    scored = number(ROUNDS) / number(EVERY) * bed.examples[1]
    per_step = 2.0 if settings.get("privacy.mode") == "example" else 1.0
    small = row.kind == "small"
    each = bed.milliseconds["small" if small else row.method] / 1000
    evaluated = bed.milliseconds["small" if small else "head"] / 1000
    return _START + passes * each * per_step + scored * evaluated


def hours_of(bed: Bed, seeds: int = 10) -> dict[str, float]:
    """Return table or "search" -> estimated CPU-hours."""
    hours = {
        table: seeds * sum(seconds_of(bed, row) for row in rows) / 3600
        for table, rows in bed.tables.items()
    }
    pairs = [Row(*pair) for pair in pairs_of(bed)]
    return hours | {"search": _SEARCHED * sum(seconds_of(bed, row) for row in pairs) / 3600}


def read_rates() -> dict[str, dict[str, dict[str, float]]]:
    """Return bed -> class -> method -> learning rate, as far as they were searched."""
    return json.loads(RATES_FILE.read_text("utf-8")) if RATES_FILE.exists() else {}


def toml_of(bed: Bed, table: str, rates: Mapping[str, Mapping[str, float]]) -> str:
    """Return the experiment file of a table: its rows, and what they share.

    Args:
      bed: has the table.
      table: its name.
      rates: class -> method -> learning rate.
    """
    rows = []
    for row in bed.tables[table]:
        settings = {**settings_of(bed, row), "client.lr": rates[row.kind][row.method]}
        rows.append({key: value for key, value in settings.items() if bed.base.get(key) != value})
    return "\n".join(
        [
            f"# {table.capitalize()} of the bed {bed.name}; written by scripts/protocol.py.",
            f"# fedpeft sweep experiments/{bed.name}/{table}.toml --over seed=1,2,3 "
            f"--results experiments/results/{bed.name}.jsonl",
            f'name = "{bed.name}-{table}"',
            "seed = 1",
            "sweep = [",
            *(f"    {_inline(row)}," for row in rows),
            "]",
            *_sections(_from_file(bed)),
            "",
        ]
    )


def _from_file(bed: Bed) -> dict[str, object]:
    """Return a bed's settings as they stand in its files: a folder of data counts from there."""
    source = str(bed.base["data.source"])
    return {**bed.base, "data.source": f"../../{source}" if "/" in source else source}


def _inline(row: Settings) -> str:
    return "{ " + ", ".join(f'"{key}" = {json.dumps(value)}' for key, value in row.items()) + " }"


def _sections(settings: Settings) -> Iterator[str]:
    tables: dict[str, list[str]] = {}
    for key, value in settings.items():
        table, _, last = key.rpartition(".")
        tables.setdefault(table, []).append(f"{last} = {json.dumps(value)}")
    for table, lines in sorted(tables.items()):
        yield from ("", f"[{table}]", *lines)


def main() -> None:
    """Write the files of every bed whose rates are known, or print the hours."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cost", action="store_true", help="print estimated CPU-hours")
    if parser.parse_args().cost:
        for bed in BEDS.values():
            hours = hours_of(bed)
            print(
                bed.name,
                {table: round(h, 2) for table, h in hours.items()},
                round(sum(hours.values()), 1),
            )
        return
    rates = read_rates()
    for bed in BEDS.values():
        for table, rows in bed.tables.items():
            found = rates.get(bed.name, {})
            if all(row.method in found.get(row.kind, {}) for row in rows):
                file = EXPERIMENTS / bed.name / f"{table}.toml"
                file.parent.mkdir(exist_ok=True)
                file.write_text(toml_of(bed, table, found), "utf-8")
                print(f"{file}: {len(rows)} rows")


if __name__ == "__main__":
    main()
