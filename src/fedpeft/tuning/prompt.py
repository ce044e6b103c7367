"""Visual prompt tuning: learned tokens at the end of the sequence of an image transformer.

    deep      before block l: [cls, patches] -> [cls, patches, P_l];  after it: cut off
    shallow   before the first block: [cls, patches] -> [cls, patches, P];  after the last: cut off

A VideoMAE has no cls token: its patches are tubelets, and its mean pooling comes after the prompts
are cut off. Tokens start from U(-v, v), v = sqrt(6 / (channels * frames_of_a_tubelet *
patch_height * patch_width + d)). In training, dropout is applied to them, with a mask that depends
on the example alone. Legend: B examples, N tokens, P prompt tokens, D width.

Reference: Jia et al., Visual Prompt Tuning, ECCV 2022.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedpeft.core.errors import TuningError
from fedpeft.core.text import plain
from fedpeft.tuning.dropout import DropoutKeys, KeyedDropout
from fedpeft.tuning.prepared import (
    PROMPT_ROOT,
    ModelToTune,
    PreparedModel,
    chosen_blocks,
    head_parameters,
    is_meta,
)
from fedpeft.tuning.targets import block_paths


class Prompt(nn.Module):
    """The learned tokens: `tokens` [P, D], or [blocks, P, D] for deep prompts.

    Args:
      shape: shape of `tokens`.
      bound: bound of the uniform initialisation.
      dropout: probability in [0, 1).
      keys: holder in which the trainer sets the keys of the examples.
      device: device of the tokens.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        bound: float,
        dropout: float,
        keys: DropoutKeys,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(shape, device=device))
        nn.init.uniform_(self.tokens, -bound, bound)
        layers = shape[0] if len(shape) == 3 else 1
        self.dropout = nn.ModuleList(
            KeyedDropout(dropout, keys, f"prompt.{layer}") for layer in range(layers)
        )

    def append(self, x_BND: Tensor, layer: int) -> Tensor:
        """Return [B, N + P, D]: the sequence with the tokens of a layer at its end."""
        tokens_PD = self.tokens[layer] if self.tokens.dim() == 3 else self.tokens
        prompts_BPD = self.dropout[layer](tokens_PD.expand(x_BND.shape[0], -1, -1))
        return torch.cat((x_BND, prompts_BPD.to(x_BND.dtype)), dim=1)


def _append(
    prompt: Prompt,
    layer: int,
    module: nn.Module,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> tuple[tuple[object, ...], dict[str, object]]:
    """A forward pre-hook: append a layer's prompts to a block's input."""
    if args:
        return (prompt.append(cast(Tensor, args[0]), layer), *args[1:]), kwargs
    hidden = prompt.append(cast(Tensor, kwargs["hidden_states"]), layer)
    return args, {**kwargs, "hidden_states": hidden}


def _cut(num_tokens: int, module: nn.Module, args: object, output: object) -> object:
    """A forward hook: remove the prompts from the end of a block's output."""
    if isinstance(output, tuple):
        return (output[0][:, :-num_tokens], *output[1:])
    return cast(Tensor, output)[:, :-num_tokens]


def prompt(model: ModelToTune) -> PreparedModel:
    """Add prompts, and train them and the head; with `num_tokens = 0` this is head-tuning.

    Raises:
      TuningError: if the model is not an image transformer.
    """
    loaded = model.loaded
    _check_transformer(model)
    num_tokens = cast(int, model.options["num_tokens"])
    if num_tokens == 0:
        return PreparedModel(loaded.module, head_parameters(loaded))
    paths = _blocks(model)
    part = _new(model, num_tokens, len(paths))
    spans = [(path, path) for path in paths] if model.options["deep"] else [(paths[0], paths[-1])]
    for layer, (first, last) in enumerate(spans):  # hooks are partials: closures cannot be pickled
        before = partial(_append, part, layer)
        loaded.module.get_submodule(first).register_forward_pre_hook(before, with_kwargs=True)
        loaded.module.get_submodule(last).register_forward_hook(partial(_cut, num_tokens))
    loaded.module.add_module(PROMPT_ROOT, part)
    if not loaded.family.block and not is_meta(loaded.module):
        _try_once(model)
    return PreparedModel(loaded.module, {f"{PROMPT_ROOT}.tokens"} | head_parameters(loaded))


def _blocks(model: ModelToTune) -> list[str]:
    """Return the paths of the blocks, by the family's table or as they are found."""
    family = model.loaded.family
    if family.block:
        return [family.block.format(i) for i in chosen_blocks(model)]
    return block_paths(model.loaded)


def _check_transformer(model: ModelToTune) -> None:
    loaded = model.loaded
    is_seen = loaded.task.inputs in ("image", "video") and hasattr(_sizes(model), "patch_size")
    if not (is_seen and (loaded.family.block or block_paths(loaded))):
        raise TuningError(
            f"tuning.method prompt: {loaded.source} (family {loaded.family.name}) is not a known "
            "image transformer, whose blocks share one sequence of patches as those of a ViT do; "
            "for text choose prompt_tuning or prefix_tuning, for other models adapter or lora"
        )


def _sizes(model: ModelToTune) -> Any:  # noqa: ANN401  # a config of the library
    """Return the config that holds the sizes of the image transformer."""
    config = getattr(model.loaded.module, "config", None)
    return getattr(config, "vision_config", None) or config


def _try_once(model: ModelToTune) -> None:
    """Run one empty picture through a model of no known family.

    Raises:
      TuningError: if its blocks do not take a longer sequence.
    """
    loaded, sizes = model.loaded, _sizes(model)
    size = sizes.image_size if isinstance(sizes.image_size, int) else sizes.image_size[0]
    device = next(loaded.module.parameters()).device
    pixels = torch.zeros(1, getattr(sizes, "num_channels", 3), size, size, device=device)
    try:
        with torch.no_grad():
            loaded.module.eval()(pixel_values=pixels)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise TuningError(
            f"tuning.method prompt: the blocks of {loaded.source} cannot be run with prompts "
            f"({plain(error, 80)}); choose adapter or lora"
        ) from error


def _new(model: ModelToTune, num_tokens: int, num_blocks: int) -> Prompt:
    module = model.loaded.module
    width = int(_sizes(model).hidden_size)
    shape = (num_tokens, width)
    return Prompt(
        (num_blocks, *shape) if model.options["deep"] else shape,
        _bound(_sizes(model), width),
        cast(float, model.options["dropout"]),
        model.keys,
        next(module.parameters()).device,
    )


def _bound(config: object, width: int) -> float:
    patch = getattr(config, "patch_size", 1)
    area = patch * patch if isinstance(patch, int) else math.prod(patch)
    area *= getattr(config, "tubelet_size", 1)
    return math.sqrt(6 / (getattr(config, "num_channels", 3) * area + width))
