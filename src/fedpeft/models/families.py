"""Model families: a table of how each kind of model names its parts.

    in memory                                         canonical (on the wire)
    vit.layers.3.attention.q_proj.bias                ->  blocks.3.attn.q.bias
    bert.encoder.layer.3.attention.self.query.bias    ->  blocks.3.attn.q.bias

Canonical names are needed because `transformers` renames modules between releases: a delta must
fit the model, whatever the release. All families use `attn.q/k/v/out`, `mlp.fc1/fc2` (gated ones:
`gate/up/down`) and `norm1/norm2` for corresponding modules. A module of no known family keeps its
own paths.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from fedpeft.core.errors import ModelError


@dataclass(frozen=True)
class Family:
    """One kind of model.

    Attributes:
      name: name of the family.
      rules: pairs (regular expression, replacement), applied in order to an in-memory path.
      head: possible module paths of the head; all that exist are used.
      mlp: path of the module whose output an adapter takes, before the skip addition; `{}` is the
        block's number.
      block: path of a block; `{}` is the block's number.
      targets: `peft` type -> default `target_modules` (suffixes of in-memory paths); the key `*` is
        for all other types.
      feedforward: the targets of IA3 whose input is scaled.
      any_size: whether the model accepts images of another size than the config's `image_size`.
    """

    name: str
    rules: tuple[tuple[str, str], ...] = ()
    head: tuple[str, ...] = ()
    mlp: str = ""
    block: str = ""
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    feedforward: tuple[str, ...] = ()
    any_size: bool = False


def family_of(module: nn.Module) -> Family:
    """Return the family of a module, by its config's `model_type`; `PLAIN` if unknown."""
    model_type = getattr(getattr(module, "config", None), "model_type", "")
    return FAMILIES.get(str(model_type), PLAIN)


def canonical(family: Family, path: str) -> str:
    """Return the canonical name of an in-memory parameter path."""
    for pattern, replacement in family.rules:
        path = re.sub(pattern, replacement, path)
    return path


def canonical_names(module: nn.Module, family: Family) -> dict[str, str]:
    """Map canonical names of a module's parameters and saved buffers to their in-memory paths.

    A tensor that two paths share (tied embeddings) is listed once, under its first path.

    Raises:
      ModelError: if two tensors would get one name.
    """
    saved = module.state_dict(keep_vars=True)
    paths = [path for path, _ in module.named_parameters()]
    paths += [path for path, _ in module.named_buffers() if path in saved]
    names: dict[str, str] = {}
    for path in paths:
        name = canonical(family, path)
        if name in names:
            raise ModelError(
                f"model of family {family.name!r}: {names[name]!r} and {path!r} would both "
                f"be named {name!r}; rename one of these modules"
            )
        names[name] = path
    return names


def block_of(name: str) -> int | None:
    """Return the number of the block that a canonical name is in, or None outside the blocks."""
    found = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    return int(found.group(1)) if found else None


def num_blocks(module: nn.Module, family: Family) -> int:
    """Count the blocks of a module: the modules at `family.block`, numbered from 0.

    Raises:
      ModelError: if the family has no blocks, or the module none at that path.
    """
    paths = {path for path, _ in module.named_modules()}
    count = 0
    while family.block and family.block.format(count) in paths:
        count += 1
    if not count:
        raise ModelError(
            f"model of family {family.name!r}: no blocks found at {family.block or '(no path)'!r}; "
            "block-wise methods need a known family: name the layers in the method's options"
        )
    return count


def hidden_size(module: nn.Module, family: Family) -> int:
    """Read the width of the blocks' input and output from the module's config.

    Raises:
      ModelError: if there is no config, or no such number in it.
    """
    size = getattr(getattr(module, "config", None), "hidden_size", None)
    if not isinstance(size, int):
        raise ModelError(
            f"model of family {family.name!r}: its config has no number 'hidden_size', "
            "which gives the width of its blocks; use a model of a known family"
        )
    return size


def parameters_under(module: nn.Module, paths: Collection[str]) -> frozenset[str]:
    """Return the in-memory names of the parameters under module paths; shared ones by each name."""
    names = (name for name, _ in module.named_parameters(remove_duplicate=False))
    return frozenset(n for n in names if any(n.startswith(f"{path}.") for path in paths))


def before_head(module: nn.Module, head: Collection[str]) -> tuple[str, ...]:
    """Return the paths of the modules between a backbone and its head: poolers, in most models.

    They are what a class of `transformers` has beside its backbone, and every `pooler` inside. A
    checkpoint of the backbone alone, or of masked-token prediction, may lack their weights.
    """
    backbone = getattr(module, "base_model", module)
    found = [path for path, _ in module.named_modules() if path.rpartition(".")[2] == "pooler"]
    if backbone is not module:
        found += [path for path, part in module.named_children() if part is not backbone]
    return tuple(
        path
        for path in dict.fromkeys(found)
        if any(True for _ in module.get_submodule(path).parameters())
        and not path.startswith("fedpeft_")  # what a tuning method put there
        and not any(each == path or each.startswith(f"{path}.") for each in head)
    )


