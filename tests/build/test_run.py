"""What every method shares under one seed, and what a run refuses."""

from __future__ import annotations

import pytest
import torch

from fedpeft.build.model import sketch_run
from fedpeft.build.run import build_run, scored_once
from fedpeft.core.errors import ConfigError
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.rounds.round import run_round

QUICK = ["engine.workers=1", "client.epochs=1", "model.name=preset:tiny-vit"]


def built(*overrides):
    return build_run(resolve(read_experiment(DIGITS, [*QUICK, *overrides])))


@pytest.fixture(scope="module")
def bias():
    return built("tuning.method=bias")


@pytest.mark.parametrize("method", ["head", "adapter", "prompt", "lora", "full"])
def test_methods_share_partition_schedule_and_head(bias, method):
    other = built(f"tuning.method={method}")
    assert other.data.clients.keys() == bias.data.clients.keys()
    for name, rows in bias.data.clients.items():
        assert rows.tolist() == other.data.clients[name].tolist()
    clients = bias.engine.clients()
    for number in (1, 2, 3):
        assert bias.plan.choose(clients, number, bias.start) == other.plan.choose(
            clients, number, other.start
        )
    heads = [run.tuned.parameters["head.weight"] for run in (bias, other)]
    assert torch.equal(heads[0], heads[1])


def test_another_seed_changes_partition_schedule_and_head(bias):
    other = built("tuning.method=bias", "seed=2")
    sizes = [[len(rows) for rows in run.data.clients.values()] for run in (bias, other)]
    assert sizes[0] != sizes[1]
    clients = bias.engine.clients()
    assert bias.plan.choose(clients, 1, bias.start) != other.plan.choose(clients, 1, other.start)
    heads = [run.tuned.parameters["head.weight"] for run in (bias, other)]
    assert not torch.equal(heads[0], heads[1])


def test_a_round_moves_the_delta_and_nothing_else(bias):
    own = set(map(id, bias.tuned.parameters.values()))
    frozen = {n: p.clone() for n, p in bias.tuned.model.named_parameters() if id(p) not in own}
    state, record = run_round(bias.start, bias.plan, bias.engine)
    assert not record.failures and not torch.equal(state.delta, bias.start.delta)
    for name, parameter in bias.tuned.model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name])
    assert len(frozen) > 10


def test_clients_can_be_evaluated(bias):
    run = built("federation.evaluate_clients=true")
    by_client = run.evaluate_clients(run.start)
    assert by_client.keys() == run.data.clients.keys()
    assert all(0 <= accuracy <= 1 for accuracy in by_client.values())


def test_figures_of_all_and_of_clients_share_one_evaluation():
    asked = []
    score = scored_once(lambda state: asked.append(state) or len(asked))
    one, other = object(), object()
    assert [score(one), score(one), score(other), score(one)] == [1, 1, 2, 3]


def test_sketches_count_what_runs_count(bias):
    sketch = sketch_run(read_experiment(DIGITS, [*QUICK, "tuning.method=bias"]))
    assert sketch.tuned.spec.digest == bias.tuned.spec.digest
    assert sketch.total_parameters == sum(p.numel() for p in bias.tuned.model.parameters())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.num_labels=3", "model.num_labels: found 3; digits has 10 labels"),
        ("data.partition.min_examples=10", "min_examples = "),
        ("data.partition.clients=2000", "2000"),
        ("data.label=nope", "nope"),
        ("data.source=nothing.csv", "there is no file or folder 'nothing.csv'"),
        ("model.name=preset:vit-bas", "vit-bas"),
        ("engine.device=cuda", "sees no GPU here"),
        ("tuning.blocks=[0,99]", "99"),
    ],
)
def test_what_a_run_cannot_do_is_one_clear_error(override, words):
    if override.endswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError) as caught:
        built(override)
    assert words in str(caught.value)
