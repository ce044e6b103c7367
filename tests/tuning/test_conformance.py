"""The conformance suite: laws that hold for every tuning method on its kinds of models.

The methods that the project promises run by default; every other `peft` type runs with `-m slow`,
where the table of what is offered is computed again.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fedpeft.core.deltas import digest_of
from fedpeft.core.errors import TuningError
from fedpeft.models.tasks import mean_loss
from fedpeft.tuning import hf_peft
from fedpeft.tuning.methods import METHODS, TuningRequest, resolve_options, tune
from fedpeft.tuning.peft_table import KINDS, PEFT_TYPES
from fedpeft.tuning.prepared import head_parameters, wire_name
from fedpeft.tuning.tuned import TunedModel, read_delta, write_delta

OWN = ("scratch", "full", "head", "bias", "adapter", "prompt")
PROMISED = ("lora", "dora", "rslora", "ia3", "vera", "ln_tuning", "loha", "lokr", "oft")
TEXT = ("prefix_tuning", "prompt_tuning", "p_tuning")
UNCHANGED = ("full", "head", "bias", "adapter", *PROMISED)
SMALL: Mapping[str, Mapping[str, object]] = {
    "adalora": {"total_step": 10},
    "adamss": {"r": 8, "num_subspaces": 2},
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 10},
    "frod": {"progressbar": False},
    "gralora": {"r": 4},
    "hira": {"r": 4},
    "lily": {"r": 4},
    "miss": {"r": 8},
    "multitask_prompt_tuning": {"num_virtual_tokens": 4},
    "oft": {"oft_block_size": 4},
    "peanut": {"r": 4},
    "psoft": {"r": 4},
    "pvera": {"r": 4},
    "randlora": {"r": 4},
    "road": {"group_size": 4},
    "shira": {"r": 2},
    "supertuning": {"sparsity": 0.9},
    "tinylora": {"u": 4},
    "trainable_tokens": {"token_indices": [1, 2]},
    "unilora": {"theta_d_length": 16},
    "vblora": {"vector_length": 4, "num_vectors": 16},
    "vera": {"r": 4},
    "waveft": {"n_frequency": 10},
}
"""Options that fit models of width 32."""


@dataclass(frozen=True)
class Case:
    """A method on a kind of model, with the functions that make model and batch."""

    method: str
    kind: str
    make: Callable[..., object]
    batch_for: Callable[[str], Mapping[str, Tensor]]

    def build(self, *, meta: bool = False, seed: int = 1) -> TunedModel:
        loaded = self.make(self.kind, meta=meta)
        return tune(loaded, TuningRequest(self.method, self.options, seed=seed))

    @property
    def options(self) -> dict[str, object]:
        options = dict(SMALL.get(self.method, {}))
        if self.method == "bias" and self.kind == "llama":
            options["add_missing"] = True
        if self.kind == "plain" and self.method == "adapter":
            options["after"] = ["second"]
        if self.kind == "plain" and METHODS[self.method].source == "peft":
            options["target_modules"] = ["norm"] if self.method == "ln_tuning" else ["second"]
        return options

    def outputs(self, tuned: TunedModel) -> Tensor:
        batch = self.batch_for(self.kind)
        with torch.no_grad():
            return tuned.model(**{k: v for k, v in batch.items() if k != "labels"}).logits

    def train(self, tuned: TunedModel, *, parameters: object = None) -> None:
        optimizer = torch.optim.SGD(parameters or tuned.parameters.values(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            mean_loss(tuned.loaded.task.score(tuned.model, self.batch_for(self.kind))).backward()
            optimizer.step()


def trains_what_it_says(case: Case) -> None:
    """Only the delta requires gradients, and each part of it gets a finite one."""
    tuned = copy.deepcopy(_built(case))
    ids = {id(parameter) for parameter in tuned.parameters.values()}
    assert tuned.spec.num_params > 0
    assert ids == {id(p) for p in tuned.model.parameters() if p.requires_grad}
    assert not tuned.model.training
    mean_loss(tuned.loaded.task.score(tuned.model, case.batch_for(case.kind))).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in tuned.parameters.values())


def leaves_the_rest(case: Case) -> None:
    """Frozen tensors are bit-identical after training, and the delta is not."""
    tuned = copy.deepcopy(_built(case))
    frozen = {n: p.clone() for n, p in tuned.model.named_parameters() if not p.requires_grad}
    before = read_delta(tuned)
    case.train(tuned)
    live = dict(tuned.model.named_parameters())
    assert all(torch.equal(live[name], value) for name, value in frozen.items())
    assert not torch.equal(read_delta(tuned), before)


def keeps_pretrained_tensors(case: Case) -> None:
    """Tuning by itself changes no pretrained tensor."""
    if case.method == "scratch":
        return
    loaded = case.make(case.kind)
    before = [(parameter, parameter.detach().clone()) for parameter in loaded.module.parameters()]
    tuned = tune(loaded, TuningRequest(case.method, case.options, seed=1))
    live = {id(parameter) for parameter in tuned.model.parameters()}
    assert all(id(p) in live and torch.equal(p, value) for p, value in before)


def follows_the_seed(case: Case) -> None:
    """Two builds under one seed are one model, delta and function."""
    first, second = _built(case), case.build()
    assert first.spec.digest == second.spec.digest
    assert digest_of(read_delta(first)) == digest_of(read_delta(second))
    assert torch.equal(case.outputs(first), case.outputs(second))


def travels_as_delta(case: Case) -> None:
    """Seed and delta are the whole state: with them, a fresh build is the trained model."""
    trained = copy.deepcopy(_built(case))
    case.train(trained)
    fresh = case.build()
    assert not torch.equal(case.outputs(fresh), case.outputs(trained)) or _is_silent(case)
    write_delta(fresh, read_delta(trained))
    assert torch.equal(case.outputs(fresh), case.outputs(trained))


def plans_without_weights(case: Case) -> None:
    """A model on `meta` has the delta of the real one."""
    assert case.build(meta=True).spec == _built(case).spec


def goes_to_workers(case: Case) -> None:
    """A pickled or copied model computes the same, and its delta is its own."""
    tuned = _built(case)
    expected = case.outputs(tuned)
    for twin in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert torch.equal(case.outputs(twin), expected)
        write_delta(twin, read_delta(twin) + 1.0)
        assert not torch.equal(case.outputs(twin), expected) or _is_silent(case)
    assert torch.equal(case.outputs(tuned), expected)


def draws_nothing_in_training(case: Case) -> None:
    """Training mode computes what eval mode computes: no mask or sample from a global generator."""
    tuned = copy.deepcopy(_built(case))
    case.train(tuned)
    expected = case.outputs(tuned)
    tuned.model.train()
    assert torch.equal(case.outputs(tuned), expected)


def has_names_of_ours(case: Case) -> None:
    """Wire names show neither the library's paths nor those of `transformers`."""
    names = _built(case).spec.names
    leaks = ("default", "base_layer", "base_model", "layers.", "self_attn", "encoder.layer", "_A")
    if case.kind != "plain":
        ours = [name.replace("ln_tuning_layers.", "") for name in names]
        assert not [name for name in ours for leak in leaks if leak in name]


