"""Run the paper's Tables 1 to 4 and its ablation at full scale, the cheapest rows first.

    experiments/paper/*.toml -> rows -> what is missing? -> a step of each kind -> hours -> sweep
                                         one sentence

    python scripts/reproduce_paper.py               needs a GPU; weights and data come from the hub
    python scripts/reproduce_paper.py --hours       only prints what was measured, and the hours:
                                                    needs a GPU, but neither weights nor the hub
    python scripts/reproduce_paper.py --rehearse    one row of each kind on 2,000 drawn pictures of
                                                    each set's format, with a tiny model, on a CPU

The same command goes on after a stop: a finished run has a line in the results file and is not
repeated. The ablation's backbones are trained last, with the rates that their own searches have
found on validation data.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from fedpeft.core.errors import FedpeftError
from fedpeft.core.text import byte_words
from fedpeft.data.request import DataRequest
from fedpeft.data.source import read_source
from fedpeft.experiment.resolve import resolve
from fedpeft.experiment.sweep_rows import SweepRow, read_rows
from fedpeft.launch.progress import show_progress, time_words
from fedpeft.launch.sweep import Event, Failed, Finished, sweep
from fedpeft.models.locate import is_local, locate
from fedpeft.results.lines import line_digest, read_lines
from fedpeft.runs.records import RoundDone
from paper_pictures import PAPER_SETS, PaperSet, draw_pictures
from row_costs import Cost, kind_of, measure, seconds_of

__all__ = ["TABLES", "best_rates", "missing", "paper_rows", "rehearsed"]

_ROOT = Path(__file__).resolve().parent.parent
_FILES = _ROOT / "experiments" / "paper"
TABLES = (
    "table1-cifar100", "table1-resisc45", "table1-pcam", "table2-cifar100", "table2-resisc45",
    "table2-pcam", "table3-cifar100", "table3-pcam", "table4-cifar100", "table4-resisc45",
    "backbone-mae-lr", "backbone-mae", "backbone-moco-lr", "backbone-moco",
)  # fmt: skip
"""Files of `experiments/paper`: `X-lr` searches the learning rates of `X`."""
_WEIGHTS = {
    "vit-base-mae": "fedpeft convert mae_pretrain_vit_base.pth --as mae --to models/vit-base-mae",
    "vit-base-moco": "fedpeft convert vit-b-300ep.pth.tar --as moco-v3 --to models/vit-base-moco",
    "shufflenet-v2-x0.5": "see docs/lab/paper-tables.md",
}
"""Folder of a model that the hub does not have -> how it is made."""
_TINY = {
    "preset:vit-base-patch16-224": "preset:tiny-vit",
    "preset:shufflenet-v2-x0.5": "preset:tiny-shufflenet",
}


@dataclass(frozen=True)
class Places:
    """Where things are written.

    Attributes:
      out: folder of the runs: OUT/TABLE/ROW; those of the ablation's backbones: OUT-TABLE.
      results: file with a line for each finished run.
      pictures: folder of drawn pictures.
    """

    out: Path
    results: Path
    pictures: Path


def main(args: Sequence[str] | None = None) -> int:
    """Read the command line, and run; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES, metavar="TABLE")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--results", type=Path, help="a line for each finished run")
    parser.add_argument("--hours", action="store_true", help="measure, and run nothing")
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--full-size", action="store_true", help="rehearse with the paper's models")
    parser.add_argument("--device", help="cpu or cuda; by default cuda, cpu for a tiny rehearsal")
    chosen = parser.parse_args(args)
    tiny = chosen.rehearse and not chosen.full_size
    name, seeds = ("paper-rehearsal", [1]) if chosen.rehearse else ("paper", [1, 42, 3407])
    out = (chosen.out or _ROOT / "runs" / name).absolute()
    kept = out.with_suffix(".jsonl") if chosen.rehearse else _FILES / "results.jsonl"
    place = Places(out, chosen.results or kept, out.with_name(f"{out.name}-pictures"))
    try:
        rows = paper_rows(_with_searches(chosen.only), chosen.seeds or seeds)
        rows = on_device(rows, chosen.device or ("cpu" if tiny else "cuda"))
        sets: Mapping[str, PaperSet] = PAPER_SETS
        if chosen.rehearse:
            rows, sets = rehearsed(rows, place.pictures, tiny=tiny)
        lack = missing(rows, only_device=chosen.hours)
        if lack:
            print(f"error: cannot start: {lack}", file=sys.stderr)
            return 2
        return _run(rows, sets, place, only_hours=chosen.hours)
    except FedpeftError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


