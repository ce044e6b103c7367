"""The frozen prefix of a tuned model: all layers before the first one that trains.

    embeddings  block 0  block 1 | block 2  block 3  head      blocks 2 and 3 train: cut before 2
    embeddings  block 0  block 1   block 2  block 3 | head     the head trains: cut at its input

One forward pass finds the cut: it lies before the deepest block whose input has no gradient and
no dropout before it, or before the first trained layer after the blocks. The input of such a layer
is the smallest sufficient feature: one vector per example for the head of a ViT or BERT.
Legend: B examples, T tokens, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile

import torch
from torch import Tensor, nn

from fedpeft.models.bypass import PREFIX, Rest, entry_of, skippable
from fedpeft.models.loaded import TextInput, VideoInput
from fedpeft.models.tasks import Batch, blank_labels, mean_loss
from fedpeft.tuning.dropout import KeyedDropout
from fedpeft.tuning.tuned import TunedModel

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Split:
    """The place at which a tuned model is cut.

    Attributes:
      sites: paths of the modules that read the features; one block, or layers after the blocks.
      skipped: paths of the modules of the prefix, except the embeddings.
      widths: width of each site's features; an example stores their sum for each token.
      tokens: whether each token has features; else each example has one vector.
      length: number of tokens of an image or clip; 1 without tokens.
      text: whether the tokens are those of a text, so that the length varies between examples.
      last_token: whether only the last token that is not padding is stored.
      words: a description of the layers before the cut.
    """

    sites: tuple[str, ...]
    skipped: tuple[str, ...]
    widths: tuple[int, ...]
    tokens: bool
    length: int
    text: bool
    last_token: bool
    words: str

    @property
    def width(self) -> int:
        """Number of stored values of a token, or of an example without tokens."""
        return sum(self.widths)


@dataclass(frozen=True)
class NoPrefix:
    """A tuned model that cannot be cut.

    Attributes:
      reason: why; completes the sentence "no frozen prefix: ...".
    """

    reason: str


@dataclass(frozen=True)
class _Event:
    """A module that the recorded forward pass calls.

    Attributes:
      kind: `block`, `site` (a trained layer), `dropout`, or `end` (of the last block).
      path: path of the module.
      varies: whether its input has a gradient, or a random mask follows.
      shape: shape of its input.
    """

    kind: str
    path: str
    varies: bool
    shape: tuple[int, ...]


def find_split(tuned: TunedModel, batch: Batch) -> Split | NoPrefix:
    """Find the deepest cut such that nothing before it trains or is drawn at random.

    Args:
      tuned: the model, possibly on the `meta` device.
      batch: a few examples that the model can process.
    """
    if reason := _not_for(tuned):
        return NoPrefix(reason)
    paths = skippable(tuned.model, tuned.loaded.family)
    events = _watch(tuned, batch, paths)
    fixed = list(takewhile(lambda event: not event.varies, events))
    before = list(takewhile(lambda event: event.kind != "site", fixed))
    if len(before) < len(fixed) and before and before[-1].kind == "end":
        sites = [event for event in events if event.kind == "site" and not event.varies]
        return _at_head(tuned, batch, paths, sites)
    blocks = [event for event in before if event.kind == "block"]
    if len(blocks) < 2 or not tuned.loaded.family.block:
        return NoPrefix(_from_the_start(tuned))
    number = len(blocks) - 1
    return Split(
        sites=(blocks[-1].path,),
        skipped=paths[:number],
        widths=(blocks[-1].shape[-1],),
        tokens=True,
        length=blocks[-1].shape[1],
        text="input_ids" in batch,
        last_token=False,
        words=f"embeddings and the first {number} of {len(paths)} blocks",
    )


def rest_of(tuned: TunedModel, split: Split) -> TunedModel:
    """Return the tuned model from the cut on, with the same parameters."""
    rest = Rest(tuned.model, tuned.loaded.family, split.skipped, split.sites, split.widths)
    return replace(tuned, model=rest.eval())


def features(tuned: TunedModel, split: Split, batch: Batch) -> Tensor:
    """Run the prefix alone.

    Args:
      tuned: the whole model, in eval mode.
      split: the cut.
      batch: on the model's device.

    Returns:
      [B, T, D], or [B, D] where one vector an example is enough; without gradient.
    """
    caught: list[Tensor] = []

    def catch(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        caught.append(_first_tensor(args, kwargs))
        if len(caught) == len(split.sites):
            raise _Reached

    hook = {path: catch for path in split.sites}
    with torch.no_grad(), _hooked(tuned.model, hook), contextlib.suppress(_Reached):
        tuned.loaded.task.score(tuned.model, batch)
    found = torch.cat(caught, -1) if len(caught) > 1 else caught[0]
    if split.last_token:
        rows_B = torch.arange(len(found), device=found.device)
        found = found[rows_B, _last(tuned, batch)][:, None]
    return found.detach()


def rest_batch(split: Split, batch: Batch, found: Tensor) -> Batch:
    """Return the batch for the rest of the model: the features, and the inputs it still reads."""
    kept = dict(batch) if split.text else {"labels": batch["labels"]}
    return {**kept, PREFIX: found}


def rest_equals_whole(tuned: TunedModel, split: Split, batch: Batch) -> bool:
    """Compare losses and gradients of the whole model with those of prefix and rest."""
    stored = rest_batch(split, batch, features(tuned, split, batch))
    whole = _loss_and_gradients(tuned, batch)
    rest = _loss_and_gradients(rest_of(tuned, split), stored)
    scale = max(float(g.abs().max()) for g in whole) + 1e-12
    error = max(float((a - b).abs().max()) for a, b in zip(whole, rest, strict=True))
    return error <= _TOLERANCE * scale


def probe_batch(tuned: TunedModel, *, tokens: int = 8) -> Batch | None:
    """Make a batch of two examples of zeros; None for inputs of an unknown kind.

    Args:
      tuned: the model; the batch is on its device.
      tokens: length of a text.
    """
    device = next(tuned.model.parameters()).device
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    inputs = tuned.loaded.inputs
    if isinstance(inputs, TextInput):
        ids = torch.zeros(2, tokens, dtype=torch.int64, device=device)
        # A mask with four axes is used as it is; any other is read, and `meta` has no values.
        mask = torch.zeros(2, 1, tokens, tokens, device=device)
        outputs = int(getattr(getattr(tuned.loaded.module, "config", None), "num_labels", 1))
        targets = blank_labels(tuned.loaded.task, ids, outputs)
        return {"input_ids": ids, "attention_mask": mask, "labels": targets}
    frames = (inputs.frames,) if isinstance(inputs, VideoInput) else ()
    picture = inputs.picture if isinstance(inputs, VideoInput) else inputs
    if picture is None:
        return None
    size = (2, *frames, picture.channels, picture.height, picture.width)
    return {"pixel_values": torch.zeros(size, device=device), "labels": labels}


class _Reached(Exception):
    """Raised to stop a forward pass at the cut."""


def _not_for(tuned: TunedModel) -> str:
    """Return why a model cannot be cut, whichever parameters train; "" if it can."""
    if tuned.trains_statistics or tuned.buffers:
        return f"method {tuned.method} trains the whole model"
    if tuned.local:
        return "parts of the delta stay at the clients"
    if tuned.loaded.task.inputs is None:
        return "the task is the user's own"
    if tuned.model is not tuned.loaded.module:
        return f"method {tuned.method} puts learned tokens before the first block"
    entry, family = entry_of(tuned.loaded.family), tuned.loaded.family
    known = {path for path, _ in tuned.model.named_modules()}
    if entry not in known or (family.block and family.block.format(0) not in known):
        return f"models of family {family.name} cannot be split"
    first = (f"{entry}.", f"{family.block.format(0)}.")[: 2 if family.block else 1]
    early = (p.requires_grad for n, p in tuned.model.named_parameters() if n.startswith(first))
    return _from_the_start(tuned) if any(early) else ""


def _from_the_start(tuned: TunedModel) -> str:
    return f"method {tuned.method} trains something from the first block on"


def _at_head(
    tuned: TunedModel, batch: Batch, paths: tuple[str, ...], sites: Sequence[_Event]
) -> Split | NoPrefix:
    tokens = {len(event.shape) for event in sites} != {2}
    if tokens and len(sites) > 1:
        return NoPrefix("several trained layers read features of each token")
    last_token = tokens and sites[0].path == "score" and batch["labels"].ndim == 1
    return Split(
        sites=tuple(event.path for event in sites),
        skipped=paths,
        widths=tuple(event.shape[-1] for event in sites),
        tokens=tokens,
        length=sites[0].shape[1] if tokens and not last_token else 1,
        text=tokens and not last_token and "input_ids" in batch,
        last_token=last_token,
        words=f"all below {' and '.join(event.path for event in sites)}",
    )


def _watch(tuned: TunedModel, batch: Batch, paths: Sequence[str]) -> list[_Event]:
    """Run the model once and record, in order, the modules it calls and whether gradients flow."""
    events: list[_Event] = []

    def passed(
        kind: str, path: str, _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        x = _first_tensor(args, kwargs)
        events.append(_Event(kind, path, kind == "dropout" or x.requires_grad, tuple(x.shape)))

    def ended(_: nn.Module, args: object, output: object) -> None:
        x = output[0] if isinstance(output, tuple) else output
        events.append(_Event("end", "", isinstance(x, Tensor) and x.requires_grad, ()))

    hooks = {path: partial(passed, "block", path) for path in paths}
    for path, part in tuned.model.named_modules():
        if isinstance(part, KeyedDropout) and part.p > 0:
            hooks[path] = partial(passed, "dropout", path)
        elif path not in hooks and any(p.requires_grad for p in part.parameters(recurse=False)):
            hooks[path] = partial(passed, "site", path)
    last = tuned.model.get_submodule(paths[-1]).register_forward_hook(ended)
    keys_B = torch.zeros(len(batch["labels"]), dtype=torch.int64, device=batch["labels"].device)
    try:
        with torch.enable_grad(), _hooked(tuned.model, hooks), tuned.dropout.using(keys_B):
            tuned.loaded.task.score(tuned.model, batch)
    finally:
        last.remove()
    return events


@contextlib.contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    """Call functions before some modules run, and before their other pre-hooks."""
    handles = [
        model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        for path, hook in hooks.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
    found = args[0] if args else next(iter(kwargs.values()))
    assert isinstance(found, Tensor), "blocks and layers take a tensor first"
    return found


def _last(tuned: TunedModel, batch: Batch) -> Tensor:
    """Return the position [B] of the last token that is not padding, which `score` reads."""
    config = getattr(tuned.loaded.module, "config", None)
    pad = getattr(config, "pad_token_id", None)
    ids_BT = batch["input_ids"]
    known_BT = torch.ones_like(ids_BT) if pad is None else (ids_BT != pad).long()
    return (torch.arange(ids_BT.shape[1], device=ids_BT.device) * known_BT).argmax(-1)


def _loss_and_gradients(tuned: TunedModel, batch: Batch) -> list[Tensor]:
    with torch.enable_grad():
        loss = mean_loss(tuned.loaded.task.score(tuned.model, batch))
    parameters = list(tuned.parameters.values())
    return [loss.detach(), *torch.autograd.grad(loss, parameters, materialize_grads=True)]
