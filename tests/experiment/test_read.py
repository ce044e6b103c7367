"""Reading experiments: every problem at once, each with its key and what is allowed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import (
    DIGITS,
    apply_overrides,
    dump_experiment,
    parse_override,
    read_experiment,
    validate,
)
from fedpeft.experiment.resolve import learning_rate, resolve

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))


def problems(*overrides):
    with pytest.raises(ConfigError) as caught:
        read_experiment(None, overrides)
    return str(caught.value)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_examples_are_valid(file):
    assert read_experiment(file).name == file.stem


def test_a_resolved_experiment_reads_back_equal_and_resolves_to_itself():
    once = resolve(read_experiment(None, ["tuning.method=lora", "client.lr=0.25"])).experiment
    assert validate(tomllib.loads(dump_experiment(once)), "x") == once
    assert resolve(once).experiment == once
    assert once.tuning.options["r"] == 8 and once.client.lr == 0.25


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("federation.rouds=5", "federation.rouds: unknown key; did you mean 'rounds'?"),
        ("data.transforms.flipp=true", "did you mean 'flip'?"),
        ("seed='x'", "seed: found 'x'; allowed is a valid integer"),
        (
            "federation.rounds=0",
            "federation.rounds: found 0; allowed is greater than or equal to 1",
        ),
        ("federation.rounds=1.5", "federation.rounds: found 1.5"),
        ("client.lr=-1", "client.lr: found -1; allowed is greater than 0"),
        ("client.lr={bias=-1}", "client.lr.bias: found -1; allowed is greater than 0"),
        ("client.lr={biass=1}", "client.lr.biass: no such tuning method; did you mean 'bias'?"),
        ("client.lr=nan", "client.lr: found nan; allowed is a finite number"),
        ("model=3", "model: found 3; allowed is a table"),
        ("data.partition.scheme=iidd", "data.partition.scheme: found 'iidd'; allowed is 'iid'"),
        ("data.transforms.normalize={mean=[1.0]}", "normalize.std: is missing"),
        ("data.transforms.normalize={mean=[1.0],std=[0.0]}", "normalize.std.0: found 0.0"),
        ("data.transforms.normalize=x", "normalize: found 'x'; allowed is 'model' or 'dataset'"),
        ("tuning.method=loraa", "tuning.method 'loraa': no such method; did you mean 'lora'?"),
        ("tuning.options.nope=1", "nope"),
        ("tuning.blocks=[3,1]", "tuning.blocks: found [3, 1]"),
        ("federation.algorithm=fedadm", "'fedadm' is unknown; did you mean 'fedadam'?"),
        ("federation.options.mu=1", "federation.options.mu: fedavg has no such option"),
        ("federation.options.lr=-1", "federation.options.lr: found -1"),
        ("federation.options.lr=x", "federation.options.lr: found 'x'; allowed is a number"),
        ("federation.clients_per_round=65", "found 65; allowed is at most 64"),
        ("federation.min_replies=9", "federation.min_replies: found 9; allowed is at most 8"),
        ("wire.up=[{name='int9'}]", "wire.up[0]: stage 'int9' is unknown; did you mean 'int8'?"),
        ("wire.up=[{name='int8',chnk=3}]", "wire.up[0].chnk: int8 has no such option"),
        ("wire.up=[{name='int8',chunk=0}]", "found chunk = 0"),
        ("wire.up=[{name='top_k',fraction='a'}]", "wire.up[0].fraction: found 'a'"),
        ("wire.down=[{name='top_k'}]", "wire.down[0]: top_k drops values"),
        ("engine.name=flowr", "engine.name: 'flowr' is unknown"),
        ("engine.device=gpu", "engine.device: found 'gpu'; allowed are 'cpu', 'cuda'"),
        ("engine.precision=bf16", "found 'bf16' with engine.device = 'cpu'"),
        ("client.momentum=0", "client.nesterov: found true with client.momentum = 0"),
        ("data.num_examples=10", "found 64 with 10 examples"),
    ],
)
def test_a_bad_value_names_its_key_and_what_is_allowed(override, words):
    assert words in problems(override)


def test_all_problems_are_listed_together():
    text = problems(
        "federation.rouds=5", "client.lr=-1", "tuning.method=loraa", "wire.up=[{name='x'}]"
    )
    assert text.startswith("quickstart.toml (bundled): 4 problems\n")
    assert all(word in text for word in ("rouds", "client.lr", "loraa", "wire.up[0]"))


@pytest.mark.parametrize(
    "sets",
    [
        ("privacy.mode=central", "privacy.epsilon=1e300"),
        ("privacy.mode=example", "privacy.noise_multiplier=1e30"),
        ("privacy.mode=paper", "privacy.clip_norm=inf", "privacy.epsilon=nan"),
        ("data.partition.clients=-1", "federation.clients_per_round=200"),
        ("federation.min_replies=-3",),
    ],
    ids=" ".join,
)
def test_nothing_is_said_of_the_default_of_a_key_that_was_refused(sets):
    text = problems(*sets)
    bad = sets[0] if "=-" in sets[0] else sets[1] if len(sets) == 2 else "privacy.epsilon=nan"
    key = bad.partition("=")[0]
    assert text.count(key) == 1
    assert f"{key}: found" in text


def test_other_problems_are_still_listed_beside_a_refused_key():
    text = problems("privacy.mode=central", "privacy.epsilon=1e300", "privacy.delta=0.5")
    assert "privacy.delta: found 0.5; allowed is at most 0.01" in text


@pytest.mark.parametrize("text", ["rounds", "=5", "a..b=1"])
def test_an_override_that_is_no_assignment_is_refused(text):
    with pytest.raises(ConfigError, match=re.escape(f"--set {text}: found no KEY=VALUE")):
        parse_override(text)


def test_overrides_parse_toml_and_plain_words():
    assert parse_override("a.b=[1, 2]") == ("a.b", [1, 2])
    assert parse_override("tuning.method=lora") == ("tuning.method", "lora")
    assert parse_override("x='1'") == ("x", "1")


def test_overrides_do_not_change_the_table_and_drop_foreign_options():
    table = {"tuning": {"method": "adapter", "options": {"reduction": 4}}}
    changed = apply_overrides(table, [("tuning.method", "lora"), ("seed", 3)])
    assert changed == {"tuning": {"method": "lora"}, "seed": 3}
    assert table["tuning"]["options"] == {"reduction": 4}
    with pytest.raises(ConfigError, match=r"--set seed\.x: seed is not a table"):
        apply_overrides({"seed": 3}, [("seed.x", 1)])


def test_files_that_cannot_be_read_are_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        read_experiment(tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_experiment(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read_experiment(tmp_path / "bytes.toml")


def test_learning_rates_follow_the_model():
    def rate(**tables):
        return learning_rate(Experiment.model_validate(tables))

    quick, digits = read_experiment(None), read_experiment(DIGITS)
    paper = {"model": {"name": "preset:vit-base-patch16-224"}}
    assert quick.model.name != digits.model.name and quick.client.lr != digits.client.lr
    for bundled in (quick, digits):
        own = {"model": {"name": bundled.model.name}}
        assert rate(**own, tuning={"method": "head"}) == bundled.client.lr["head"]
        assert rate(**own, tuning={"method": "vera"}) == bundled.client.lr["bias"]
    assert rate(tuning={"method": "full"}) == digits.client.lr["full"]
    assert rate(**paper, tuning={"method": "full"}) == 1e-3
    assert rate(**paper, tuning={"method": "vera"}) == 1e-2
    assert rate(**paper, client={"lr": {"bias": 0.5}}) == 0.5


def test_a_file_with_nothing_has_the_papers_values():
    plain = resolve(Experiment()).experiment
    assert (plain.federation.rounds, plain.federation.clients_per_round) == (50, 8)
    assert (plain.client.epochs, plain.client.batch_size) == (10, 64)
    assert plain.data.partition.min_examples == 1
    other = resolve(Experiment.model_validate({"data": {"source": "x.csv"}})).experiment
    assert other.data.partition.min_examples == 10 and other.data.partition.clients == 64


@pytest.mark.parametrize("text", ["[{}]", "[[sweep]]\n{} = 1", "{} = 1"])
def test_tables_in_thousands_of_tables_are_refused_in_one_sentence(text, tmp_path):
    file = tmp_path / "deep.toml"
    file.write_text(text.format(".".join(["a"] * 10_000)))
    with pytest.raises(ConfigError, match=r"deep\.toml: found tables in more than 50 tables"):
        read_experiment(file)
    file.write_text("[tuning.options.a]\nb.c.d = [[1, [2]]]")
    with pytest.raises(ConfigError, match=r"tuning\.options"):  # the negative control: deep enough
        read_experiment(file)
