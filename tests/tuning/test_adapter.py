"""Adapters: the formula, their position, the two initialisations, and errors."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fedpeft.core.errors import TuningError
from fedpeft.models.tasks import mean_loss
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.tuned import read_delta, write_delta


@pytest.fixture
def images(batch_for):
    return {"pixel_values": batch_for("vit")["pixel_values"]}


def steps(tuned, batch, count=2):
    optimizer = torch.optim.SGD(tuned.parameters.values(), lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        mean_loss(tuned.loaded.task.score(tuned.model, batch)).backward()
        optimizer.step()


def randomised(tuned):
    generator = torch.Generator().manual_seed(3)
    write_delta(tuned, 0.2 * torch.randn(tuned.spec.num_params, generator=generator))
    return tuned


def test_output_of_each_mlp_gets_the_bottleneck(make, images):
    tuned = randomised(tune(make("vit"), TuningRequest("adapter", {"reduction": 4})))
    mlp = tuned.model.vit.layers[1].mlp
    seen = []
    mlp.fc2.register_forward_hook(lambda module, inputs, output: seen.append(output))
    mlp.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tuned.model(**images)
    p = tuned.parameters
    inner = F.gelu(seen[0] @ p["adapter.down.weight"].mT + p["adapter.down.bias"])
    expected = seen[0] + inner @ p["adapter.up.weight"].mT + p["adapter.up.bias"]
    assert p["adapter.down.weight"].shape == (8, 32)
    torch.testing.assert_close(seen[1], expected)


def test_zero_start_trains_only_the_last_bias(make, batch_for):
    tuned = tune(make("vit"), TuningRequest("adapter", {"init": "zeros"}))
    steps(tuned, batch_for("vit"))
    moved = {name for name, p in tuned.parameters.items() if p.any() and "adapter" in name}
    assert moved == {"adapter.up.bias"}


def test_identity_start_trains_all_four(make, batch_for):
    tuned = tune(make("vit"), TuningRequest("adapter"))
    before = {name: p.detach().clone() for name, p in tuned.parameters.items()}
    steps(tuned, batch_for("vit"))
    assert all(not torch.equal(p, before[name]) for name, p in tuned.parameters.items())


def test_one_adapter_a_block_has_numbered_names(make):
    tuned = tune(make("vit"), TuningRequest("adapter", {"shared": False}))
    names = {name.rpartition(".down")[0] for name in tuned.spec.names if "down" in name}
    assert names == {"adapter.0", "adapter.1"}


def test_range_of_blocks_leaves_other_blocks_alone(make, images):
    tuned = randomised(
        tune(make("vit"), TuningRequest("adapter", {"shared": False}, blocks=(1, 1)))
    )
    assert {n.split(".")[1] for n in tuned.spec.names if n.startswith("adapter")} == {"1"}
    expected = make("vit").module(**images, output_hidden_states=True).hidden_states
    hidden = tuned.model(**images, output_hidden_states=True).hidden_states
    assert torch.equal(hidden[1], expected[1])
    assert not torch.allclose(hidden[-1], expected[-1])


def test_functional_call_equals_the_module(make, images):
    tuned = tune(make("vit"), TuningRequest("adapter", {"shared": False}))
    paths = {id(p): path for path, p in tuned.model.named_parameters()}
    changed = copy.deepcopy(tuned)
    write_delta(changed, read_delta(tuned) + 0.1)
    delta = {paths[id(p)]: p.detach() + 0.1 for p in tuned.parameters.values()}
    called = torch.func.functional_call(tuned.model, delta, (), images).logits
    assert torch.equal(called, changed.model(**images).logits)


def test_reduction_beyond_the_width_leaves_one_unit(make):
    tuned = tune(make("vit"), TuningRequest("adapter", {"reduction": 1000}))
    assert tuned.parameters["adapter.down.weight"].shape == (1, 32)


def test_plain_module_needs_after(make):
    with pytest.raises(TuningError, match=r"name the modules.*`after = .*'first', 'norm'"):
        tune(make("plain"), TuningRequest("adapter"))


@pytest.mark.parametrize(
    ("after", "match"),
    [
        (["nowhere"], "names 'nowhere', which tiny-normed does not have"),
        (["bn"], "output width of module .bn. is unknown"),
    ],
)
def test_wrong_site_is_named(make, after, match):
    with pytest.raises(TuningError, match=match):
        tune(make("normed"), TuningRequest("adapter", {"after": after}))


def test_sites_of_two_widths_cannot_share(make):
    sites = ["first", "top"]
    with pytest.raises(TuningError, match=r"widths \[3, 32\] cannot share.*shared = false"):
        tune(make("plain"), TuningRequest("adapter", {"after": sites}))
    options = {"after": sites, "shared": False}
    assert tune(make("plain"), TuningRequest("adapter", options)).spec.num_params > 0


def test_output_of_another_shape_is_an_error(make, images):
    tuned = tune(make("vit"), TuningRequest("adapter", {"after": ["vit.layers.0.attention"]}))
    with pytest.raises(
        TuningError, match=r"'vit.layers.0.attention' returned tuple; an adapter needs"
    ):
        tuned.model(**images)


def test_after_and_blocks_exclude_each_other(make):
    request = TuningRequest("adapter", {"after": ["vit.layers.0.mlp"]}, blocks=(0, 0))
    with pytest.raises(TuningError, match="both say where adapters go"):
        tune(make("vit"), request)