def paper_rows(tables: Sequence[str], seeds: Sequence[int]) -> list[SweepRow]:
    """Return the rows of tables, named TABLE/ROW; a search has one seed and validation data."""
    rows = list[SweepRow]()
    for table in tables:
        search = table.endswith("-lr")
        sets = ["data.evaluate_on=validation"] if search else []
        overs = [] if search else [f"seed={','.join(map(str, seeds))}"]
        found = read_rows(_FILES / f"{table}.toml", sets, overs)
        rows += [replace(row, name=f"{table}/{row.name}") for row in found]
    return rows


def on_device(rows: Sequence[SweepRow], device: str) -> list[SweepRow]:
    """Return the rows with another device."""
    changed = [row.experiment.changed(engine={"device": device}) for row in rows]
    return [replace(row, experiment=one) for row, one in zip(rows, changed, strict=True)]


def rehearsed(
    rows: Sequence[SweepRow], folder: Path, *, tiny: bool
) -> tuple[list[SweepRow], dict[str, PaperSet]]:
    """Return one row of each table and kind, on drawn pictures, and the sets that were drawn.

    Args:
      rows: of the paper.
      folder: for the pictures.
      tiny: use tiny models and one epoch; else the paper's models, with random weights.
    """
    firsts = {(_table(row), kind_of(row.experiment)): row for row in reversed(rows)}
    sets, found = dict[str, PaperSet](), list[SweepRow]()
    for row in reversed(firsts.values()):
        one = row.experiment
        place = folder / one.data.source.replace("/", "-")
        kind = sets[str(place)] = draw_pictures(place, PAPER_SETS[one.data.source])
        train = kind.sizes["train"]
        model = str(one.model.config)
        name = _TINY[model] if tiny else model
        one = one.changed(
            model={"name": name, "config": name},
            data={
                "source": str(place),
                "num_examples": train,
                "budget": one.data.budget and min(one.data.budget // 2, train),
                "partition": {"min_examples": 1},
                "transforms": {"normalize": "model"} if tiny else {},  # a tiny one sees in grey
            },
            federation={"rounds": 1},
            client={"epochs": 1} if tiny else {},
        )
        found.append(replace(row, experiment=one))
    return found, sets


def missing(rows: Sequence[SweepRow], *, only_device: bool = False) -> str:
    """Return what the rows lack on this machine, in words; "" if nothing.

    What the hub has is fetched, once nothing else is missing.

    Args:
      rows: to run.
      only_device: look neither for weights nor for data.
    """
    experiments = [row.experiment for row in rows]
    models = list(dict.fromkeys(one.model.name for one in experiments))
    lacks = list[str]()
    on_gpu = any(one.engine.device.startswith("cuda") for one in experiments)
    if on_gpu and not torch.cuda.is_available():
        lacks.append("a GPU that torch can use (without one: make rehearse-paper)")
    for model in models:
        how = _WEIGHTS.get(Path(model).name)
        if how and not is_local(model) and not only_device:
            lacks.append(f"the weights models/{Path(model).name} ({how})")
    if lacks or only_device:
        return "this needs " + ", ".join(lacks) if lacks else ""
    try:
        for model in models:
            locate(model)
        for source in dict.fromkeys(one.data.source for one in experiments):
            read_source(DataRequest(source))
    except FedpeftError as error:
        return " ".join(str(error).split())
    return ""


def best_rates(results: Path, rows: Sequence[SweepRow]) -> dict[str, float]:
    """Return the learning rate of each method that ended highest in a finished search.

    A run counts by its mean over the last three evaluated rounds.

    Args:
      results: lines of the search's runs.
      rows: of the search.
    """
    lines, scores = read_lines(results), defaultdict[str, dict[float, float]](dict)
    for row in rows:
        if (run := lines.get(_digest(row))) is not None:
            last = [score for _, _, score in run.curve()[-3:]]
            rate = float(row.overrides["client.lr"])
            scores[row.experiment.tuning.method][rate] = fmean(last)
    return {method: max(found, key=found.__getitem__) for method, found in scores.items()}


def _with_searches(tables: Sequence[str]) -> list[str]:
    """Return tables in their usual order, each with the search of its rates."""
    wanted = {*tables, *(f"{table}-lr" for table in tables)}
    return [table for table in TABLES if table in wanted]


def _run(
    rows: Sequence[SweepRow], sets: Mapping[str, PaperSet], place: Places, *, only_hours: bool
) -> int:
    """Measure, print the hours, and run the tables, then the backbones with the searched rates."""
    done = read_lines(place.results)
    now = [_with_searched_rate(row, rows, place.results) for row in rows]
    left = [row for row in now if _digest(row) not in done]
    seconds = _estimate(left, sets, place.pictures)
    _print_hours(now, seconds)
    if only_hours:
        return 0
    searched = {f"{_table(row)}-lr" for row in rows} & {_table(row) for row in rows}
    waiting = {table.removesuffix("-lr") for table in searched}
    first = [row for row in rows if _table(row) not in waiting]
    first.sort(key=lambda row: seconds.get(row.name, 0.0))
    code = _sweep(first, place.out, place.results)
    for backbone in sorted(waiting):
        if _unfinished(f"{backbone}-lr", rows, place.results):
            print(f"error: {backbone}: waits until its search has finished", file=sys.stderr)
            continue
        own = [row for row in rows if _table(row) == backbone]
        found = [_with_searched_rate(row, rows, place.results) for row in own]
        out = place.out.with_name(f"{place.out.name}-{backbone}")
        code = max(code, _sweep(found, out, place.results))
    return code


def _with_searched_rate(row: SweepRow, rows: Sequence[SweepRow], results: Path) -> SweepRow:
    """Return a row with the rate that its search has found so far, if it has a search."""
    search = [other for other in rows if _table(other) == f"{_table(row)}-lr"]
    rate = best_rates(results, search).get(row.experiment.tuning.method) if search else None
    if rate is None:
        return row
    return replace(row, experiment=row.experiment.changed(client={"lr": rate}))


def _unfinished(table: str, rows: Sequence[SweepRow], results: Path) -> bool:
    done = read_lines(results)
    return any(_digest(row) not in done for row in rows if _table(row) == table)


def _digest(row: SweepRow) -> str:
    return line_digest(resolve(row.experiment).experiment)


def _sweep(rows: Sequence[SweepRow], out: Path, results: Path) -> int:
    if not rows:
        return 0
    with show_progress(sys.stderr) as report:

        def watch(row: SweepRow, event: Event) -> None:
            if isinstance(event, RoundDone):
                report(row.name, event)
            elif isinstance(event, Finished):
                report(row.name, "was finished before" if event.skipped else "finished")
            else:
                report(row.name, f"failed: {event.message.splitlines()[0]}")

        ends = sweep(rows, out, watch, results)
    failed = {name: end for name, end in ends.items() if isinstance(end, Failed)}
    for name, end in failed.items():
        print(f"error: {name}: {end.message}", file=sys.stderr)
    print(f"{len(ends) - len(failed)} of {len(ends)} runs are finished: {results}")
    return max((end.exit_code for end in failed.values()), default=0)


def _estimate(
    rows: Sequence[SweepRow], sets: Mapping[str, PaperSet], drawn: Path
) -> dict[str, float]:
    """Measure each kind of row once; return row -> seconds of its run."""
    costs, seconds = dict[str, Cost](), dict[str, float]()
    for row in rows:
        one, kind = row.experiment, kind_of(row.experiment)
        if kind not in costs:
            place = Path(one.data.source)
            if one.data.source in PAPER_SETS:
                place = drawn / one.data.source.replace("/", "-")
                draw_pictures(place, PAPER_SETS[one.data.source])
            costs[kind] = measure(one, place)
            print(f"{row.name}: {_words(costs[kind])}", flush=True)
        seconds[row.name] = seconds_of(one, costs[kind], sets[one.data.source])
    return seconds


def _words(cost: Cost) -> str:
    return (
        f"{1e3 * cost.step:.1f} ms a step, {1e3 * cost.score:.2f} ms a scored picture, "
        f"{byte_words(cost.bytes_up)} up and {byte_words(cost.bytes_down)} down a client and "
        f"round, {byte_words(cost.memory)} of memory at most"
    )


def _print_hours(rows: Sequence[SweepRow], seconds: Mapping[str, float]) -> None:
    """Print the runs and the time of each table; 0 for runs that are finished."""
    counts, sums = defaultdict[str, int](int), defaultdict[str, float](float)
    for row in rows:
        counts[_table(row)] += row.name in seconds
        sums[_table(row)] += seconds.get(row.name, 0.0)
    for table, total in sums.items():
        print(f"{table:<18} {counts[table]:>4} runs {total / 3600:>10.3f} h")
    print(f"{'still to run':<18} {len(seconds):>4} runs {sum(sums.values()) / 3600:>10.3f} h")
    print(f"about {time_words(sum(sums.values()))} on this device, one run at a time", flush=True)


def _table(row: SweepRow) -> str:
    return row.name.partition("/")[0]


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(main())
