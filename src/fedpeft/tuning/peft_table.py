"""The types of the `peft` library that work here, by kind of model, and why others do not.

The conformance suite computes this table again and compares; it is stored here so that
`fedpeft list methods` need not import `peft`. The kinds of model `vit`, `bert` and `llama` include
similar families, `videomae` takes clips, and `plain` is a custom module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpeft.models.loaded import LoadedModel

KINDS = ("vit", "bert", "llama", "videomae", "plain")
"""The columns of the table."""


@dataclass(frozen=True)
class PeftType:
    """One `PeftType` of the library.

    Attributes:
      summary: one line for `fedpeft list methods`.
      refused: kind of model -> why it is not supported; all other kinds are.
      defaults: defaults for options that have none in the library.
      vmaps: whether `torch.func.vmap` can run K clients, or K examples, in one pass.
    """

    summary: str
    refused: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    vmaps: bool = True


SHORT_FORMS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "dora": ("lora", {"use_dora": True}),
    "rslora": ("lora", {"use_rslora": True}),
}
"""Short form -> type and the options that it stands for."""

SEED_FIELDS = frozenset(
    {"proj_seed", "projection_prng_key", "projection_seed", "random_loc_seed", "random_seed"}
)
"""Options that seed frozen random parts: derived from the run's seed unless they are set."""

KEY_VALUE = frozenset({"cartridge", "prefix_tuning"})
"""Types that fill the key-value cache: the text's positions and logits do not change."""

PROMPT_LEARNING = KEY_VALUE | {"p_tuning", "prompt_tuning"}
"""Types that add virtual tokens to the input, inside the library's wrapper of the model."""

WITHOUT_TARGETS = frozenset({"adaption_prompt", "trainable_tokens"})
"""Further types that adapt no chosen layers."""

_NO_TEXT = "it needs token embeddings or a key-value cache; for image transformers choose `prompt`"
_OWN_MODULE = "it needs a text model of `transformers`"


def _everywhere(reason: str) -> Mapping[str, str]:
    return dict.fromkeys(KINDS, reason)


def _text(summary: str) -> PeftType:
    refused = {"vit": _NO_TEXT, "videomae": _NO_TEXT, "plain": _OWN_MODULE}
    return PeftType(summary, refused, {"num_virtual_tokens": 10})


