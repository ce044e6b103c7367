"""`[stability]` and `[federation.buffered]`: from the file to a run."""

from __future__ import annotations

from pathlib import Path

import pytest

import fedpeft
from fedpeft.cli import main
from fedpeft.core.errors import ConfigError, RoundError, RunFolderError
from fedpeft.core.text import byte_words
from fedpeft.experiment.read import DIGITS, read_experiment, validate
from fedpeft.experiment.resolve import resolve
from fedpeft.plan.plan import make_plan
from fedpeft.report.write import write_report

TINY = {
    "model.name": "preset:tiny-vit", "data.partition.clients": 6, "data.partition.alpha": 1.0,
    "federation.rounds": 2, "federation.clients_per_round": 4, "client.epochs": 1,
    "engine.workers": 1,
}  # fmt: skip
BUFFERED = {"federation.mode": "buffered", "federation.buffered.size": 2}


def records(out: Path) -> list[dict]:
    import json

    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def test_a_report_compares_the_two_by_simulated_time(tmp_path: Path) -> None:
    plain = fedpeft.run(DIGITS, TINY, out=tmp_path / "plain")
    calm = fedpeft.run(DIGITS, TINY | {"stability.speed_spread": 1.0}, out=tmp_path / "sync")
    fedpeft.run(
        DIGITS, TINY | BUFFERED | {"stability.speed_spread": 1.0}, out=tmp_path / "buffered"
    )
    assert plain["delta_digest"] == calm["delta_digest"], "a clock alone changes no number"
    assert all("simulated_time" not in record for record in records(tmp_path / "plain"))
    assert all(record["simulated_seconds"] > 0 for record in records(tmp_path / "sync"))
    assert all("staleness" in record for record in records(tmp_path / "buffered"))
    page = write_report([tmp_path], None).read_text()
    assert "Accuracy against simulated time" in page
    assert "bias, synchronous" in page and "bias, buffered" in page
    assert "size -" not in page


def test_a_report_without_a_clock_has_no_such_figure(tmp_path: Path) -> None:
    fedpeft.run(DIGITS, TINY, out=tmp_path / "plain")
    assert "simulated time" not in write_report([tmp_path], None).read_text()


def test_failures_are_data_and_too_few_replies_end_the_run(tmp_path: Path) -> None:
    fedpeft.run(DIGITS, TINY | {"stability.dropout": 0.5}, out=tmp_path / "dropout")
    reasons = [r for record in records(tmp_path / "dropout") for r in record["failures"].values()]
    assert reasons and set(reasons) == {"dropped out"}
    with pytest.raises(RoundError, match="would answer in simulated time, at least 4") as caught:
        short = {"federation.min_replies": 4, "stability.deadline": 1e-6}
        fedpeft.run(DIGITS, TINY | short, out=tmp_path / "short")
    assert caught.value.exit_code == 3


def words_of(capsys: pytest.CaptureFixture[str], *settings: str) -> str:
    sets = [f"--set={key}={value}" for key, value in TINY.items()] + [
        f"--set={s}" for s in settings
    ]
    with pytest.raises(SystemExit):
        main(["run", str(DIGITS), *sets, "--out", "run"])
    return capsys.readouterr().out


