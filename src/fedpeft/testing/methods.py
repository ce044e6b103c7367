"""The laws of every tuning method."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from fedpeft.models.loaded import LoadedModel
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import Batch, mean_loss
from fedpeft.tuning.methods import TuningMethod, TuningRequest, tune
from fedpeft.tuning.tuned import TunedModel, read_delta, write_delta


def check_method(
    method: TuningMethod,
    *,
    name: str = "own",
    options: Mapping[str, object] | None = None,
    load: Callable[[], LoadedModel] | None = None,
    batch: Batch | None = None,
) -> None:
    """Check the laws of a tuning method on a small model.

    Two builds with the same seed are equal; the delta and nothing else requires gradients; a delta
    that is written is read back unchanged; a training step changes the delta and nothing else;
    resolving options twice equals resolving them once.

    >>> from fedpeft.tuning.methods import METHODS
    >>> check_method(METHODS["bias"], name="bias")

    Args:
      method: the method.
      name: name of the method in experiments.
      options: options of the method.
      load: function that returns a model; by default a vision transformer for pictures of 8 x 8
        pixels and 10 classes.
      batch: a batch for that model; by default four random pictures.

    Raises:
      AssertionError: if a law does not hold; the message names it.
    """
    make = load or _tiny_vit
    request = TuningRequest(name, options or {}, seed=1, rule=method)
    found = method.resolve(request.options)
    assert not found.problems, f"options: {found.problems}"
    twice = method.resolve(found.options)
    assert dict(twice.options) == dict(found.options), "options: resolving them twice changes them"
    one, two = tune(make(), request), tune(make(), request)
    assert one.spec == two.spec, "build: two builds have different deltas"
    assert torch.equal(read_delta(one), read_delta(two)), "build: one seed gives two starts"
    live = {id(parameter) for parameter in one.parameters.values()}
    trained = {id(p) for p in one.model.parameters() if p.requires_grad}
    assert trained == live, "build: what requires gradients is not what is sent"
    target = torch.randn(one.spec.num_params, generator=torch.Generator().manual_seed(0))
    write_delta(one, target)
    assert torch.equal(read_delta(one), target), "delta: what is read is not what was written"
    _check_step(two, _four_pictures() if batch is None else batch)


def _check_step(tuned: TunedModel, batch: Batch) -> None:
    frozen = {name: p for name, p in tuned.model.named_parameters() if not p.requires_grad}
    before, start = {name: p.clone() for name, p in frozen.items()}, read_delta(tuned)
    keys = torch.arange(len(batch["labels"]))
    with tuned.dropout.using(keys):
        loss = mean_loss(tuned.loaded.task.score(tuned.model, batch))
    assert bool(torch.isfinite(loss)), "training: the loss is not finite"
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types here
    with torch.no_grad():
        for parameter in tuned.parameters.values():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
    assert not torch.equal(read_delta(tuned), start), "training: a step does not move the delta"
    same = all(torch.equal(p, before[name]) for name, p in frozen.items())
    assert same, "training: a step moves what is frozen"


def _tiny_vit() -> LoadedModel:
    return load_model(ModelRequest("preset:tiny-vit", num_labels=10, seed=1))


def _four_pictures() -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(4, 1, 8, 8, generator=generator)
    return {"pixel_values": pixels, "labels": torch.arange(4)}
