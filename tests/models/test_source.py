"""Loading: the backbone equals the files, and only the head is new."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTModel,
)
from transformers.utils import logging

from fedpeft.core.errors import ModelError
from fedpeft.models.families import canonical_names
from fedpeft.models.loaded import ImageInput, PadTokens, TextInput
from fedpeft.models.source import ModelRequest, load_model, sketch_model

ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 34,
}
IMAGES = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)
TOKENS = torch.arange(10).view(2, 5)


def shapes(loaded) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in loaded.module.named_parameters()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Small folders of several kinds, as the library saves them."""
    torch.manual_seed(1)
    root = tmp_path_factory.mktemp("folders")
    models = {
        "bert": BertModel(BertConfig(**ENCODER)),
        "bert-no-pooler": BertForMaskedLM(BertConfig(**ENCODER)),
        "distilbert": DistilBertModel(
            DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=40)
        ),
        "roberta": RobertaForSequenceClassification(RobertaConfig(**ENCODER)),
        "llama": LlamaForCausalLM(LlamaConfig(**ENCODER)),
        "llama-tied": LlamaForCausalLM(LlamaConfig(**ENCODER, tie_word_embeddings=True)),
        "llama-no-head": LlamaModel(LlamaConfig(**ENCODER)),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
    return root


def test_names_of_4_and_of_5_give_one_model(vit_folder, old_vit_folder, tiny_vit):
    new = load_model(ModelRequest(str(vit_folder)))
    old = load_model(ModelRequest(str(old_vit_folder)))
    assert shapes(new) == shapes(old)
    with torch.no_grad():
        expected = tiny_vit(pixel_values=IMAGES).logits
        assert torch.equal(new.module(pixel_values=IMAGES).logits, expected)
        assert torch.equal(old.module(pixel_values=IMAGES).logits, expected)
    assert new.fresh == old.fresh == frozenset()


def test_a_new_head_leaves_the_backbone(vit_folder, tiny_vit):
    loaded = load_model(ModelRequest(str(vit_folder), num_labels=7))
    assert loaded.fresh == {"classifier.weight", "classifier.bias"}
    assert loaded.module.classifier.weight.shape == (7, 16)
    for name, tensor in tiny_vit.vit.state_dict().items():
        assert torch.equal(loaded.module.vit.state_dict()[name], tensor), name


def test_a_backbone_alone_loads(tiny_vit, tmp_path):
    bare = ViTModel(tiny_vit.config, add_pooling_layer=True)
    bare.load_state_dict(tiny_vit.vit.state_dict(), strict=False)
    bare.save_pretrained(tmp_path)
    loaded = load_model(ModelRequest(str(tmp_path), num_labels=4))
    assert torch.equal(loaded.module.vit.layernorm.weight, tiny_vit.vit.layernorm.weight)
    assert loaded.task.name == "image-classification"


def test_a_loaded_model_is_float32_in_eval_mode_without_dropout(vit_folder):
    module = load_model(ModelRequest(str(vit_folder))).module
    assert not module.training
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert {m.p for m in module.modules() if isinstance(m, nn.Dropout)} == {0.0}
    assert module.config.hidden_dropout_prob == 0.0
    module.train()
    assert torch.equal(
        module(pixel_values=IMAGES).logits, module.eval()(pixel_values=IMAGES).logits
    )


def test_a_model_of_a_family_that_we_do_not_know_loads(tmp_path):
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3
    )
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    loaded = load_model(ModelRequest(str(tmp_path), num_labels=5))
    assert (loaded.family.name, loaded.head) == ("plain", ("classifier",))
    assert loaded.fresh == {"classifier.1.weight", "classifier.1.bias"}


def test_half_precision_files_become_float32(tiny_vit, write_folder, tmp_path):
    halves = {name: t.half() for name, t in tiny_vit.state_dict().items()}
    loaded = load_model(ModelRequest(str(write_folder(tmp_path / "half", tiny_vit, halves))))
    assert {p.dtype for p in loaded.module.parameters()} == {torch.float32}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_can_be_chosen(vit_folder, attention):
    module = load_model(ModelRequest(str(vit_folder), attention=attention)).module
    assert module.config._attn_implementation == attention


