"""Pooling: how the states of a text's tokens become the one vector that a classifier reads.

    unset     as the model's own class does: BERT's pooler is a dense layer over the first token
    mean      sum_t m_t h_t / sum_t m_t       m_t = 1 for the text's own tokens, else 0
    cls       h_t of the first of its own tokens
    pooler    as unset, for a model that has a pooler

Own tokens are neither padding nor the virtual tokens of a prompt. A hook on the backbone puts the
vector where heads look for it, so that the classes of `transformers` stay as they are:

    pooler_output      [B, D]       read by heads such as BERT's, where the backbone has a pooler
    last_hidden_state  [B, 1, D]    read at its first token by heads such as RoBERTa's

A backbone's own pooler is then not used, and is taken out: no method trains or sends it. The hook
is the one record of a module's pooling. Legend: B examples, T tokens, D width.

Reference: Reimers and Gurevych, Sentence-BERT, EMNLP 2019.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from fedpeft.core.errors import ModelError
from fedpeft.models.loaded import TextInput
from fedpeft.models.reading import reading
from fedpeft.models.tasks import Task

Pooling: TypeAlias = Literal["mean", "cls", "pooler"]
"""Values of `model.pooling`."""

_Output: TypeAlias = Any  # one of the library's many classes
_MASK = "attention_mask"


@dataclass(frozen=True)
class Pool:
    """A forward hook of a backbone: its output holds the pooled vector only.

    Attributes:
      how: `mean` or `cls`.
      mask_at: place of the attention mask among the backbone's positional arguments.
    """

    how: str
    mask_at: int

    def __call__(
        self,
        backbone: nn.Module,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        output: _Output,
    ) -> object:
        """Return the output with the pooled vector in place of the states of the tokens."""
        given = args[self.mask_at] if self.mask_at < len(args) else kwargs.get(_MASK)
        mask = given if isinstance(given, Tensor) else None
        vector_BD = pooled(output.last_hidden_state, mask, self.how)
        changes = {"last_hidden_state": vector_BD[:, None]}
        if getattr(output, "pooler_output", None) is not None:  # else heads take it for states
            changes["pooler_output"] = vector_BD
        return dataclasses.replace(output, **changes)


def pooled(hidden_BTD: Tensor, mask: Tensor | None, how: str) -> Tensor:
    """Return one vector for each text, [B, D].

    Args:
      hidden_BTD: last states of the tokens.
      mask: attention mask: [B, T], 1 for a token and 0 for padding; or [B, 1, T, T], true or 0
        where one token may attend to another. Either may be longer by the places of a prefix of
        keys and values, before the text. None: no padding.
      how: `mean` or `cls`.
    """
    own_BT = _own_tokens(hidden_BTD, mask)
    if how == "cls":
        first_B = own_BT.argmax(1)
        index_B1D = first_B[:, None, None].expand(-1, 1, hidden_BTD.shape[-1])
        return hidden_BTD.gather(1, index_B1D)[:, 0]
    return (hidden_BTD * own_BT[..., None]).sum(1) / own_BT.sum(1, keepdim=True).clamp(min=1)


def _own_tokens(hidden_BTD: Tensor, mask: Tensor | None) -> Tensor:
    """Return 1 for each token of a text and 0 for padding, [B, T], as numbers of the states."""
    if mask is None:
        return torch.ones_like(hidden_BTD[..., 0])
    if mask.ndim == 4:  # what the last place may attend to
        mask = mask[:, 0, -1] if mask.dtype == torch.bool else mask[:, 0, -1] == 0
    return mask[:, -hidden_BTD.shape[1] :].to(hidden_BTD.dtype)


def set_pooling(module: nn.Module, how: str | None, task: Task, *, where: str) -> None:
    """Make a classifier read its texts in the chosen way, in place.

    Args:
      module: a classifier of `transformers`, possibly on the `meta` device.
      how: one of `Pooling`; None changes nothing.
      task: of the model.
      where: name of the model, for messages.

    Raises:
      ModelError: if there is no such pooling, or the model is no text encoder with a classifier, or
        has no pooler to use.
    """
    if how is None:
        return
    if how not in get_args(Pooling):
        names = ", ".join(get_args(Pooling))
        raise ModelError(f"model.pooling: found {how!r}; choose one of {names}, or leave it out")
    if reason := _reason(module, how, task):
        raise ModelError(
            f"model.pooling: found {how!r} with model {where!r}: {reason}; leave the key out, "
            "which reads texts as the model's own class does"
        )
    if how == "pooler":
        return
    backbone: Any = module.base_model
    if isinstance(getattr(backbone, "pooler", None), nn.Module):
        backbone.pooler = nn.Identity()  # some classes call it whatever it is
    place = list(inspect.signature(backbone.forward).parameters).index(_MASK)
    backbone.register_forward_hook(Pool(how, place), with_kwargs=True)


def pooling_of(module: nn.Module) -> str | None:
    """Return how a module pools, `mean` or `cls`; None if as its own class does."""
    backbone = getattr(module, "base_model", module)
    hooks = getattr(backbone, "_forward_hooks", {}).values()
    return next((hook.how for hook in hooks if isinstance(hook, Pool)), None)


def check_pooling(module: nn.Module, inputs: TextInput, *, where: str) -> None:
    """Run a pooled classifier on one short text.

    Raises:
      ModelError: if its head cannot read a pooled vector.
    """
    if (how := pooling_of(module)) is None:
        return
    rows = inputs.padding.num_tokens or 0
    token = next((i for i in range(rows - 1, -1, -1) if i != inputs.padding.pad), 0)
    tokens_BT = torch.full((1, min(3, inputs.max_length)), token)
    problem = "the head of this model cannot read a pooled vector"
    advice = "leave the key out, which reads texts as the model's own class does"
    found = f"model.pooling: found {how!r} with model {where!r}"
    with reading(found, problem, advice=advice), torch.no_grad():
        module(input_ids=tokens_BT, attention_mask=torch.ones_like(tokens_BT))


def leave_out_prompt(module: nn.Module, num_tokens: int) -> None:
    """Let a pooled model leave out the virtual tokens at the beginning of its input.

    A model that is read in its own way is not changed: its class decides.

    Args:
      module: the classifier, without a wrapper.
      num_tokens: number of virtual tokens.
    """
    if pooling_of(module) is not None:
        backbone: Any = module.base_model
        backbone.register_forward_hook(partial(_cut, num_tokens), prepend=True)


def _cut(num_tokens: int, backbone: nn.Module, args: object, output: _Output) -> object:
    """A forward hook: remove the states of the first tokens."""
    return dataclasses.replace(output, last_hidden_state=output.last_hidden_state[:, num_tokens:])


def _reason(module: nn.Module, how: str, task: Task) -> str:
    """Return why a model cannot pool in this way; "" if it can."""
    config, backbone = getattr(module, "config", None), getattr(module, "base_model", module)
    if task.inputs != "text" or task.per_token:
        return f"its task is {task.name}, and pooling is for classifiers of texts"
    if hasattr(module, "score") or getattr(config, "is_encoder_decoder", False):
        return "it is a decoder, whose classifier reads where a text ends"
    if backbone is module or _MASK not in inspect.signature(backbone.forward).parameters:
        return f"its class {type(module).__name__} has no backbone that takes an attention mask"
    names = (path.rpartition(".")[2] for path, _ in module.named_modules())
    if how == "pooler" and "pooler" not in names:
        return f"its class {type(module).__name__} has no pooler"
    return ""
