"""Presets: named architectures without weights, `preset:NAME` in an experiment file.

Presets serve planning (their counts equal those of the pretrained model of that shape), tests, and
training from scratch. Parameters are counted with the preset's own number of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preset:
    """One architecture.

    Attributes:
      about: one line for `fedpeft list models`.
      task: the name of its default task.
      model_type: type of a `transformers` config, or `shufflenet-v2`.
      parameters: number of parameters, with the settings below.
      settings: arguments of the config.
      channels_from_data: whether the number of input channels follows the data; otherwise it is
        that of the config.
      tokenizer: a folder in `bundled/` with the files of its tokenizer; "" if it has none.
    """

    about: str
    task: str
    model_type: str
    parameters: int
    settings: Mapping[str, object] = field(default_factory=dict)
    channels_from_data: bool = False
    tokenizer: str = ""


def _vit(
    about: str, parameters: int, shape: tuple[int, int, int, int], patch_size: int = 16
) -> Preset:
    """Make a ViT of ImageNet's 1,000 classes.

    Args:
      about: one line for `fedpeft list models`.
      parameters: number of parameters.
      shape: width, blocks, attention heads, width of the MLP.
      patch_size: height and width of a patch, in pixels.
    """
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    settings = dict(zip(keys, shape, strict=True), num_labels=1000, patch_size=patch_size)
    return Preset(about, "image-classification", "vit", parameters, settings)


def _small_shufflenet(about: str, parameters: int, **settings: object) -> Preset:
    """Make a ShuffleNetV2 for small images of 10 classes: a stem of stride 1, without pooling."""
    stem: Mapping[str, object] = {"num_labels": 10, "stem_stride": 1, "stem_pool": False}
    return Preset(
        about,
        "image-classification",
        "shufflenet-v2",
        parameters,
        {**stem, **settings},
        channels_from_data=True,
    )


_TINY_ENCODER: Mapping[str, object] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}

PRESETS: Mapping[str, Preset] = {
    "bert-base-uncased": Preset(
        "BERT base: 12 blocks of width 768, 30,522 word pieces",
        "text-classification",
        "bert",
        109_483_778,
    ),
    "deit-small-patch16-224": _vit(
        "DeiT small: a ViT of 12 blocks of width 384", 22_050_664, (384, 12, 6, 1536)
    ),
    "deit-tiny-patch16-224": _vit(
        "DeiT tiny: a ViT of 12 blocks of width 192", 5_717_416, (192, 12, 3, 768)
    ),
    "llama-7b": Preset(
        "Llama of 7 billion parameters, for planning",
        "causal-lm",
        "llama",
        6_738_415_616,
        {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "vocab_size": 32000,
        },
    ),
    "mistral-7b-v0.3": Preset(
        "Mistral of 7 billion parameters, version 0.3, for planning",
        "causal-lm",
        "mistral",
        7_248_023_552,
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32768,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "sliding_window": None,
        },
    ),
    "narrow-bert": Preset(
        "BERT narrowed until it is as large as the delta of bias tuning on minilm (6 classes); its "
        "vocabulary is BERT's 688 most frequent pieces",
        "text-classification",
        "bert",
        28_538,
        {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "vocab_size": 688,
            "max_position_embeddings": 64,
        },
        tokenizer="frequent-words",
    ),
    "shufflenet-v2-x0.05-small": _small_shufflenet(
        "ShuffleNetV2 narrowed until it is as large as the delta of bias tuning on vit-glyphs-8",
        6_305,
        num_channels=1,
        image_size=8,
        widths=(2, 4, 10, 20, 106),
    ),
    "shufflenet-v2-x0.5": Preset(
        "ShuffleNetV2 of half width, the paper's small baseline",
        "image-classification",
        "shufflenet-v2",
        1_366_792,
    ),
    "shufflenet-v2-x0.5-small": _small_shufflenet(
        "the same with a stem of stride 1, for images of 32 pixels and less", 352_042, image_size=32
    ),
    "tiny-bert": Preset(
        "a toy BERT of 2 blocks of width 16, for tests",
        "text-classification",
        "bert",
        7_890,
        {**_TINY_ENCODER, "vocab_size": 128, "max_position_embeddings": 64},
    ),
    "tiny-llama": Preset(
        "a toy Llama of 2 blocks of width 16, for tests and demonstrations",
        "causal-lm",
        "llama",
        8_784,
        {
            **_TINY_ENCODER,
            "num_key_value_heads": 1,
            "vocab_size": 128,
            "max_position_embeddings": 128,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
    "tiny-shufflenet": _small_shufflenet(
        "a toy ShuffleNetV2, for tests",
        1_006,
        num_channels=1,
        image_size=8,
        repeats=(1, 1, 1),
        widths=(4, 8, 8, 8, 16),
    ),
    "tiny-vit": Preset(
        "a toy ViT of 2 blocks of width 16 for 8x8 images, for tests",
        "image-classification",
        "vit",
        5_018,
        {**_TINY_ENCODER, "image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10},
        channels_from_data=True,
    ),
    "tiny-videomae": Preset(
        "a toy VideoMAE of 2 blocks of width 16 for 4 frames of 8x8, for tests and demonstrations",
        "video-classification",
        "videomae",
        5_112,
        {
            **_TINY_ENCODER,
            "image_size": 8,
            "patch_size": 4,
            "num_channels": 1,
            "num_frames": 4,
            "tubelet_size": 2,
            "initializer_range": 0.15,
            "num_labels": 8,
        },
        channels_from_data=True,
    ),
    "videomae-base": Preset(
        "VideoMAE base: a ViT-B over 16 frames in tubelets of 2 x 16 x 16, 400 classes",
        "video-classification",
        "videomae",
        86_534_800,
        {"num_labels": 400},
    ),
    "vit-base-patch16-224": _vit(
        "ViT-B/16, the paper's backbone: 12 blocks of width 768", 86_567_656, (768, 12, 12, 3072)
    ),
    "vit-giant-patch14-224": _vit(
        "ViT-g/14: 40 blocks of width 1,408, for planning",
        1_012_611_432,
        (1408, 40, 16, 6144),
        patch_size=14,
    ),
    "vit-large-patch16-224": _vit(
        "ViT-L/16: 24 blocks of width 1,024", 304_326_632, (1024, 24, 16, 4096)
    ),
}
"""The part of the name after `preset:` -> architecture."""
