"""Theorem 1 on a finished run: the bound on its loss, its parts and the slack, round by round.

    L(w_t) <= L(w_0) + <g, w_t - w_0> + P
    P = P_theta + P_delta = beta/2 (|dtheta|^2 + |ddelta|^2)

w_0 and w_t are the global models before round 1 and after round t; L is the mean loss on a fixed
sample of the training data, in eval mode, without augmentation. If a method freezes the backbone,
P_theta = 0 and delta is everything that is trained; if it trains the backbone, theta is everything
but the head. Beta is measured for the *joint* Hessian, frozen parameters included, on the segment
from w_0 to w_t (see `studies.theorem.smoothness`), so this is a check, not a proof. Arithmetic is
in float64 (some models compute a softmax in float32); attention is eager, because fused kernels
have no second derivatives.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedpeft.build.model import load_run_data, model_request, tuning_request
from fedpeft.core import seeds
from fedpeft.core.errors import ConfigError, RunFolderError
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.experiment.resolve import Resolved
from fedpeft.models.source import load_model
from fedpeft.models.tasks import Batch, Task
from fedpeft.pictures.style import write_picture
from fedpeft.runs.deltas import read_kept
from fedpeft.runs.files import write_json
from fedpeft.runs.folder import RunFolder, read_summary, stored_experiment
from fedpeft.studies.theorem.picture import draw_theorem
from fedpeft.studies.theorem.smoothness import (
    Bound,
    Parts,
    Search,
    beta_on_segment,
    bound_between,
    peak_at,
)
from fedpeft.tuning.methods import tune
from fedpeft.tuning.tuned import TunedModel, write_delta

_WHOLE = ("full", "scratch")
_CHUNK = 128
_CONTROL_BETA = 4.0


@dataclass(frozen=True)
class TheoremRequest:
    """The options of a check.

    Attributes:
      sample: number of training examples in the mean loss, drawn with the run's seed.
      every: interval of the checked rounds; the last round is always checked.
      search: how beta is estimated.
    """

    sample: int = 512
    every: int = 1
    search: Search = dataclasses.field(default_factory=Search)


@dataclass(frozen=True)
class _Space:
    """The parameters of a model as one flat point.

    Attributes:
      tuned: the model, in float64.
      live: name -> parameter: those of theta, then those of delta.
      num_theta: number of elements of theta.
    """

    tuned: TunedModel
    live: Mapping[str, Tensor]
    num_theta: int

    def point(self, flat: Tensor) -> Tensor:
        """Write a delta into the model, and return its point."""
        write_delta(self.tuned, flat)
        return torch.cat([tensor.detach().reshape(-1) for tensor in self.live.values()])


class _Loss(nn.Module):
    """A module of model and task that maps a batch to its summed loss and its count."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the batch's summed loss and its number of predictions."""
        scores = self.task.score(self.model, batch)
        return scores.loss_B.sum(), scores.count_B.sum()


def check_theorem(
    run: Path, request: TheoremRequest, on_round: Callable[[int], None] = lambda number: None
) -> dict[str, Any]:
    """Evaluate the bound on a run's rounds; write `theorem.json`, `.svg` and `.png` beside it.

    Args:
      run: the folder of a finished run made with `run.keep_deltas = true`.
      request: the options.
      on_round: called with each round's number before it is checked.

    Returns:
      The content of `theorem.json`.

    Raises:
      RunFolderError: if the run is not finished, or has not kept its deltas.
      ConfigError: if the model has BatchNorm statistics, which the theorem does not cover.
    """
    folder = RunFolder(run)
    experiment = stored_experiment(folder)
    if not experiment.run.keep_deltas:
        raise RunFolderError(
            f"{run}: the run has not kept its deltas (run.keep_deltas is false); "
            "make it again with `--set run.keep_deltas=true`"
        )
    rounds = int(str(read_summary(folder)["rounds"]))
    tuned = _load(experiment)
    space = _space_of(tuned)
    parts = _parts(space, _batches(experiment, request.sample))
    start = space.point(read_kept(folder, tuned, 0))
    peak = peak_at(parts, start, request.search)
    found = []
    for number in _chosen(rounds, request.every):
        on_round(number)
        end = space.point(read_kept(folder, tuned, number))
        beta = beta_on_segment(parts, start, end, request.search, peak)
        bound = bound_between(parts, (start, end), space.num_theta, beta=beta)
        found.append({"round": number, **_figures(bound)})
    result = _result(experiment, request, space, found)
    write_picture(draw_theorem(result), run / "theorem")
    write_json(run / "theorem.json", result)
    return result