PEFT_TYPES: Mapping[str, PeftType] = {
    "adalora": PeftType(
        "LoRA whose ranks move between layers (AdaLoRA)",
        _everywhere("it needs a call inside the training loop that moves ranks between layers"),
    ),
    "adamss": PeftType(
        "updates in clustered subspaces of each weight (AdaMSS)",
        _everywhere("its shapes follow from a clustering of the weights: no plan without weights"),
    ),
    "adaption_prompt": PeftType(
        "gated prompts inside the attention of the last blocks (LLaMA-Adapter)",
        dict.fromkeys(
            ("vit", "bert", "videomae", "plain"),
            "the library has it for LLaMA-like and GPT-2 models only",
        ),
        {"adapter_len": 10},
    ),
    "beft": PeftType("a new bias on chosen linear layers (BEFT)"),
    "boft": PeftType("orthogonal butterfly factors (BOFT)"),
    "c3a": PeftType("block-circular convolution (C3A)", vmaps=False),
    "cartridge": _text("a trained key-value cache (Cartridges)"),
    "cpt": PeftType(
        "context-aware prompt tuning (CPT)",
        _everywhere("it changes parameters in the forward pass and needs a loss of its own"),
    ),
    "deft": PeftType("a projection out and a low-rank injection in (DEFT)"),
    "delora": PeftType("LoRA with direction and strength apart (DeLoRA)"),
    "fourierft": PeftType("a sparse Fourier spectrum of the update (FourierFT)", vmaps=False),
    "frod": PeftType(
        "a joint decomposition of all layers with sparse rotations (FRoD)",
        _everywhere("its projections are decomposed from the weights: no plan without weights"),
    ),
    "glora": PeftType("scales and shifts of weight and bias (GLoRA)"),
    "gralora": PeftType("LoRA on sub-blocks of a weight (GraLoRA)"),
    "hira": PeftType("a Hadamard product of the weight and a low-rank matrix (HiRA)"),
    "hra": PeftType("a chain of Householder reflections (HRA)"),
    "ia3": PeftType("a scale on keys, values and the MLP's inner units (IA3)"),
    "lily": PeftType("LoRA whose factors are shared between layers (Lily)"),
    "ln_tuning": PeftType("gains and biases of layer norms"),
    "loha": PeftType("a Hadamard product of two low-rank matrices (LoHa)", vmaps=False),
    "lokr": PeftType("a Kronecker product (LoKr)"),
    "lora": PeftType("low-rank factors on chosen layers (LoRA)"),
    "miss": PeftType("one shared shard for each weight (MiSS)"),
    "multitask_prompt_tuning": PeftType(
        "prompts of many tasks from one shared prompt (MPT)",
        _everywhere("it needs a task number with every example"),
    ),
    "oft": PeftType("an orthogonal rotation of each weight (OFT)", vmaps=False),
    "osf": PeftType(
        "the low singular directions of each weight (OSF)",
        _everywhere("it takes the frozen weights apart, and worker processes cannot pickle it"),
    ),
    "p_tuning": _text("prompt tokens from a small encoder (P-tuning)"),
    "peanut": PeftType("a small network of the weight itself (PEANuT)"),
    "poly": PeftType(
        "a routed mixture of LoRA skills (Poly)",
        _everywhere("it needs a task number with every example"),
    ),
    "prefix_tuning": _text("trained keys and values in front of each block (prefix tuning)"),
    "prompt_tuning": _text("trained tokens in front of the text (prompt tuning)"),
    "psoft": PeftType("a rotation in the weight's principal subspace (PSOFT)"),
    "pvera": PeftType(
        "VeRA with sampled scales (PVeRA)",
        _everywhere("its samples come from a global generator, so batch layout changes results"),
    ),
    "randlora": PeftType("scaled sums of fixed random matrices (RandLoRA)", vmaps=False),
    "road": PeftType("2-D rotations of a layer's output (RoAd)"),
    "shadow": PeftType(
        "a small shadow network beside the blocks (ShadowPEFT)",
        _everywhere("it adds a loss of its own inside the model"),
    ),
    "shira": PeftType(
        "a sparse set of entries of each weight (SHiRA)",
        _everywhere("its mask is read off the weights: no plan without weights"),
    ),
    "supertuning": PeftType("the largest entries of each weight (Super-Tuning)"),
    "tinylora": PeftType("a handful of numbers through fixed random projections (TinyLoRA)"),
    "trainable_tokens": PeftType(
        "the embeddings of chosen tokens",
        {"vit": "it needs token embeddings", "videomae": "it needs token embeddings"},
    ),
    "unilora": PeftType("one vector for all layers, through a fixed projection (Uni-LoRA)"),
    "vblora": PeftType("LoRA whose factors come from one bank of vectors (VB-LoRA)"),
    "vera": PeftType("scales between random matrices that all layers share (VeRA)"),
    "waveft": PeftType("a sparse wavelet spectrum of the update (WaveFT)", vmaps=False),
    "xlora": PeftType(
        "a mixture of LoRA experts that were trained before (X-LoRA)",
        _everywhere("it mixes adapters that must have been trained already"),
    ),
}
"""Name of the `PeftType`, in lower case -> its row."""


def short_form(method: str) -> tuple[str, Mapping[str, object]]:
    """Return the type behind a method's name, and the options that a short form sets."""
    return SHORT_FORMS.get(method, (method, {}))


def kind_of(loaded: LoadedModel) -> str:
    """Return the column of the table that a model belongs to."""
    if loaded.family.name in KINDS[:-1]:
        return loaded.family.name
    if not hasattr(getattr(loaded.module, "config", None), "model_type"):
        return "plain"
    kinds = {"image": "vit", "video": "videomae"}
    return kinds.get(loaded.task.inputs or "", "bert" if loaded.task.new_head else "llama")


def verdict(name: str, loaded: LoadedModel) -> str:
    """Return why a type is not supported on a model; empty if it is."""
    return PEFT_TYPES[name].refused.get(kind_of(loaded), "")


def default_targets(name: str, targets: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return a type's default `target_modules` from a family's table; () where there are none."""
    return targets.get(name, targets.get("*", ()))
