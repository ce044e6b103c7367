"""Helpers for loading: silence `transformers`, switch off dropout, keep nothing between passes,
let statistics remember more than the last batch.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_LARGEST_MOMENTUM, _USUAL_MOMENTUM = 0.5, 0.1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the log, the progress bars and the warnings of `transformers` inside the block.

    The caller checks for itself what they would report (a new head, unused weights).
    """
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            logging.set_verbosity(logging.CRITICAL)
            logging.disable_progress_bar()
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


def zero_dropout(part: object) -> None:
    """Set every dropout probability of a config or of a module tree to zero, in place.

    This covers dropout layers, the attributes in which attention and recurrent layers keep a
    probability, and the module's config.
    """
    if not isinstance(part, nn.Module):
        _zero_attributes(part)
        return
    for module in part.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero_attributes(module)
    if getattr(part, "config", None) is not None:
        _zero_attributes(part.config)


def slow_statistics(part: nn.Module) -> None:
    """Let the running statistics of BatchNorm remember more batches than the last, in place.

    The MobileNets of `transformers` have 0.997 as momentum. That is TensorFlow's decay; torch's
    momentum is its complement, so that a model whose statistics train would be evaluated with those
    of its last batch. Any momentum above 0.5 becomes torch's default of 0.1.
    """
    for module in part.modules():
        if isinstance(module, _BatchNorm) and (module.momentum or 0.0) > _LARGEST_MOMENTUM:
            module.momentum = _USUAL_MOMENTUM


def forget_biases(part: nn.Module) -> None:
    """Let modules that keep position biases between forward passes make them anew each time.

    LeViT keeps them in eval mode, where they would hide what is trained or written into them.
    """
    for module in part.modules():
        if hasattr(module, "attention_bias_cache"):
            module.register_forward_pre_hook(_forget)


def _forget(module: nn.Module, inputs: object) -> None:
    module.attention_bias_cache = {}  # type: ignore[assignment]  # of the library's own class


def _zero_attributes(holder: object) -> None:
    for name, value in list(getattr(holder, "__dict__", {}).items()):
        is_number = isinstance(value, float | int) and not isinstance(value, bool)
        if is_number and _PROBABILITY.search(name):
            with contextlib.suppress(AttributeError):
                setattr(holder, name, type(value)(0))  # some configs check the type


_PROBABILITY = re.compile(r"dropout|pdrop|drop_path|drop_prob|layerdrop")
