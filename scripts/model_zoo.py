"""Tiny untrained models of many kinds, by their `model_type`, for the matrix of models and methods.

Sizes are as small as the architecture allows: two blocks, 16 wide, 24 tokens, pictures of 32 x 32.
Real checkpoints of the same type have the same modules, only larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedpeft.models.loaded import LoadedModel
from fedpeft.models.quiet import quiet
from fedpeft.models.source import ModelRequest, load_model
from fedpeft.models.tasks import TASKS, Batch

NUM_LABELS = 3
NUM_TOKENS = 24

WIDE: Mapping[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TEXT: Mapping[str, Any] = {
    **WIDE,
    "vocab_size": NUM_TOKENS,
    "max_position_embeddings": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT: Mapping[str, Any] = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 48,
    "vocab_size": NUM_TOKENS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IMAGE: Mapping[str, Any] = {**WIDE, "image_size": 32, "patch_size": 8}


@dataclass(frozen=True)
class Kind:
    """One tiny model.

    Attributes:
      task: a row of `TASKS`.
      model_type: of the library's config.
      settings: of the config.
      known_as: names under which people know checkpoints of this type.
    """

    task: str
    model_type: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    known_as: str = ""


def _text(model_type: str, known_as: str, **settings: object) -> Kind:
    return Kind("text-classification", model_type, {**TEXT, **settings}, known_as)


def _without(*keys: str) -> Mapping[str, Any]:
    return {key: value for key, value in TEXT.items() if key not in keys}


def _image(model_type: str, known_as: str, **settings: object) -> Kind:
    return Kind("image-classification", model_type, settings, known_as)


def _causal(model_type: str, known_as: str, **settings: object) -> Kind:
    return Kind("causal-lm", model_type, {**TEXT, **settings}, known_as)


def _gpt(model_type: str, known_as: str, **settings: object) -> Kind:
    return Kind("causal-lm", model_type, {**GPT, **settings}, known_as)


KINDS: tuple[Kind, ...] = (
    _text("albert", "ALBERT", embedding_size=8),
    _text("bert", "BERT, MiniLM, BGE, E5, GTE"),
    _text("big_bird", "BigBird", attention_type="original_full"),
    _text("camembert", "CamemBERT", position_offset=2),
    _text("convbert", "ConvBERT", embedding_size=16, conv_kernel_size=3, head_ratio=1),
    _text("data2vec-text", "data2vec (text)"),
    _text(
        "deberta", "DeBERTa", relative_attention=True, pos_att_type="c2p|p2c", pooler_hidden_size=16
    ),
    _text(
        "deberta-v2",
        "DeBERTa-v2 and v3",
        relative_attention=True,
        pos_att_type="c2p|p2c",
        pooler_hidden_size=16,
    ),
    _text("distilbert", "DistilBERT", dim=16, n_layers=2, n_heads=2, hidden_dim=32),
    _text("electra", "ELECTRA", embedding_size=8),
    _text("ernie", "ERNIE"),
    _text("esm", "ESM-2 (proteins)", position_embedding_type="rotary", mask_token_id=3),
    _text("eurobert", "EuroBERT", num_key_value_heads=2),
    _text("flaubert", "FlauBERT", emb_dim=16, n_layers=2, n_heads=2, n_words=NUM_TOKENS),
    _text("fnet", "FNet"),
    Kind(
        "text-classification",
        "funnel",
        {
            **_without("num_hidden_layers", "max_position_embeddings"),
            "d_model": 16,
            "d_head": 8,
            "d_inner": 32,
            "block_sizes": [1, 1],
            "n_head": 2,
            "num_decoder_layers": 1,
        },
        "Funnel Transformer",
    ),
    _text("ibert", "I-BERT"),
    _text("layoutlm", "LayoutLM (text)"),
    _text("longformer", "Longformer", attention_window=[4, 4]),
    _text("luke", "LUKE", entity_vocab_size=8, entity_emb_size=8),
    _text("megatron-bert", "Megatron-BERT"),
    _text(
        "mobilebert",
        "MobileBERT",
        embedding_size=16,
        intra_bottleneck_size=8,
        true_hidden_size=8,
        use_bottleneck=True,
    ),
    _text(
        "modernbert",
        "ModernBERT",
        global_attn_every_n_layers=2,
        local_attention=8,
        cls_token_id=1,
        sep_token_id=2,
    ),
    _text("mpnet", "MPNet"),
    _text("nomic_bert", "Nomic Embed"),
    _text("rembert", "RemBERT", input_embedding_size=8, output_embedding_size=8),
    _text("roberta", "RoBERTa"),
    _text("roberta-prelayernorm", "RoBERTa with pre-layer norm"),
    _text("roformer", "RoFormer", embedding_size=16),
    _text("squeezebert", "SqueezeBERT", embedding_size=16),
    _text("xlm-roberta", "XLM-R, multilingual E5, BGE-M3"),
    Kind(
        "text-classification",
        "xlnet",
        {
            **_without("max_position_embeddings"),
            "d_model": 16,
            "n_layer": 2,
            "n_head": 2,
            "d_inner": 32,
        },
        "XLNet",
    ),
    _text("xmod", "X-MOD", languages=["en_XX"], default_language="en_XX"),
    _text("llama", "LLaMA as a classifier", num_key_value_heads=1),
    _text("qwen2", "Qwen2 as a classifier", num_key_value_heads=1),
    Kind("text-classification", "gpt2", GPT, "GPT-2 as a classifier"),
    _image("beit", "BEiT", **IMAGE),
    _image("bit", "BiT", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=2),
    _image(
        "clip",
        "CLIP (picture tower)",
        vision_config={**IMAGE},
        text_config={**TEXT},
        projection_dim=16,
    ),
    _image(
        "convnext", "ConvNeXt", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, image_size=32
    ),
    _image(
        "convnextv2",
        "ConvNeXt V2",
        hidden_sizes=[8, 16],
        depths=[1, 1],
        num_stages=2,
        image_size=32,
    ),
    _image("cvt", "CvT", embed_dim=[8, 8, 16], num_heads=[1, 1, 2], depth=[1, 2, 3]),
    _image("data2vec-vision", "data2vec (pictures)", **IMAGE),
    _image("deit", "DeiT", **IMAGE),
    _image("dinov2", "DINOv2", **IMAGE),
    _image("dinov2_with_registers", "DINOv2 with registers", **IMAGE),
    _image(
        "efficientnet",
        "EfficientNet",
        image_size=32,
        width_coefficient=0.1,
        depth_coefficient=0.1,
        hidden_dim=128,
    ),
    _image(
        "focalnet",
        "FocalNet",
        image_size=32,
        embed_dim=8,
        depths=[1, 1],
        focal_levels=[1, 1],
        focal_windows=[3, 3],
        hidden_sizes=[8, 16],
    ),
    _image(
        "hiera",
        "Hiera",
        image_size=[32, 32],
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        patch_size=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        query_stride=[2, 2],
        num_query_pool=1,
        masked_unit_size=[4, 4],
        masked_unit_attention=[True, False],
    ),
    _image("ijepa", "I-JEPA", **IMAGE),
    _image(
        "levit",
        "LeViT",
        image_size=32,
        hidden_sizes=[16, 16, 16],
        num_attention_heads=[2, 2, 2],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        mlp_ratio=[2, 2, 2],
        attention_ratio=[2, 2, 2],
    ),
    _image("mobilenet_v1", "MobileNet V1", image_size=32, depth_multiplier=0.25, min_depth=8),
    _image(
        "mobilenet_v2",
        "MobileNet V2",
        image_size=32,
        depth_multiplier=0.1,
        finegrained_output=False,
    ),
    _image(
        "mobilevit",
        "MobileViT",
        image_size=32,
        hidden_sizes=[8, 12, 16],
        neck_hidden_sizes=[4, 4, 8, 8, 8, 8, 16],
        num_attention_heads=2,
        patch_size=2,
    ),
    _image("poolformer", "PoolFormer", hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]),
    _image(
        "pvt",
        "PVT",
        image_size=32,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
    ),
    _image(
        "pvt_v2",
        "PVT v2",
        image_size=32,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
    ),
    _image(
        "regnet", "RegNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8
    ),
    _image("resnet", "ResNet", embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1]),
    _image(
        "segformer",
        "SegFormer (MiT)",
        image_size=32,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
    ),
    _image("siglip", "SigLIP (picture tower)", vision_config={**IMAGE}, text_config={**TEXT}),
    _image(
        "swin",
        "Swin",
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=4,
    ),
    _image(
        "swinv2",
        "Swin V2",
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1],
        num_heads=[1, 2],
        window_size=4,
    ),
    _image("vit", "ViT, MAE, MoCo v3, DINO", **IMAGE),
    _image("vit_msn", "ViT MSN", **IMAGE),
    _causal("biogpt", "BioGPT"),
    _causal("bloom", "BLOOM", n_layer=2, n_head=2),
    _gpt("codegen", "CodeGen", n_head=4, rotary_dim=4, n_ctx=48),
    _causal("cohere", "Command R", num_key_value_heads=1),
    _causal("falcon", "Falcon", num_kv_heads=1),
    _causal("gemma", "Gemma", num_key_value_heads=1, head_dim=8),
    _causal("gemma2", "Gemma 2", num_key_value_heads=1, head_dim=8),
    _causal("gemma3_text", "Gemma 3", num_key_value_heads=1, head_dim=8),
    _gpt("gpt2", "GPT-2, DistilGPT-2"),
    _gpt("gpt_bigcode", "StarCoder"),
    _causal(
        "gpt_neo",
        "GPT-Neo",
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
    ),
    _causal("gpt_neox", "Pythia, GPT-NeoX"),
    _gpt("gptj", "GPT-J", rotary_dim=4),
    _causal("granite", "Granite", num_key_value_heads=1),
    _causal("llama", "LLaMA, SmolLM, TinyLlama", num_key_value_heads=1),
    _causal("mamba", "Mamba", state_size=4, time_step_rank=2),
    _causal("mistral", "Mistral", num_key_value_heads=1),
    _causal(
        "mixtral", "Mixtral", num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1
    ),
    _causal("mpt", "MPT", d_model=16, n_layers=2, n_heads=2, max_seq_len=48),
    _causal("olmo", "OLMo", num_key_value_heads=1),
    _causal("olmo2", "OLMo 2", num_key_value_heads=1),
    _causal("opt", "OPT", ffn_dim=32, word_embed_proj_dim=16),
    _causal("phi", "Phi-1.5, Phi-2", num_key_value_heads=2),
    _causal("phi3", "Phi-3, Phi-4", num_key_value_heads=1),
    _causal("qwen2", "Qwen2 and 2.5", num_key_value_heads=1),
    _causal("qwen3", "Qwen3", num_key_value_heads=1, head_dim=8),
    _causal("rwkv", "RWKV", attention_hidden_size=16, context_length=48),
    _causal("smollm3", "SmolLM3", num_key_value_heads=1),
    _causal("stablelm", "StableLM", num_key_value_heads=1),
    _causal("starcoder2", "StarCoder2", num_key_value_heads=1),
)
"""The models of the matrix, by task and type."""


def make_kind(kind: Kind, folder: Path) -> LoadedModel:
    """Save a tiny model with weights from a fixed seed, and load it as a user does.

    Args:
      kind: the model.
      folder: an empty folder for its files.
    """
    import transformers

    auto = getattr(transformers, TASKS[kind.task].auto_class)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = dict(kind.settings)
        if TASKS[kind.task].new_head:
            settings["num_labels"] = NUM_LABELS
        config = transformers.AutoConfig.for_model(kind.model_type, **settings)
        classes = auto._model_mapping[type(config)]  # several where a model has another head
        made = classes[0] if isinstance(classes, tuple) else classes
        module = made(config).eval()
        for part in module.modules():
            if isinstance(
                part, nn.Conv2d
            ):  # without trained statistics of BatchNorm, small weights vanish
                nn.init.kaiming_normal_(part.weight)
        module.save_pretrained(folder)
    if TASKS[kind.task].inputs == "text":
        _save_tokenizer(folder)
    return load_model(ModelRequest(str(folder), kind.task, num_labels=NUM_LABELS))


def _save_tokenizer(folder: Path) -> None:
    """Save a tokenizer of as many words as the models have tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ("<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(NUM_TOKENS - 4)))
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)


def batch_of(loaded: LoadedModel) -> Batch:
    """Return a batch of four random examples; the texts have six to nine tokens."""
    draw = torch.Generator().manual_seed(7)
    labels = torch.tensor([0, 1, 2, 0])
    if loaded.task.inputs == "image":
        size = loaded.inputs.height  # type: ignore[union-attr]  # of a picture
        return {"pixel_values": torch.randn(4, 3, size, size, generator=draw), "labels": labels}
    tokens = torch.randint(4, NUM_TOKENS, (4, 9), generator=draw)
    mask = torch.ones_like(tokens)
    mask[0, 6:] = 0
    tokens = tokens.masked_fill(mask == 0, 0)
    targets = tokens.masked_fill(mask == 0, -100) if loaded.task.per_token else labels
    return {"input_ids": tokens, "attention_mask": mask, "labels": targets}