def control() -> dict[str, bool]:
    """Run the negative control: on a quadratic the bound holds with beta, not with beta / 100.

    Returns:
      `holds`, `equality` (the Hessian is beta times the identity) and `hundredth_holds`, which
      must be false.
    """
    ends = (torch.ones(6, dtype=torch.float64), torch.arange(6, dtype=torch.float64))
    bound = bound_between([lambda w: 0.5 * _CONTROL_BETA * w @ w], ends, 2, beta=_CONTROL_BETA)
    small = dataclasses.replace(bound, beta=_CONTROL_BETA / 100)
    return {
        "holds": bound.holds,
        "equality": abs(bound.slack) <= 1e-12 * abs(bound.loss_end),
        "hundredth_holds": small.holds,
    }


def _load(experiment: Experiment) -> TunedModel:
    resolved = Resolved(experiment)
    request = model_request(resolved, experiment.model.num_labels)
    loaded = load_model(dataclasses.replace(request, attention="eager"))
    tuned = tune(loaded, tuning_request(resolved))
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in tuned.model.modules()):
        raise ConfigError(
            f"theorem: {experiment.model.name} has BatchNorm statistics, which are no part of "
            "theta or delta; use a run of a model without them"
        )
    return tuned


def _space_of(tuned: TunedModel) -> _Space:
    """Make a model float64 and order its parameters: the backbone's, then the delta's."""
    head = tuple(f"{path}." for path in tuned.loaded.head)
    live = dict(tuned.model.double().eval().named_parameters())
    trained = {id(parameter) for parameter in tuned.parameters.values()}
    whole = tuned.method in _WHOLE

    def is_delta(name: str) -> bool:
        return id(live[name]) in trained and (not whole or name.startswith(head))

    ordered = {name: live[name] for name in sorted(live, key=is_delta)}
    num_theta = sum(tensor.numel() for name, tensor in live.items() if not is_delta(name))
    return _Space(tuned, ordered, num_theta)


def _parts(space: _Space, batches: Sequence[Batch]) -> Parts:
    """Return the mean loss on some batches as a function of all parameters, batch by batch."""
    module = _Loss(space.tuned.model, space.tuned.loaded.task)
    sizes = [tensor.numel() for tensor in space.live.values()]
    with torch.no_grad():
        total = sum(float(module(batch)[1]) for batch in batches)

    def loss(batch: Batch, point: Tensor) -> Tensor:
        flat = zip(space.live.items(), torch.split(point, sizes), strict=True)
        tensors = {f"model.{name}": part.view(old.shape) for (name, old), part in flat}
        summed: Tensor = torch.func.functional_call(module, tensors, (batch,))[0]
        return summed / total

    return [partial(loss, batch) for batch in batches]


def _batches(experiment: Experiment, sample: int) -> list[Batch]:
    """Draw training examples with the run's seed; floating inputs are float64."""
    examples = load_run_data(Resolved(experiment)).train
    generator = seeds.generator(experiment.seed, "theorem", "sample")
    rows = torch.randperm(len(examples), generator=generator)[:sample].sort().values
    batches = [examples.batch(chunk.tolist(), seed=None) for chunk in torch.split(rows, _CHUNK)]
    return [
        {name: x.double() if x.is_floating_point() else x for name, x in batch.items()}
        for batch in batches
    ]


def _chosen(rounds: int, every: int) -> list[int]:
    return sorted({*range(every, rounds + 1, every), rounds})


def _figures(bound: Bound) -> dict[str, Any]:
    hundredth = dataclasses.replace(bound, beta=bound.beta / 100)
    return {
        **dataclasses.asdict(bound),
        "p_theta": bound.p_theta,
        "p_delta": bound.p_delta,
        "p": bound.p_theta + bound.p_delta,
        "bound": bound.value,
        "remainder": bound.remainder,
        "slack": bound.slack,
        "holds": bound.holds,
        "hundredth_holds": hundredth.holds,
    }


_NOTE = "beta is estimated on a segment: this checks the bound and does not prove it"
_NOT_PRIVATE = "; not private: losses and gradients are those of training examples, without noise"


def _result(
    experiment: Experiment, request: TheoremRequest, space: _Space, found: list[dict[str, Any]]
) -> dict[str, Any]:
    num_theta = space.num_theta
    return {
        "name": experiment.name,
        "method": experiment.tuning.method,
        "sample": request.sample,
        "beta_search": dataclasses.asdict(request.search),
        "theta_parameters": num_theta,
        "delta_parameters": sum(p.numel() for p in space.tuned.model.parameters()) - num_theta,
        "theta_is_frozen": space.tuned.method not in _WHOLE,
        "control": control(),
        "holds": all(row["holds"] for row in found),
        "rounds": found,
        "note": _NOTE + (_NOT_PRIVATE if PRIVACY_MODES[experiment.privacy.mode].note else ""),
    }
