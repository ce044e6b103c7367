"""The fold below a row of a report: how to repeat it, its seeds one by one, its configuration.

The command names the run folder's own `experiment.toml`, which holds every default resolved; other
seeds are that file under `--set`. Repeated on the same versions it gives the same delta digest.
"""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedpeft.core.errors import RunFolderError
from fedpeft.results.runs import Group, Run
from fedpeft.results.table import (
    Spread,
    count_text,
    epsilon_text,
    metric_text,
    row_of,
    seconds_text,
)

__all__ = ["commands", "detail"]

_HARMLESS = ("name", "sweep", "engine.workers", "engine.clients_per_pass")
_DIAGNOSED = {"clip_fraction": "clip fraction", "noise_to_signal": "noise over signal"}


def detail(group: Group, *, diagnostics: bool = False) -> str:
    """Write a row's fold as HTML.

    Args:
      group: the row.
      diagnostics: whether to show means of `diagnostics.jsonl`, which are not private.
    """
    lines = "\n".join(html.escape(line) for line in commands(group))
    first = group.runs[0]
    shown = _diagnostics(group) if diagnostics else ""
    return (
        "<details><summary>Command, seeds and configuration</summary>"
        f'<div class="inside"><h4>To repeat</h4><pre>{lines}</pre>'
        f"<h4>Seed by seed</h4>{_seeds(group)}{_messages(group)}{shown}"
        f"<h4>Effective configuration{_of_seed(group)}</h4>"
        f"<pre>{html.escape(_config(first))}</pre></div></details>"
    )


def commands(group: Group) -> list[str]:
    """Write one shell command a seed."""
    first = group.runs[0]
    return [shlex.join(_command(first, run)) for run in group.runs]


def _command(first: Run, run: Run) -> list[str]:
    """Repeat a run from the first seed's file where `--set` can say the difference."""
    changed = {
        key: value
        for key, value in run.settings.items()
        if key not in _HARMLESS and first.settings.get(key) != value
    }
    gone = set(first.settings) - set(run.settings) - set(_HARMLESS)
    if gone or not all(isinstance(v, bool | int | float | str) for v in changed.values()):
        return ["fedpeft", "run", str(run.folder / "experiment.toml")]
    sets = [part for key, v in changed.items() for part in ("--set", f"{key}={json.dumps(v)}")]
    return ["fedpeft", "run", str(first.folder / "experiment.toml"), *sets]


def _seeds(group: Group) -> str:
    heads = ("Seed", group.runs[0].metric.title, "Bytes up", "Bytes down", "Time", "ε")
    head = "".join(f'<th scope="col">{text}</th>' for text in (*heads, "Delta, SHA-256"))
    body = "".join(_seed(group, run) for run in group.runs)
    started = {_seed_of(run) for run in group.runs}
    body += "".join(
        f'<tr><th scope="row">{each.seed}</th>'
        f'<td colspan="6" class="left">{html.escape(each.why)}</td></tr>'
        for each in group.absent
        if each.seed not in started
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Seed by seed">'
        f'<table class="seeds"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _seed_of(run: Run) -> int:
    return int(run.settings.get("seed", 0))


def _seed(group: Group, run: Run) -> str:
    row = row_of(Group(group.label, (run,)))
    why = next((each.why for each in group.absent if each.seed == _seed_of(run)), "")
    digest = (run.summary or {}).get("delta_digest")
    shown = f"<code>{html.escape(str(digest))}</code>" if digest else html.escape(why) or "–"
    cells = [
        metric_text(row.last, run.metric),
        _bytes(row.bytes_up),
        _bytes(row.bytes_down),
        seconds_text(row.seconds.mean if row.seconds else None),
        html.escape(epsilon_text(row)),
    ]
    line = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr><th scope="row">{_seed_of(run)}</th>{line}<td class="left">{shown}</td></tr>'


def _bytes(sent: Spread | None) -> str:
    return "–" if sent is None else f"{count_text(sent.mean)} B"


def _messages(group: Group) -> str:
    row = row_of(group)
    return (
        f"<p>A message, as encoded, mean: {count_text(row.encoded_up)} B up, "
        f"{count_text(row.encoded_down)} B down.</p>"
    )


def _of_seed(group: Group) -> str:
    return f" of seed {_seed_of(group.runs[0])}" if len(group.runs) > 1 else ""


def _config(run: Run) -> str:
    return (run.folder / "experiment.toml").read_text("utf-8")


def _diagnostics(group: Group) -> str:
    """Show what the local engine measured before the noise, under the words of its own file."""
    items = []
    for run in group.runs:
        found = list(_diagnosed(run.folder / "diagnostics.jsonl"))
        if found:
            note = str(found[0]["note"])
            means = ", ".join(_means(found[1:]))
            items.append(f"<li>seed {_seed_of(run)}: {means}. <b>{html.escape(note)}</b></li>")
    return f"<h4>Diagnostics: not private</h4><ul>{''.join(items)}</ul>" if items else ""


def _diagnosed(file: Path) -> Iterator[Mapping[str, Any]]:
    if not file.is_file():
        return
    try:
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        stated = "not private" in str(lines[0]["note"])
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise RunFolderError(
            f"{file}: {type(error).__name__}: {error}; leave out --diagnostics, or restore the file"
        ) from error
    if not stated:
        raise RunFolderError(
            f"{file}: its first line does not say that it is not private; leave out --diagnostics"
        )
    yield from lines


def _means(records: list[Mapping[str, Any]]) -> Iterator[str]:
    for key, words in _DIAGNOSED.items():
        spread = Spread.of([float(r[key]) for r in records if r.get(key) is not None])
        yield f"{words} {spread.mean:.3g}" if spread else f"{words} not measured"