def starts_from_one_head(case: Case) -> None:
    """The head is in the delta, with the values that loading gave it."""
    loaded = case.make(case.kind)
    if not loaded.task.new_head:
        return
    parameters = _built(case).parameters
    for path in head_parameters(loaded):
        name = wire_name(loaded, path)
        assert torch.equal(parameters[name], loaded.module.get_parameter(path))


LAWS = (
    trains_what_it_says,
    leaves_the_rest,
    keeps_pretrained_tensors,
    follows_the_seed,
    travels_as_delta,
    plans_without_weights,
    goes_to_workers,
    draws_nothing_in_training,
    has_names_of_ours,
    starts_from_one_head,
)


def _is_silent(case: Case) -> bool:
    """Whether a batch may be independent of the delta: chosen tokens need not occur in it."""
    return case.method == "trainable_tokens"


@functools.cache
def _built(case: Case) -> TunedModel:
    """A build of a case that all laws share; none may change it."""
    return case.build()


def _promised() -> Iterator[tuple[str, str]]:
    for kind in KINDS:
        for method in (*OWN, *PROMISED, *TEXT):
            if kind not in METHODS[method].refused:
                yield method, kind


@pytest.fixture
def case(request, make, batch_for) -> Case:
    return Case(*request.param, make, batch_for)