PLAIN = Family(name="plain")
"""The family of unknown modules: their canonical names are their paths."""


def _vit(prefix: str) -> Family:
    """Make the family of ViT or a similar model, with the names of `transformers` 4 and 5."""
    return Family(
        name=prefix,
        rules=(
            (rf"^{prefix}\.embeddings\.patch_embeddings\.projection\.", "patch."),
            (rf"^{prefix}\.embeddings\.cls_token$", "cls"),
            (rf"^{prefix}\.embeddings\.distillation_token$", "distillation"),
            (rf"^{prefix}\.embeddings\.mask_token$", "mask"),
            (rf"^{prefix}\.embeddings\.position_embeddings$", "positions"),
            (rf"^{prefix}\.(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
            (r"(^|\.)attention\.attention\.(?=query|key|value)", r"\1attn."),
            (r"(^|\.)attention\.output\.dense\.", r"\1attn.out."),
            (r"(^|\.)attention\.", r"\1attn."),
            (r"\.attn\.(?:q_proj|query)\.", ".attn.q."),
            (r"\.attn\.(?:k_proj|key)\.", ".attn.k."),
            (r"\.attn\.(?:v_proj|value)\.", ".attn.v."),
            (r"\.attn\.o_proj\.", ".attn.out."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (rf"^{prefix}\.layernorm\.", "norm."),
            (r"^(?:cls_)?classifier\.", "head."),
            (r"^distillation_classifier\.", "head_distillation."),
        ),
        head=("classifier", "cls_classifier", "distillation_classifier"),
        mlp=f"{prefix}.layers.{{}}.mlp",
        block=f"{prefix}.layers.{{}}",
        targets={
            "ia3": ("k_proj", "v_proj", "fc2"),
            "ln_tuning": ("layernorm_before", "layernorm_after", f"{prefix}.layernorm"),
            "*": ("q_proj", "v_proj"),
        },
        feedforward=("fc2",),
    )


def _dinov2() -> Family:
    base = _vit("dinov2")
    return replace(
        base,
        rules=(
            *base.rules,
            (r"\.layer_scale(\d)\.lambda1$", r".scale\1"),
            (r"\.mlp\.weights_in\.", ".mlp.fc1."),
            (r"\.mlp\.weights_out\.", ".mlp.fc2."),
        ),
        mlp="dinov2.encoder.layer.{}.mlp",
        block="dinov2.encoder.layer.{}",
        targets={**base.targets, "ln_tuning": ("norm1", "norm2", "dinov2.layernorm")},
        any_size=True,
    )


def _bert(prefix: str) -> Family:
    return Family(
        name=prefix,
        rules=(
            (rf"^{prefix}\.embeddings\.word_embeddings\.", "tokens."),
            (rf"^{prefix}\.embeddings\.position_embeddings\.", "positions."),
            (rf"^{prefix}\.embeddings\.token_type_embeddings\.", "segments."),
            (rf"^{prefix}\.embeddings\.LayerNorm\.", "embed_norm."),
            (rf"^{prefix}\.encoder\.layer\.(\d+)\.", r"blocks.\1."),
            (r"\.attention\.self\.query\.", ".attn.q."),
            (r"\.attention\.self\.key\.", ".attn.k."),
            (r"\.attention\.self\.value\.", ".attn.v."),
            (r"\.attention\.output\.dense\.", ".attn.out."),
            (r"\.attention\.output\.LayerNorm\.", ".norm1."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
            (r"(blocks\.\d+)\.output\.LayerNorm\.", r"\1.norm2."),
            (rf"^{prefix}\.pooler\.dense\.", "pooler."),
            (r"^classifier\.", "head."),
        ),
        head=("classifier",),
        mlp=f"{prefix}.encoder.layer.{{}}.output.dense",
        block=f"{prefix}.encoder.layer.{{}}",
        # IA3 belongs before the second linear layer, but the suffix `output.dense` would take the
        # attention's output too: here it scales the input of the first.
        targets={
            "ia3": ("key", "value", "intermediate.dense"),
            "ln_tuning": ("LayerNorm",),
            "*": ("query", "value"),
        },
        feedforward=("intermediate.dense",),
    )


_DISTILBERT = Family(
    name="distilbert",
    rules=(
        (r"^distilbert\.embeddings\.word_embeddings\.", "tokens."),
        (r"^distilbert\.embeddings\.position_embeddings\.", "positions."),
        (r"^distilbert\.embeddings\.LayerNorm\.", "embed_norm."),
        (r"^distilbert\.transformer\.layer\.(\d+)\.", r"blocks.\1."),
        (r"\.attention\.(q|k|v|out)_lin\.", r".attn.\1."),
        (r"\.sa_layer_norm\.", ".norm1."),
        (r"\.output_layer_norm\.", ".norm2."),
        (r"\.ffn\.lin([12])\.", r".mlp.fc\1."),
        (r"^pre_classifier\.", "pooler."),
        (r"^classifier\.", "head."),
    ),
    head=("classifier",),
    mlp="distilbert.transformer.layer.{}.ffn",
    block="distilbert.transformer.layer.{}",
    targets={
        "ia3": ("k_lin", "v_lin", "lin2"),
        "ln_tuning": ("LayerNorm", "sa_layer_norm", "output_layer_norm"),
        "*": ("q_lin", "v_lin"),
    },
    feedforward=("lin2",),
)

_LLAMA = Family(
    name="llama",
    rules=(
        (r"^model\.embed_tokens\.", "tokens."),
        (r"^model\.layers\.(\d+)\.", r"blocks.\1."),
        (r"\.self_attn\.(q|k|v)_(proj\.|norm\.)", r".attn.\1_\2"),
        (r"\.attn\.(q|k|v)_proj\.", r".attn.\1."),
        (r"\.self_attn\.o_proj\.", ".attn.out."),
        (r"\.mlp\.(gate|up|down)_proj\.", r".mlp.\1."),
        (r"\.input_layernorm\.", ".norm1."),
        (r"\.post_attention_layernorm\.", ".norm2."),
        (r"^model\.norm\.", "norm."),
        (r"^(?:lm_head|score)\.", "head."),
    ),
    head=("lm_head", "score"),
    mlp="model.layers.{}.mlp",
    block="model.layers.{}",
    targets={
        "ia3": ("k_proj", "v_proj", "down_proj"),
        "ln_tuning": ("input_layernorm", "post_attention_layernorm", "model.norm"),
        "*": ("q_proj", "v_proj"),
    },
    feedforward=("down_proj",),
)

_GPT2 = Family(
    name="gpt2",
    rules=(
        (r"^transformer\.wte\.", "tokens."),
        (r"^transformer\.wpe\.", "positions."),
        (r"^transformer\.h\.(\d+)\.", r"blocks.\1."),
        (r"\.attn\.c_attn\.", ".attn.qkv."),
        (r"\.attn\.c_proj\.", ".attn.out."),
        (r"\.mlp\.c_fc\.", ".mlp.fc1."),
        (r"\.mlp\.c_proj\.", ".mlp.fc2."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"^transformer\.ln_f\.", "norm."),
        (r"^(?:lm_head|score)\.", "head."),
    ),
    head=("lm_head", "score"),
    mlp="transformer.h.{}.mlp",
    block="transformer.h.{}",
    # These layers are `Conv1D`, stored (in, out): `peft` needs `fan_in_fan_out = true` for them.
    targets={
        "ia3": ("c_attn", "mlp.c_proj"),
        "ln_tuning": ("ln_1", "ln_2", "ln_f"),
        "*": ("c_attn",),
    },
    feedforward=("mlp.c_proj",),
)


def _videomae() -> Family:
    base = _vit("videomae")
    return replace(
        base,
        rules=(*base.rules, (r"^fc_norm\.", "pool_norm.")),
        head=("classifier",),
        # The second linear layer of the MLP: the module around it adds the skip.
        mlp="videomae.encoder.layer.{}.output.dense",
        block="videomae.encoder.layer.{}",
        # As for BERT, the suffix `output.dense` would take the attention's output too: IA3 scales
        # the input of the MLP's first layer.
        targets={
            "ia3": ("key", "value", "intermediate.dense"),
            "ln_tuning": ("layernorm_before", "layernorm_after", "videomae.layernorm", "fc_norm"),
            "*": ("query", "value"),
        },
        feedforward=("intermediate.dense",),
    )


FAMILIES: Mapping[str, Family] = {
    "bert": _bert("bert"),
    "deit": _vit("deit"),
    "dinov2": _dinov2(),
    "distilbert": _DISTILBERT,
    "gemma": replace(_LLAMA, name="gemma"),
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, name="mistral"),
    "qwen2": replace(_LLAMA, name="qwen2"),
    "qwen3": replace(_LLAMA, name="qwen3"),
    "roberta": _bert("roberta"),
    "shufflenet-v2": Family(name="shufflenet-v2", head=("fc",), any_size=True),
    "videomae": _videomae(),
    "vit": _vit("vit"),
}
"""`model_type` of a config -> family."""
