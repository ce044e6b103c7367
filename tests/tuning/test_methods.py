"""The table of methods, options without a model, and ranges of blocks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedpeft
from fedpeft.core.errors import TuningError
from fedpeft.tuning.methods import METHODS, TuningRequest, resolve_options, tune
from fedpeft.tuning.peft_table import KINDS, PEFT_TYPES

OFFERED = sorted(name for name, row in METHODS.items() if len(row.refused) < len(KINDS))
NEEDS = {"trainable_tokens": {"token_indices": [1]}}


@pytest.mark.parametrize("method", OFFERED)
def test_resolving_twice_changes_nothing(method):
    once = resolve_options(method, NEEDS.get(method, {}))
    assert resolve_options(method, once) == once


@pytest.mark.parametrize("method", OFFERED)
def test_resolved_options_fit_a_config_file(method):
    simple = (bool, int, float, str, list)
    assert all(isinstance(v, simple) for v in resolve_options(method, {}).values())


def test_defaults_are_the_contracts():
    assert resolve_options("adapter", {}) == {
        "reduction": 8,
        "shared": True,
        "init": "identity",
        "after": [],
    }
    assert resolve_options("prompt", {}) == {"num_tokens": 10, "deep": True, "dropout": 0.1}


def test_short_forms_are_lora():
    assert resolve_options("dora", {})["use_dora"] is True
    assert resolve_options("rslora", {"r": 4})["use_rslora"] is True
    assert resolve_options("lora", {})["use_dora"] is False


def test_unknown_method_names_the_nearest():
    with pytest.raises(TuningError, match=r"'adaptor': no such method.*'adapter'"):
        resolve_options("adaptor", {})


def test_all_problems_are_reported_together():
    with pytest.raises(TuningError) as caught:
        resolve_options("prompt", {"num_token": 3, "deep": "yes", "dropout": 1.0})
    lines = str(caught.value).splitlines()
    assert lines == [
        "tuning.options.num_token: method prompt has no such option; did you mean 'num_tokens'?",
        "tuning.options.deep = 'yes': expected true or false",
        "tuning.options.dropout = 1.0: expected a probability, 0 <= p < 1",
    ]


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("adapter", {"reduction": 0}, "reduction = 0: expected a whole number >= 1"),
        ("adapter", {"reduction": True}, "reduction = True: expected a whole number"),
        ("adapter", {"init": "random"}, '"identity" or "zeros"'),
        ("adapter", {"after": "mlp"}, "a list of module paths"),
        ("prompt", {"num_tokens": -1}, "a whole number >= 0"),
        ("head", {"r": 1}, "r: method head has no such option; none is allowed here"),
        ("lora", {"rank": 4}, "rank: method lora has no such option"),
        ("lora", {"r": "8"}, "r = '8': expected int"),
        ("lora", {"r": 0}, "r = 0: expected a whole number >= 1"),
        ("lora", {"lora_dropout": 1.5}, "lora_dropout = 1.5: expected a probability"),
        ("lora", {"init_lora_weights": "pissa"}, "changes frozen weights.*true, false, gaussian"),
        ("lora", {"bias": "some"}, "bias = 'some': allowed are none, all, lora_only"),
        ("lora", {"task_type": "SEQ_CLS"}, "task_type: not supported: it follows from the model"),
        ("lora", {"modules_to_save": ["x"]}, "the head trains anyway"),
        ("lora", {"layer_replication": [[0, 1]]}, "changes frozen weights"),
        ("prompt_tuning", {"prompt_tuning_init": "TEXT"}, "allowed is RANDOM"),
        ("vera", {"r": 4, "d_initial": "x"}, "d_initial = 'x': expected float"),
    ],
)
def test_wrong_option_says_what_is_allowed(method, options, match):
    with pytest.raises(TuningError, match=match):
        resolve_options(method, options)


def test_listing_covers_every_type_without_importing_the_library():
    code = (
        "import sys; from fedpeft.tuning.methods import METHODS; "
        "print(len(METHODS), 'peft' in sys.modules, 'transformers' in sys.modules)"
    )
    source = str(Path(fedpeft.__file__).parents[1])
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.split() == [str(len(METHODS)), "False", "False"]


def test_listing_gives_reasons():
    assert not METHODS["lora"].refused
    assert "training loop" in METHODS["adalora"].refused["vit"]
    assert METHODS["prompt"].refused.keys() == {"bert", "llama", "plain"}


def test_table_knows_every_type_of_the_library():
    from peft import PeftType

    known = {member.value.lower() for member in PeftType}
    assert known == set(PEFT_TYPES)


@pytest.mark.parametrize("blocks", [(0, 2), (-1, 0), (1, 0)])
def test_range_outside_the_blocks_is_refused(make, blocks):
    with pytest.raises(TuningError, match="tiny-vit has blocks 0 to 1"):
        tune(make("vit"), TuningRequest("bias", blocks=blocks))


def test_range_needs_numbered_blocks(make):
    with pytest.raises(TuningError, match="tiny-plain has no known numbered blocks"):
        tune(make("plain"), TuningRequest("bias", blocks=(0, 0)))


@pytest.mark.parametrize("name", [n for n, row in METHODS.items() if row.source == "fedpeft"])
def test_a_method_that_merges_trains_the_models_own_tensors_alone(name, make):
    before = set(make("vit").module.state_dict())
    added = set(tune(make("vit"), TuningRequest(name)).model.state_dict()) - before
    assert METHODS[name].merges == (not added)
    assert any(not row.merges for row in METHODS.values())
