"""The table of tuning methods, and `tune`, which applies one to a pretrained model.

    tune(loaded, TuningRequest("bias", seed=1)) -> TunedModel

Six methods are implemented here; all others are types of the `peft` library, with its names and
config fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import contains

from fedpeft.core import seeds
from fedpeft.core.errors import TuningError
from fedpeft.core.text import nearest
from fedpeft.models.loaded import LoadedModel
from fedpeft.tuning.adapter import adapter
from fedpeft.tuning.bias import bias
from fedpeft.tuning.dropout import DropoutKeys
from fedpeft.tuning.hf_peft import apply_peft
from fedpeft.tuning.option_checks import LARGEST_SIZE, Option, ResolvedOptions, resolve_own
from fedpeft.tuning.peft_options import resolve_peft
from fedpeft.tuning.peft_table import KINDS, PEFT_TYPES, SHORT_FORMS, short_form
from fedpeft.tuning.prepared import (
    ModelToTune,
    PreparedModel,
    check_blocks,
    finish,
    refuse_storage,
)
from fedpeft.tuning.prompt import prompt
from fedpeft.tuning.tuned import TunedModel
from fedpeft.tuning.whole import full, head, scratch


@dataclass(frozen=True)
class TuningRequest:
    """A choice of tuning method, with its options.

    Attributes:
      method: a name of `METHODS`, or any name with `rule`.
      options: options of the method; missing ones take their defaults.
      blocks: first and last block (inclusive, from 0) that may train; None is all.
      seed: seed of all random initialisation: one seed gives one start on every machine.
      rule: a method that is not in `METHODS`; None takes the row that `method` names.

    Example:
      >>> import fedpeft
      >>> loaded = fedpeft.load_model(fedpeft.ModelRequest("preset:tiny-vit"))
      >>> request = fedpeft.TuningRequest("bias", blocks=(1, 1))
      >>> fedpeft.tune(loaded, request).spec.names[:2]
      ('blocks.1.attn.k.bias', 'blocks.1.attn.out.bias')
    """

    method: str
    options: Mapping[str, object] = field(default_factory=dict)
    blocks: tuple[int, int] | None = None
    seed: int = 0
    rule: TuningMethod | None = None


@dataclass(frozen=True)
class TuningMethod:
    """One tuning method: how it changes a model, and which options it takes.

    Attributes:
      build: takes a `ModelToTune`, inserts what the method adds to it, and returns a
        `PreparedModel`: the changed module and the names of the parameters that train.
      resolve: fills in the defaults of options and lists every invalid one as a problem; imports
        `peft` for its types.
      summary: one line for `fedpeft list methods`.
      source: `fedpeft` or `peft`.
      refused: kind of model -> why the method does not support it.
      vmaps: whether `torch.func.vmap` can run K clients, or K examples, in one pass.
      merges: whether only the model's own tensors train, so that an export is an ordinary model.

    Example:
      >>> import fedpeft
      >>> from fedpeft.tuning.option_checks import ResolvedOptions
      >>> from fedpeft.tuning.prepared import PreparedModel
      >>> def train_norms(model):
      ...     module = model.loaded.module
      ...     names = [name for name, _ in module.named_parameters() if "layernorm" in name]
      ...     return PreparedModel(module, names)
      >>> method = fedpeft.TuningMethod(train_norms, ResolvedOptions, "layer norms train")
      >>> loaded = fedpeft.load_model(fedpeft.ModelRequest("preset:tiny-vit"))
      >>> fedpeft.tune(loaded, fedpeft.TuningRequest("norms", rule=method)).spec.num_params
      160
    """

    build: Callable[[ModelToTune], PreparedModel]
    resolve: Callable[[Mapping[str, object]], ResolvedOptions]
    summary: str
    source: str = "fedpeft"
    refused: Mapping[str, str] = field(default_factory=dict)
    vmaps: bool = True
    merges: bool = False


def tune(loaded: LoadedModel, request: TuningRequest) -> TunedModel:
    """Apply a tuning method to a pretrained model.

    Takes ownership of `loaded.module`: it is changed in place (`scratch` builds another), so do not
    use it afterwards, and load again for another method. Works on `meta` modules too, for plans.

    Args:
      loaded: the pretrained model.
      request: the method, its options, the range of blocks and the seed.

    Raises:
      TuningError: if the method is unknown, an option is wrong (all are listed), the model lacks
        the range of blocks, or the method does not work on this model.

    Example:
      >>> import fedpeft
      >>> loaded = fedpeft.load_model(fedpeft.ModelRequest("preset:tiny-vit"))
      >>> tuned = fedpeft.tune(loaded, fedpeft.TuningRequest("lora", {"r": 2}))
      >>> tuned.spec.num_params
      426
    """
    from fedpeft.models.stored import weights_out_of_sight

    row = _row(request.method, request.rule)
    options = resolve_options(request.method, request.options, request.rule)
    check_blocks(loaded, request.method, request.blocks)
    refuse_storage(loaded, request.method)
    seed = seeds.derive(request.seed, "tuning")
    model = ModelToTune(loaded, request.method, options, request.blocks, seed, DropoutKeys())
    with seeds.isolated(seed), weights_out_of_sight(loaded.module):
        prepared = row.build(model)
    return finish(model, prepared)


def resolve_options(
    method: str, options: Mapping[str, object], rule: TuningMethod | None = None
) -> dict[str, object]:
    """Complete a method's options with its defaults, without a model.

    Options that follow from the model (targets) or from the seed are left out unless given.
    Resolving resolved options again changes nothing.

    Raises:
      TuningError: if the method is unknown or refused on every kind of model, or options are
        unknown or out of range; one line for each problem.
    """
    row = _row(method, rule)
    if set(row.refused) >= set(KINDS):
        reason = next(iter(row.refused.values()))
        raise TuningError(f"tuning.method {method!r}: not supported on any model: {reason}")
    found = row.resolve(options)
    if found.problems:
        raise TuningError("\n".join(f"tuning.options.{problem}" for problem in found.problems))
    return dict(found.options)


def _row(method: str, rule: TuningMethod | None) -> TuningMethod:
    if rule is not None:
        return rule
    if method not in METHODS:
        raise TuningError(f"tuning.method {method!r}: no such method; {nearest(method, METHODS)}")
    return METHODS[method]


def _is_count(value: object, *, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_size(value: object) -> bool:
    return isinstance(value, int) and _is_count(value, least=0) and value <= LARGEST_SIZE


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_probability(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _is_paths(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(path, str) for path in value)


def _flag(default: bool) -> Option:
    return Option(default, "true or false", _is_flag)


_STARTS = ("identity", "zeros")
_ADAPTER: Mapping[str, Option] = {
    "reduction": Option(8, "a whole number >= 1", partial(_is_count, least=1)),
    "shared": _flag(True),
    "init": Option("identity", '"identity" or "zeros"', partial(contains, _STARTS)),
    "after": Option([], "a list of module paths", _is_paths),
}
_PROMPT: Mapping[str, Option] = {
    "num_tokens": Option(10, f"a whole number >= 0, at most {LARGEST_SIZE:,}", _is_size),
    "deep": _flag(True),
    "dropout": Option(0.1, "a probability, 0 <= p < 1", _is_probability),
}


def _own(
    name: str,
    build: Callable[[ModelToTune], PreparedModel],
    summary: str,
    options: Mapping[str, Option] | None = None,
) -> TuningMethod:
    return TuningMethod(build, partial(resolve_own, name, options or {}), summary, merges=True)


def _peft(method: str) -> TuningMethod:
    name, options = short_form(method)
    row = PEFT_TYPES[name]
    summary = f"{name} with {', '.join(options)}" if options else row.summary
    return TuningMethod(
        apply_peft, partial(resolve_peft, method), summary, "peft", row.refused, row.vmaps
    )


_NOT_AN_IMAGE = "it needs an image transformer; for text choose prompt_tuning or prefix_tuning"

METHODS: Mapping[str, TuningMethod] = {
    "scratch": _own("scratch", scratch, "everything trains, from new weights"),
    "full": _own("full", full, "everything trains, from the pretrained weights"),
    "head": _own("head", head, "the head alone trains (linear probe)"),
    "bias": _own("bias", bias, "all biases and the head", {"add_missing": _flag(False)}),
    "adapter": TuningMethod(
        adapter,
        partial(resolve_own, "adapter", _ADAPTER),
        "a bottleneck after each MLP, and the head",
    ),
    "prompt": TuningMethod(
        prompt,
        partial(resolve_own, "prompt", _PROMPT),
        "learned tokens beside the image's, and the head (VPT)",
        refused=dict.fromkeys(("bert", "llama", "plain"), _NOT_AN_IMAGE),
    ),
    **{name: _peft(name) for name in (*PEFT_TYPES, *SHORT_FORMS)},
}
"""Name of a method -> its row, our own methods first."""