def test_attention_is_sdpa_where_the_model_has_it(vit_folder):
    assert load_model(ModelRequest(str(vit_folder))).module.config._attn_implementation == "sdpa"


def test_unknown_attention_is_an_error(vit_folder):
    with pytest.raises(ModelError, match="cannot be built with attention 'fancy'"):
        load_model(ModelRequest(str(vit_folder), attention="fancy"))


def spoiled(folder, target, change):
    """Copy a folder and change its tensors."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return str(target)


def test_a_missing_backbone_tensor_is_an_error(vit_folder, tmp_path):
    name = "vit.layers.1.mlp.fc1.bias"
    broken = spoiled(vit_folder, tmp_path / "m", lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=rf"1 missing: {name}"):
        load_model(ModelRequest(broken, num_labels=3))


def test_a_misshapen_backbone_tensor_is_an_error(vit_folder, tmp_path):
    def cut(tensors):
        tensors["vit.embeddings.position_embeddings"] = torch.zeros(1, 9, 16)

    with pytest.raises(ModelError, match=r"1 of another shape: vit\.embeddings\.position"):
        load_model(ModelRequest(spoiled(vit_folder, tmp_path / "m", cut), num_labels=3))


def test_a_missing_head_is_no_error(vit_folder, tmp_path):
    """The negative control of the two tests above."""

    def behead(tensors):
        del tensors["classifier.weight"], tensors["classifier.bias"]

    loaded = load_model(ModelRequest(spoiled(vit_folder, tmp_path / "m", behead)))
    assert loaded.fresh == {"classifier.weight", "classifier.bias"}


def test_a_language_model_needs_its_head(folders):
    with pytest.raises(ModelError, match=r"missing: lm_head\.weight"):
        load_model(ModelRequest(str(folders / "llama-no-head"), task="causal-lm"))


def test_pickled_weights_are_not_read(vit_folder, tiny_vit, tmp_path):
    shutil.copy(vit_folder / "config.json", tmp_path)
    torch.save(tiny_vit.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model\.safetensors \(found \['pytorch_model\.bin'\]"):
        load_model(ModelRequest(str(tmp_path)))


def test_a_broken_file_is_an_error(vit_folder, tmp_path):
    shutil.copytree(vit_folder, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="the weights cannot be read"):
        load_model(ModelRequest(str(tmp_path / "m")))


def test_a_folder_without_config_is_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_model(ModelRequest(str(tmp_path)))


def test_a_folder_without_config_takes_the_one_of_the_request(vit_folder, tmp_path):
    shutil.copy(vit_folder / "model.safetensors", tmp_path)
    loaded = load_model(ModelRequest(str(tmp_path), config=str(vit_folder)))
    assert loaded.fresh == frozenset()


@pytest.mark.parametrize("text", ["not json", "[1, 2]"])
def test_a_broken_config_is_an_error(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match="not a JSON object"):
        load_model(ModelRequest(str(tmp_path)))


def test_a_foreign_model_type_is_an_error_and_runs_no_code(tmp_path):
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="model type 'mine' cannot be read"):
        load_model(ModelRequest(str(tmp_path)))


def test_a_pooler_that_is_there_is_backbone(folders):
    loaded = load_model(ModelRequest(str(folders / "bert"), num_labels=4))
    assert loaded.fresh == {"classifier.weight", "classifier.bias"}
    assert loaded.inputs == TextInput(str(folders / "bert"), 34, PadTokens(0, num_tokens=40))


def test_a_pooler_that_is_not_there_belongs_to_the_head(folders):
    loaded = load_model(ModelRequest(str(folders / "bert-no-pooler"), num_labels=4))
    assert {"bert.pooler.dense.weight", "classifier.weight"} < loaded.fresh
    assert loaded.module.bert.pooler.dense.bias.abs().max() == 0


def test_distilberts_second_layer_belongs_to_the_head(folders):
    loaded = load_model(ModelRequest(str(folders / "distilbert"), num_labels=4))
    assert {n.rpartition(".")[0] for n in loaded.fresh} == {"pre_classifier", "classifier"}


def test_every_layer_of_robertas_head_is_new(folders):
    loaded = load_model(ModelRequest(str(folders / "roberta"), num_labels=4))
    assert {n.rpartition(".")[0] for n in loaded.fresh} == {
        "classifier.dense",
        "classifier.out_proj",
    }
    assert loaded.inputs.max_length == 32


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_a_language_model_keeps_its_head(folders, name):
    loaded = load_model(ModelRequest(str(folders / name), num_labels=4))
    assert loaded.task.name == "causal-lm"
    assert loaded.fresh == frozenset()
    assert loaded.head == ("lm_head",)
    expected = LlamaForCausalLM.from_pretrained(folders / name)(TOKENS).logits
    assert torch.allclose(loaded.module(TOKENS).logits, expected, atol=1e-6)


def test_a_decoder_can_classify_padded_texts(folders):
    loaded = load_model(
        ModelRequest(str(folders / "llama"), task="text-classification", num_labels=4)
    )
    assert loaded.fresh == {"score.weight"}
    assert loaded.module(input_ids=TOKENS).logits.shape == (2, 4)


def test_a_bare_decoder_is_ambiguous(folders):
    with pytest.raises(ModelError, match="set the task to one of text-classification, causal-lm"):
        load_model(ModelRequest(str(folders / "llama-no-head")))


def test_a_task_that_is_not_the_models_is_an_error(folders):
    with pytest.raises(ModelError, match="does not support image-classification; it supports text"):
        load_model(ModelRequest(str(folders / "bert"), task="image-classification"))


def test_an_unknown_task_is_an_error(folders):
    with pytest.raises(ModelError, match="task 'translation': unknown; choose one of"):
        load_model(ModelRequest(str(folders / "bert"), task="translation"))


@pytest.mark.parametrize(
    ("classes", "params"), [(100, 85_875_556), (45, 85_833_261), (2, 85_800_194)]
)
def test_the_papers_backbone_has_the_papers_counts(classes, params):
    loaded = sketch_model(ModelRequest("preset:vit-base-patch16-224", num_labels=classes))
    assert sum(p.numel() for p in loaded.module.parameters()) == params
    assert all(p.is_meta for p in loaded.module.parameters())


def test_a_sketch_is_quick_and_small_for_a_large_model():
    loaded = sketch_model(ModelRequest("preset:llama-7b"))
    assert all(t.is_meta for t in loaded.module.state_dict().values())


def test_a_hub_name_is_sketched_from_a_config_without_network():
    request = ModelRequest("google/some-vit", config="preset:vit-base-patch16-224", num_labels=100)
    loaded = sketch_model(request)
    assert loaded.source == "google/some-vit"
    assert loaded.folder is None
    assert loaded.inputs == ImageInput(224, 224, 3, (0.5,) * 3, (0.5,) * 3)


def test_a_sketch_of_text_names_the_tokenizer_of_the_hub():
    request = ModelRequest("org/some-bert", config="preset:bert-base-uncased")
    assert sketch_model(request).inputs == TextInput(
        "org/some-bert", 512, PadTokens(0, num_tokens=30522)
    )


def test_a_config_file_is_enough_for_a_sketch(vit_folder):
    request = ModelRequest("org/some-vit", config=str(vit_folder / "config.json"), num_labels=9)
    assert sketch_model(request).module.classifier.out_features == 9


NAMES = ["bert", "bert-no-pooler", "distilbert", "roberta", "llama", "llama-tied"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_labels", [None, 4])
def test_a_sketch_agrees_with_the_model(folders, name, num_labels):
    request = ModelRequest(str(folders / name), num_labels=num_labels)
    real, sketch = load_model(request), sketch_model(request)
    assert shapes(real) == shapes(sketch)
    assert dataclasses.replace(real, module=sketch.module) == sketch


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-bert", "tiny-llama", "tiny-shufflenet"])
def test_a_preset_is_a_function_of_its_seed(name):
    def weights(seed):
        module = load_model(ModelRequest(f"preset:{name}", seed=seed)).module
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_preset_and_its_sketch_agree():
    request = ModelRequest("preset:tiny-vit", num_labels=4)
    real, sketch = load_model(request), sketch_model(request)
    assert dataclasses.replace(real, module=sketch.module) == sketch
    assert real.fresh == {"classifier.weight", "classifier.bias"}


def test_only_a_preset_for_any_channels_heeds_the_data():
    tiny = sketch_model(ModelRequest("preset:tiny-vit", data_channels=3))
    base = sketch_model(ModelRequest("preset:vit-base-patch16-224", data_channels=1))
    assert tiny.inputs.channels == 3
    assert base.inputs.channels == 3


def test_the_head_depends_on_the_seed_alone(vit_folder, old_vit_folder):
    """Equal for two ways to the same width; another seed is the negative control."""

    def head(name, seed):
        return load_model(ModelRequest(str(name), num_labels=4, seed=seed)).module.classifier.weight

    assert torch.equal(head(vit_folder, 1), head(old_vit_folder, 1))
    assert torch.equal(head(vit_folder, 1), head("preset:tiny-vit", 1))
    assert not torch.equal(head(vit_folder, 1), head(vit_folder, 2))


def test_the_papers_head_is_uniform(vit_folder):
    loaded = load_model(ModelRequest(str(vit_folder), num_labels=50, head_init="paper"))
    layer = loaded.module.classifier
    assert 0.24 < layer.weight.abs().max() <= 0.25
    assert layer.bias.abs().max() > 0.1


def test_global_state_is_left_alone(vit_folder, capfd):
    logging.set_verbosity(logging.INFO)
    before = (torch.get_rng_state(), logging.get_verbosity(), logging.is_progress_bar_enabled())
    filters = list(warnings.filters)
    load_model(ModelRequest(str(vit_folder), num_labels=4))
    load_model(ModelRequest("preset:tiny-llama"))
    after = (torch.get_rng_state(), logging.get_verbosity(), logging.is_progress_bar_enabled())
    logging.set_verbosity(logging.WARNING)
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert warnings.filters == filters
    assert capfd.readouterr() == ("", "")


def test_names_on_the_wire_are_those_of_the_family(vit_folder):
    loaded = load_model(ModelRequest(str(vit_folder)))
    names = canonical_names(loaded.module, loaded.family)
    assert names["blocks.1.attn.q.bias"] == "vit.layers.1.attention.q_proj.bias"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_found_and_named(tiny_vit, write_folder, tmp_path, value):
    tensors = {name: tensor.clone() for name, tensor in tiny_vit.state_dict().items()}
    name = next(name for name in tensors if "layer" in name and name.endswith("weight"))
    tensors[name].view(-1)[0] = value
    folder = write_folder(tmp_path / "damaged", tiny_vit, tensors)
    with pytest.raises(ModelError, match=r"1 tensors of .*damaged hold NaN or infinity: .*layer"):
        load_model(ModelRequest(str(folder), num_labels=3))


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_a_classifier_that_reads_the_end_of_a_text_loads(kind, tmp_path):
    sizes = {"vocab_size": 24, "d_model": 16, "pad_token_id": 0, "eos_token_id": 2}
    small = {
        "bart": {f"{part}_{n}": v for part in ("encoder", "decoder")
                 for n, v in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))},
        "t5": {"d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **sizes, **small[kind])
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    loaded = load_model(ModelRequest(str(tmp_path), "text-classification", num_labels=2))
    assert loaded.module.config.eos_token_id == 2


def test_a_classifier_that_cannot_be_run_is_refused(tmp_path):
    sizes = {"vocab_size": 24, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("lilt", intermediate_size=16, channel_shrink_ratio=4, **sizes)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be run on short texts"):
        load_model(ModelRequest(str(tmp_path), "text-classification", num_labels=2))
