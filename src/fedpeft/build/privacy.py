"""From `[privacy]` to stages and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedpeft.client.private import GradientPrivacy
from fedpeft.core.errors import PrivacyError
from fedpeft.experiment.epsilon import is_private, paper_deviation
from fedpeft.experiment.experiment import Experiment
from fedpeft.tuning.tuned import TunedModel
from fedpeft.wire import private_stages as privacy
from fedpeft.wire.private_stages import Guard
from fedpeft.wire.stages import Stage

__all__ = ["gradient_privacy", "private_stages", "refuse_model"]


def gradient_privacy(experiment: Experiment) -> GradientPrivacy | None:
    """Say how a resolved experiment's clients clip and noise their gradients; None: not at all."""
    chosen = experiment.privacy
    if chosen.mode == "example":
        multiplier = chosen.noise_multiplier or 0.0
        deviation = multiplier * chosen.clip_norm if multiplier else 0.0
        return GradientPrivacy("example", chosen.clip_norm, deviation, chosen.reproducible_noise)
    if chosen.mode == "paper":
        return GradientPrivacy(chosen.variant, chosen.clip_norm, paper_deviation(experiment))
    return None


def refuse_model(experiment: Experiment, tuned: TunedModel) -> None:
    """Refuse a model that sends what no stage protects.

    Raises:
      PrivacyError: for travelling buffers or batch statistics.
    """
    if is_private(experiment) and (tuned.buffer_spec.names or tuned.trains_statistics):
        raise PrivacyError(
            f"privacy.mode: found {experiment.privacy.mode!r} with BatchNorm that trains; its "
            "statistics mix the examples of a batch and travel outside clip and noise. Use another "
            "tuning.method, or a model with layer normalisation"
        )


def private_stages(experiment: Experiment) -> tuple[Stage, ...]:
    """Return the privacy stage of a resolved experiment, the first of the chain; () without one."""
    chosen = experiment.privacy
    guard = Guard(chosen.clip_norm, chosen.noise_multiplier or 0.0, chosen.reproducible_noise)
    build = _STAGES.get(chosen.mode)
    return (build(guard),) if build else ()


_STAGES: Mapping[str, Callable[[Guard], Stage]] = {
    "central": privacy.central,
    "local": privacy.local,
    "example": privacy.example,
}