@pytest.mark.parametrize("mode", ["synchronous", "buffered"])
@pytest.mark.parametrize("dropout", ["0.0", "0.5"])
def test_a_message_is_as_large_whether_or_not_others_drop_out(
    mode: str, dropout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The printed figures divide by what was sent: with dropout they say what they say without."""
    monkeypatch.chdir(tmp_path)
    settings = [f"stability.dropout={dropout}", f"federation.mode={mode}"]
    out = words_of(capsys, *settings)
    found = records(tmp_path / "run")
    failed = sum(len(record["failures"]) for record in found)
    assert (failed > 0) == (dropout != "0.0")
    total = {key: sum(r[key] for r in found) for key in found[0] if key[:5] in ("bytes", "messa")}
    assert total["messages_down"] == sum(len(record["cohort"]) for record in found)
    assert total["messages_up"] == total["messages_down"] - failed
    up, down = (total[f"bytes_{way}"] / total[f"messages_{way}"] for way in ("up", "down"))
    assert f"sent {byte_words(up)} up and {byte_words(down)} down a client and round" in out
    plan = make_plan(read_experiment(DIGITS, [f"{k}={v}" for k, v in TINY.items()])).figures
    assert down == plan["wire_bytes_down"] and abs(up / plan["wire_bytes_up"] - 1) < 0.001


def test_a_client_that_is_not_available_gets_no_broadcast(tmp_path: Path) -> None:
    """Of six clients three are never there; cohorts are drawn from all."""
    file = tmp_path / "trace.csv"
    file.write_text("client,from,to\n" + "".join(f"client-0{i},0,1e9\n" for i in range(3)))
    settings = TINY | {"stability.trace": str(file), "federation.clients_per_round": 6}
    fedpeft.run(DIGITS, settings, out=tmp_path / "run")
    for record in records(tmp_path / "run"):
        assert set(record["failures"].values()) == {"not available"}
        assert record["messages_down"] == record["messages_up"] == 3
    plan = make_plan(read_experiment(DIGITS, [f"{k}={v}" for k, v in TINY.items()])).figures
    assert record["bytes_down"] == 3 * plan["wire_bytes_down"]


def test_secret_cohorts_count_the_messages_that_are_expected(tmp_path: Path) -> None:
    private = {
        "privacy.mode": "central", "privacy.noise_multiplier": 1.0,
        "federation.sampling": "poisson", "privacy.reproducible_noise": True,
    }  # fmt: skip
    found = fedpeft.run(DIGITS, TINY | private, out=tmp_path / "run")
    for record in records(tmp_path / "run"):
        assert record["messages_down"] == record["messages_up"] == 4
    assert found["messages_up"] == found["messages_down"] == 8


def test_a_changed_trace_is_noticed(tmp_path: Path) -> None:
    file, out = tmp_path / "trace.csv", tmp_path / "run"
    rows = "".join(f"client-0{i},0,1e6\n" for i in range(6))
    file.write_text("client,from,to\n" + rows)
    settings = TINY | {"stability.trace": str(file)}
    fedpeft.run(DIGITS, settings, out=out)
    assert "trace_sha256" in (out / "experiment.toml").read_text()
    again = read_experiment(out / "experiment.toml")
    file.write_text("client,from,to\n" + rows + "client-00,2e6,3e6\n")
    with pytest.raises(ConfigError, match=r"stability.trace: .*trace.csv has changed"):
        resolve(again)
    with pytest.raises(RunFolderError, match=r"stability.trace_sha256"):
        fedpeft.run(DIGITS, settings | {"federation.rounds": 3}, out=out, resume=True)


def test_a_plan_counts_whom_over_selection_asks() -> None:
    def figures(**stability: float) -> dict[str, object]:
        table = {"model": {"name": "preset:tiny-vit"}, "stability": stability}
        return dict(make_plan(validate(table, "test")).figures)

    calm, over = figures(), figures(over_selection=1.5)
    extra = over["total_bytes"] - calm["total_bytes"]
    assert extra == 50 * 4 * calm["wire_bytes_down"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stability.dropout": 1.0}, "stability.dropout: found 1.0; allowed is less than 1"),
        ({"stability.deadlin": 1.0}, "stability.deadlin: unknown key; did you mean 'deadline'"),
        ({"stability.straggler_shape": 2.0}, "straggler_shape: found without stability.stragglers"),
        ({"stability.trace": "a.txt"}, "stability.trace: found 'a.txt'; allowed are a file"),
        ({"stability.trace_period": 5.0}, "stability.trace_period: found with stability.trace"),
        ({"stability.choose_from": "available"}, "found 'available' without stability.trace"),
        ({"federation.buffered.size": 3}, r"federation.buffered.size: found with federation.mode"),
        (BUFFERED | {"federation.min_replies": 3}, r"at most 2 \(federation.buffered.size\)"),
        (BUFFERED | {"stability.over_selection": 2.0}, "raise federation.buffered.concurrency"),
        (
            BUFFERED | {"stability.trace": "phones", "stability.choose_from": "available"},
            "always draws from available clients",
        ),
    ],
)
def test_contradictions_are_listed(settings: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        fedpeft.run(DIGITS, TINY | settings, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
