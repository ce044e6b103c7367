"""Names of the known families, against the module trees that `transformers` really builds."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from torch import nn

from fedpeft.core.errors import ModelError
from fedpeft.models.families import (
    FAMILIES,
    PLAIN,
    Family,
    block_of,
    canonical,
    canonical_names,
    family_of,
    hidden_size,
    num_blocks,
)
from fedpeft.models.shufflenet import ShuffleNet, ShuffleNetConfig

ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
DECODER = {**ENCODER, "vocab_size": 40, "num_key_value_heads": 1, "head_dim": 8}
SETTINGS = {
    "bert": {**ENCODER, "vocab_size": 40},
    "deit": ENCODER,
    "dinov2": ENCODER,
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32, "vocab_size": 40},
    "gemma": DECODER,
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 60000},
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "roberta": {**ENCODER, "vocab_size": 40},
    "videomae": {**ENCODER, "use_mean_pooling": False},
    "vit": ENCODER,
}
CLASSES = [
    ("bert", "BertForSequenceClassification"),
    ("deit", "DeiTForImageClassification"),
    ("deit", "DeiTForImageClassificationWithTeacher"),
    ("dinov2", "Dinov2ForImageClassification"),
    ("distilbert", "DistilBertForSequenceClassification"),
    ("gemma", "GemmaForCausalLM"),
    ("gpt2", "GPT2LMHeadModel"),
    ("gpt2", "GPT2ForSequenceClassification"),
    ("llama", "LlamaForCausalLM"),
    ("llama", "LlamaForSequenceClassification"),
    ("mistral", "MistralForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("roberta", "RobertaForSequenceClassification"),
    ("videomae", "VideoMAEForVideoClassification"),
    ("vit", "ViTForImageClassification"),
]


def build(model_type: str, class_name: str) -> nn.Module:
    config = transformers.AutoConfig.for_model(model_type, **SETTINGS[model_type])
    with torch.device("meta"):
        return getattr(transformers, class_name)(config)


@pytest.fixture(scope="module", params=CLASSES, ids=lambda pair: pair[1])
def module(request: pytest.FixtureRequest) -> nn.Module:
    return build(*request.param)


def test_every_family_but_our_own_network_is_tried_here():
    assert {model_type for model_type, _ in CLASSES} == FAMILIES.keys() - {"shufflenet-v2"}


def test_family_of_is_by_model_type(module):
    assert family_of(module) is FAMILIES[module.config.model_type]


def test_names_are_unique_and_reversible(module):
    names = canonical_names(module, family_of(module))
    paths = {path for path, _ in module.named_parameters()}
    assert paths <= set(names.values())
    assert all(canonical(family_of(module), path) == name for name, path in names.items())


def test_no_name_keeps_a_path_of_the_library(module):
    names = canonical_names(module, family_of(module))
    known = r"(blocks\.\d+\.(attn|mlp|norm[12]|scale[12])|patch|cls|mask|distillation|positions"
    known += r"|tokens|segments|embed_norm|norm|pooler|head|head_distillation)(\.|$)"
    unexpected = [name for name in names if not re.match(known, name)]
    assert unexpected == []


def test_attention_and_mlp_have_the_same_words_everywhere(module):
    inside = {n for n in canonical_names(module, family_of(module)) if block_of(n) == 0}
    words = {n.removeprefix("blocks.0.").rsplit(".", 1)[0] for n in inside}
    fused = {"attn.qkv", "attn.out"}
    assert {"attn.q", "attn.k", "attn.v", "attn.out"} <= words or fused <= words
    assert {"mlp.fc1", "mlp.fc2"} <= words or {"mlp.gate", "mlp.up", "mlp.down"} <= words


def test_blocks_and_width(module):
    family = family_of(module)
    assert num_blocks(module, family) == 3
    assert hidden_size(module, family) == 16


def test_mlp_path_gives_the_width_of_the_block(module):
    family = family_of(module)
    part = module.get_submodule(family.mlp.format(2))
    last = [p for name, p in part.named_parameters() if name.endswith("weight")][-1]
    assert 16 in last.shape


def test_head_exists(module):
    paths = {path for path, _ in module.named_modules()}
    assert any(path in paths for path in family_of(module).head)


def test_default_targets_exist(module):
    paths = [path for path, _ in module.named_modules()]
    family = family_of(module)
    expected = {target for targets in family.targets.values() for target in targets}
    found = {t for t in expected for path in paths if path == t or path.endswith(f".{t}")}
    other_pooling = {"fc_norm"} if module.config.model_type == "videomae" else set()
    assert expected - found == other_pooling


def test_feedforward_is_among_the_targets_of_ia3(module):
    family = family_of(module)
    assert set(family.feedforward) <= set(family.targets["ia3"])


def test_old_and_new_names_of_a_vit_agree():
    pairs = [
        (
            "vit.encoder.layer.3.attention.attention.query.bias",
            "vit.layers.3.attention.q_proj.bias",
        ),
        ("vit.encoder.layer.3.attention.output.dense.bias", "vit.layers.3.attention.o_proj.bias"),
        ("vit.encoder.layer.3.intermediate.dense.bias", "vit.layers.3.mlp.fc1.bias"),
        ("vit.encoder.layer.3.output.dense.bias", "vit.layers.3.mlp.fc2.bias"),
    ]
    for old, new in pairs:
        assert canonical(FAMILIES["vit"], old) == canonical(FAMILIES["vit"], new)
    assert canonical(FAMILIES["vit"], pairs[0][0]) == "blocks.3.attn.q.bias"


def test_block_of_reads_the_number():
    assert block_of("blocks.11.attn.q.bias") == 11
    assert block_of("head.bias") is None


def test_a_plain_module_keeps_its_paths():
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert family_of(module) is PLAIN
    names = canonical_names(module, PLAIN)
    assert names == {name: name for name in module.state_dict()}


def test_two_tensors_with_one_name_are_refused():
    family = Family("clash", rules=((r"^\d\.", "same."),))
    with pytest.raises(ModelError, match=r"'0\.weight' and '1\.weight' would both be named"):
        canonical_names(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), family)


def test_no_blocks_is_an_error():
    with pytest.raises(ModelError, match="no blocks found at"):
        num_blocks(ShuffleNet(ShuffleNetConfig()), FAMILIES["shufflenet-v2"])


def test_no_width_is_an_error():
    with pytest.raises(ModelError, match="has no number 'hidden_size'"):
        hidden_size(nn.Linear(1, 1), PLAIN)
