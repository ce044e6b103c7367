"""`fedpeft audit` from the command line to the files: what it says, and what it refuses."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from fedpeft.cli import main
from fedpeft.experiment.read import DIGITS
from fedpeft.wire.privacy_accounting import Mechanism, epsilon_of

SETS = [
    "model.name=preset:tiny-vit", "tuning.method=head", "data.budget=100",
    "data.partition.clients=6", "federation.clients_per_round=3", "federation.rounds=2",
    "privacy.mode=central", "privacy.noise_multiplier=8.0",
]  # fmt: skip


@pytest.fixture
def audit(capsys):
    def run(*options, sets=()):
        given = [word for each in (*SETS, *sets) for word in ("--set", each)]
        with pytest.raises(SystemExit) as end:
            main(
                [
                    "audit",
                    str(DIGITS),
                    *given,
                    "--no-training",
                    "--canaries",
                    "40",
                    *map(str, options),
                ]
            )
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def test_an_audit_says_what_was_promised_and_what_was_seen(audit, tmp_path):
    code, out, err = audit("--out", tmp_path)
    assert code == 0 and "round 2 of 2" in err
    assert "mode central, fixed sampling, noise multiplier 8" in out
    assert "40 canary clients" in out and "nothing against the promise" in out
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["epsilon_lower_bound"] <= found["epsilon"] and not found["violated"]
    assert len(found["cosines"]["present"]) == found["present"]
    assert "<svg" in (tmp_path / "audit.svg").read_text()
    assert (tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")


def test_an_audit_of_local_noise_is_one_object(audit):
    code, out, _ = audit("--json", sets=["privacy.mode=local"])
    found = json.loads(out)
    assert code == 0 and found["mode"] == "local" and "cosines" not in found
    assert found["epsilon_lower_bound"] <= found["epsilon"] and not found["violated"]


def test_without_the_noise_the_promise_is_seen_to_be_broken(audit):
    code, out, _ = audit("--leave-out-noise", sets=["tuning.method=full"])
    assert code == 0 and "the promise is broken" in out
    assert "run with its noise left out on purpose" in out


def test_audits_over_seeds_are_counted(audit, tmp_path):
    code, out, err = audit("--seeds", 2, "--out", tmp_path)
    found = json.loads((tmp_path / "audit.json").read_text())
    assert code == 0 and "seed 2 of 2" in err
    assert found["seeds"] == [1, 2] and found["exceeded"] <= found["allowed_failures"]
    assert "<svg" in (tmp_path / "audit.svg").read_text()
    assert "audits; allowed for a sound mechanism" in out


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        (["privacy.mode=none"], [], "it has no epsilon to compare with"),
        (["privacy.noise_multiplier=0.0"], [], "found 0, which gives no epsilon"),
        ([], ["--confidence", "1"], "--confidence: found 1.0; allowed is a number between 0 and 1"),
        ([], ["--delta", "0"], "--delta: found 0.0; allowed is a number between 0 and 1"),
        (["privacy.epsilon=0.001"], [], "which allows no round"),
    ],
)
def test_what_cannot_be_audited_is_refused(audit, sets, options, message):
    if sets[:1] == ["privacy.mode=none"]:
        sets = [*sets, "privacy.noise_multiplier=0.0"]
    code, out, err = audit(*options, sets=sets)
    assert code == 2 and not out and message in " ".join(err.split())


def finite(text):
    """Read JSON that holds no NaN and no Infinity."""

    def refuse(word):
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


def test_an_audit_says_what_was_checked_at_which_level_and_what_it_cannot_see(audit, tmp_path):
    code, out, _ = audit("--out", tmp_path)
    found = finite((tmp_path / "audit.json").read_text())
    assert code == 0 and found["faults"] == [] and "no fault found by the checks" in out
    for check in found["checks"]:
        assert check["name"] in out and check["result"] in {"passed", "noted"}
    assert sum(check["level"] for check in found["checks"]) <= found["checks_level"] * 1.0001
    assert found["checks_level"] == 0.001 and "not seen by an audit: " + found["unseen"][0] in out


@pytest.mark.parametrize("mode", ["central", "local", "example"])
def test_missing_noise_is_found_and_said_without_infinite_numbers(audit, tmp_path, mode):
    sets = [f"privacy.mode={mode}", "tuning.method=full"]
    code, out, _ = audit("--leave-out-noise", "--out", tmp_path, sets=sets)
    assert code == 0 and "found: noise_too_small" in out and "there is no noise" in out
    assert finite((tmp_path / "audit.json").read_text())["faults"] == ["noise_too_small"]
    assert (tmp_path / "audit.png").exists()


def test_single_examples_are_audited_without_canaries(audit, tmp_path):
    sets = ["privacy.mode=example", "client.batch_size=8"]
    code, out, _ = audit("--seeds", 2, "--out", tmp_path, sets=sets)
    found = json.loads((tmp_path / "audit.json").read_text())
    assert code == 0 and "no canaries" in out and "checks found a fault in 0 of 2 audits" in out
    assert found["runs"][0]["violated"] is None and found["with_faults"] == 0
    assert (tmp_path / "audit.png").exists()


@pytest.mark.parametrize("noise", ["privacy.noise_multiplier=1.0", "privacy.epsilon=5.0"])
def test_what_privacy_takes_from_the_data_is_settled_before_an_audit(noise, capsys, tmp_path):
    """The rate of Poisson batches, and so the noise, follow from how many examples there are."""
    for number in range(40):
        folder = tmp_path / "data" / "train" / f"class-{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (5 * number, 255 - 5 * number, 90)).save(
            folder / f"{number}.png"
        )
    sets = [
        "model.name=preset:tiny-vit", "tuning.method=head", f"data.source={tmp_path / 'data'}",
        "data.partition.clients=2", "federation.clients_per_round=2", "federation.rounds=2",
        "client.batch_size=20", "client.epochs=1", "privacy.mode=example", noise,
    ]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main(["audit", str(DIGITS), *(word for each in sets for word in ("--set", each)), "--json"])
    out, err = capsys.readouterr()
    assert not end.value.code, err
    found = json.loads(out)
    mechanism = Mechanism(found["noise_multiplier"], sampling=1.0)  # batches of all that it holds
    assert found["epsilon"] == pytest.approx(epsilon_of(mechanism, 2, found["delta"]))
    assert not found["faults"]
    if "epsilon" in noise:
        assert 4.9 < found["epsilon"] <= 5.0


def test_a_report_on_an_audit_says_where_its_picture_is(audit, capsys, tmp_path):
    audit("--out", tmp_path / "a")
    with pytest.raises(SystemExit) as end:
        main(["report", str(tmp_path / "a")])
    assert end.value.code == 2
    assert "holds an audit, not a run; its picture is" in " ".join(capsys.readouterr().err.split())
