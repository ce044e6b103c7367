"""`audit`: a test, with canary clients, of the privacy that an experiment promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedpeft.cli.app import app
from fedpeft.cli.ending import ending
from fedpeft.cli.options import File, Json, Sets, expanded
from fedpeft.cli.printing import say, show, show_table

if TYPE_CHECKING:
    from fedpeft.studies.audit.audit import AuditRequest


_SEED_COLUMNS = ("seed", "accountant", "estimate", "lower bound", "exceeds")


@app.command()
@ending()
def audit(
    experiment: File = None,
    sets: Sets = None,
    canaries: Annotated[
        int | None,
        typer.Option("--canaries", min=20, help="Default: 500, or a tenth of the parameters."),
    ] = None,
    confidence: Annotated[
        float, typer.Option("--confidence", help="Confidence of the lower bound, 0 to 1.")
    ] = 0.95,
    delta: Annotated[
        float | None, typer.Option("--delta", help="Delta of the bounds; by default privacy.delta.")
    ] = None,
    leave_out_noise: Annotated[
        bool, typer.Option("--leave-out-noise", help="Control: run without the noise.")
    ] = False,
    no_training: Annotated[
        bool, typer.Option("--no-training", help="Ordinary clients send zeros: as valid, faster.")
    ] = False,
    num_seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Repeat with seed, seed + 1, ...")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="For audit.json and the pictures.", callback=expanded
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Test a promised epsilon by checks and by canary clients.

    The rounds of the experiment run with canaries in them (mode central or local): if their lower
    bound of epsilon is above the accountant's, the promise is broken. Then probes check, in mode
    central, local or example, that the noise is as large as claimed and fresh, that every
    contribution is clipped, and that sums are divided by the expected number. Nothing is kept.

    \b
    Examples:
      fedpeft audit --set privacy.mode=central --set privacy.noise_multiplier=1
      fedpeft audit my.toml --canaries 1000 --out runs/audit
      fedpeft audit my.toml --leave-out-noise --seeds 20 --no-training
    """
    from fedpeft.studies.audit.audit import AuditRequest, write_audit

    request = AuditRequest(canaries, confidence, leave_out_noise, not no_training, delta)
    found = _found(experiment, sets or [], request, num_seeds)
    if out is not None:
        write_audit(found, out)
    lines = _seed_lines(found) if "runs" in found else _lines(found)
    if not as_json and "runs" in found and found["runs"][0]["canaries"]:
        show_table(_SEED_COLUMNS, map(_seed_cells, found["runs"]), numbers=True)
    written = [f"written: {out / 'audit.json'}, audit.svg, audit.png"] if out else []
    show(_without_cosines(found), [*lines, *written], as_json=as_json)


def _found(
    file: Path | None, sets: list[str], request: AuditRequest, num_seeds: int
) -> dict[str, Any]:
    from fedpeft.experiment.read import read_experiment
    from fedpeft.studies.audit.audit import audit as run_audit
    from fedpeft.studies.audit.audit import audit_seeds

    def printing(what: str) -> Callable[[int, int], None]:
        return lambda done, count: say(f"{what} {done} of {count}", err=True)

    experiment = read_experiment(file, sets)
    if num_seeds == 1:
        return run_audit(experiment, request, printing("round"))
    return audit_seeds(experiment, request, num_seeds, printing("seed"))


def _without_cosines(found: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in found.items() if key != "cosines"}
    if "runs" in kept:
        kept["runs"] = [_without_cosines(run) for run in kept["runs"]]
    return kept


def _lines(found: Mapping[str, Any]) -> list[str]:
    """Return the result of one audit as text."""
    return [
        *_about(found),
        f"{'':<28}epsilon at delta {found['delta']:g}",
        f"{'accountant':<28}{found['epsilon']:<10.4g}promised: not more than this",
        *(_canary_lines(found) if found["canaries"] else []),
        *_check_lines(found),
    ]


def _canary_lines(found: Mapping[str, Any]) -> list[str]:
    low, high = found["epsilon_estimate_interval"]
    percent = f"{100 * found['confidence']:g} %"
    return [
        f"{'estimate from canaries':<28}{_number(found['epsilon_estimate']):<10}"
        f"not a bound; {percent} interval {_number(low)} to {_number(high)}",
        f"{f'lower bound at {percent}':<28}{found['epsilon_lower_bound']:<10.4g}"
        f"{found['right']} of {found['guesses']} guesses right; expected "
        f"{found['expected_lower_bound']:.3g}, without noise {found['expected_without_noise']:.3g}",
        *_verdict(found),
    ]