def _laws() -> Iterator[object]:
    """Every method with every law on one of its kinds of models, which take turns; then the rest.

    A method has more laws than kinds, so that each kind meets each method, and each law.
    """
    kinds: dict[str, list[str]] = {}
    for method, kind in _promised():
        kinds.setdefault(method, []).append(kind)
    for turn, (method, own) in enumerate(kinds.items()):
        for number, law in enumerate(LAWS):
            for kind in own:
                quick = kind == own[(turn + number) % len(own)]
                name = f"{method}-{kind}-{law.__name__}"
                marks = [] if quick else [pytest.mark.slow]
                yield pytest.param((method, kind), law, marks=marks, id=name)


@pytest.mark.parametrize(("case", "law"), list(_laws()), indirect=["case"])
def test_promised_method_keeps_law(case, law):
    law(case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", UNCHANGED)
def test_function_is_unchanged_at_start(method, kind, make, batch_for):
    case = Case(method, kind, make, batch_for)
    module = make(kind).module
    batch = {name: v for name, v in batch_for(kind).items() if name != "labels"}
    torch.testing.assert_close(
        case.outputs(_built(case)), module(**batch).logits, atol=1e-6, rtol=0, check_stride=False
    )


@pytest.mark.parametrize("method", ["scratch", "prompt"])
def test_function_changes_at_start_where_nothing_is_claimed(method, make, batch_for):
    case = Case(method, "vit", make, batch_for)
    expected = make("vit").module(pixel_values=batch_for("vit")["pixel_values"]).logits
    assert not torch.allclose(case.outputs(_built(case)), expected, atol=1e-6)


def test_frozen_law_fails_when_backbone_trains(make, batch_for):
    case = Case("bias", "vit", make, batch_for)
    tuned = copy.deepcopy(_built(case))
    weight = tuned.model.vit.layers[0].mlp.fc1.weight.requires_grad_(True)
    before = weight.detach().clone()
    case.train(tuned, parameters=list(tuned.model.parameters()))
    assert not torch.equal(weight, before)


def test_another_seed_gives_another_start(make, batch_for):
    case = Case("lora", "vit", make, batch_for)
    assert not torch.equal(read_delta(_built(case)), read_delta(case.build(seed=2)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", sorted(PEFT_TYPES))
def test_table_is_what_the_laws_say(method, kind, make, batch_for, monkeypatch):
    monkeypatch.setattr(hf_peft, "verdict", lambda name, loaded: "")
    monkeypatch.setattr("fedpeft.tuning.methods.KINDS", (*KINDS, "none"))
    case = Case(method, kind, make, batch_for)
    broken = _first_broken_law(case)
    refused = PEFT_TYPES[method].refused.get(kind, "")
    assert bool(broken) == bool(refused), f"laws say {broken!r}, the table says {refused!r}"


def _first_broken_law(case: Case) -> str:
    try:
        for law in LAWS:
            law(case)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("method", sorted(METHODS))
def test_vmaps_is_what_torch_func_does(method, make, batch_for):
    kind = next((kind for kind in KINDS if kind not in METHODS[method].refused), "")
    if kind and method not in ("trainable_tokens",):
        assert METHODS[method].vmaps == _vmaps(Case(method, kind, make, batch_for))


def _vmaps(case: Case) -> bool:
    """Whether two clients in one pass get the results that each gets alone."""
    tuned = _built(case)
    paths = {id(p): path for path, p in tuned.model.named_parameters()}
    one = {paths[id(p)]: p.detach() for p in tuned.parameters.values()}
    both = {path: torch.stack([value, value + 0.01]) for path, value in one.items()}
    batch = case.batch_for(case.kind)
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "attention_mask")}

    def loss(delta: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(tuned.model, delta, (), inputs).logits.square().mean()

    try:
        turns = {name: torch.stack([value, value.flip(0)]) for name, value in inputs.items()}
        grads = torch.func.vmap(torch.func.grad(loss))(both, turns)
    except (RuntimeError, NotImplementedError):
        return False
    second = {name: value[1] for name, value in turns.items()}
    alone = torch.func.grad(loss)({path: value[1] for path, value in both.items()}, second)
    return all(torch.allclose(grads[path][1], alone[path], atol=1e-5) for path in one)


def test_refused_type_says_why(make):
    with pytest.raises(TuningError, match=r"tiny-vit.*token embeddings.*choose `prompt`"):
        tune(make("vit"), TuningRequest("prefix_tuning"))


def test_type_that_no_model_takes_is_refused_without_a_model():
    with pytest.raises(TuningError, match=r"'adalora': not supported.*inside the training loop"):
        resolve_options("adalora", {})