def _number(value: float | None) -> str:
    return "over 1e6" if value is None else f"{value:.4g}"


def _check_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the checks of the mechanism, and what no audit sees."""
    checks = found["checks"]
    lines = [
        f"checks of the mechanism; a sound one is accused by any of them in at most "
        f"{found['checks_level']:g} of audits ({checks[0]['level']:.2g} each)"
    ]
    for check in checks:
        p = "" if check["p_value"] is None else f"p {check['p_value']:.2g}"
        lines.append(
            f"  {check['result']:<8}{check['name']:<19}{p:<10}{check['question']}? "
            f"{check['detail']}"
        )
    if found["faults"]:
        lines.append(
            f"found: {', '.join(found['faults'])}. The mechanism is not the one that the "
            "accountant counts: its epsilon does not hold"
        )
    else:
        lines.append("no fault found by the checks")
    return [*lines, f"not seen by an audit: {'; '.join(found['unseen'])}"]


def _about(found: Mapping[str, Any]) -> list[str]:
    from fedpeft.experiment.privacy import PRIVACY_MODES

    noise = "its noise left out on purpose" if found["noise_left_out"] else "its noise"
    others = "others train" if found["trained"] else "others send zeros"
    opposite = PRIVACY_MODES[found["mode"]].hides_which
    rest = "the rest send the opposite" if opposite else "the rest are absent"
    about = (
        f"mode {found['mode']}, {found['sampling']} sampling, noise multiplier "
        f"{found['noise_multiplier']:.4g}, run with {noise}: {found['rounds']} rounds, "
        f"{found['parameters']:,} parameters"
    )
    if not found["canaries"]:
        return [about, "no canaries: they are whole clients, and this epsilon protects examples"]
    return [
        about,
        f"{found['canaries']} canary clients: {found['present']} send their direction in up to "
        f"{found['canary_rounds']} rounds, {rest}; {others}",
    ]


def _verdict(found: Mapping[str, Any]) -> list[str]:
    if found["violated"]:
        chance = 100 * (1 - found["confidence"])
        return [
            "the lower bound is above the accountant's epsilon: the promise is broken (a mechanism "
            f"that keeps it is accused in at most {chance:.3g} % of audits)"
        ]
    kept = ["the lower bound is not above the accountant's epsilon: nothing against the promise"]
    if found["can_tell"]:
        return kept
    return [
        *kept,
        "note: this audit is weak: even without noise it would expect "
        f"{found['expected_without_noise']:.3g}, not above {found['epsilon']:.4g}. A smaller "
        "--delta, more --canaries or a smaller promise (more noise, fewer rounds) can help",
    ]


def _seed_cells(run: Mapping[str, Any]) -> list[str]:
    return [
        str(run["seed"]),
        f"{run['epsilon']:.4g}",
        _number(run["epsilon_estimate"]),
        f"{run['epsilon_lower_bound']:.4g}",
        "yes" if run["violated"] else "no",
    ]


def _seed_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the results of audits over several seeds as text."""
    runs = found["runs"]
    if not runs[0]["canaries"]:
        return [*_about(runs[0]), *_fault_lines(found)]
    return [
        *_about(runs[0]),
        f"the lower bound exceeds the accountant's epsilon in {found['exceeded']} of {len(runs)} "
        f"audits; allowed for a sound mechanism at confidence {found['confidence']:g}: "
        f"{found['allowed_failures']}",
        *_fault_lines(found),
    ]


def _fault_lines(found: Mapping[str, Any]) -> list[str]:
    """Return which checks found a fault, and in how many of the audits."""
    counts = Counter(name for run in found["runs"] for name in run["faults"])
    level = found["runs"][0]["checks_level"]
    by_name = "; ".join(f"{name} {count}" for name, count in counts.items())
    return [
        f"checks found a fault in {found['with_faults']} of {len(found['runs'])} audits"
        f"{f' ({by_name})' if counts else ''}; a sound mechanism is accused in {level:g} of them",
        f"not seen by an audit: {'; '.join(found['runs'][0]['unseen'])}",
    ]
