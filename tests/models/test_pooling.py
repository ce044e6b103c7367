"""Pooling: what a classifier reads is the mean, or the first, of the text's own tokens."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from fedpeft.client.masks import spread_mask
from fedpeft.core.errors import ModelError
from fedpeft.models.loaded import LoadedModel
from fedpeft.models.pooling import pooled, pooling_of
from fedpeft.models.source import ModelRequest, load_model, sketch_model

SIZES = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 32, "vocab_size": 24, "max_position_embeddings": 48},
    "pad_token_id": 0,
}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 24}
MOBILE = {**SIZES, "embedding_size": 8, "intra_bottleneck_size": 8, "true_hidden_size": 8}
SQUEEZE = {**SIZES, "embedding_size": 16, **{f"{part}_groups": 1 for part in (
    "q", "k", "v", "post_attention", "intermediate", "output")}}  # fmt: skip
ENCODERS = {
    "Bert": SIZES,
    "Roberta": SIZES,
    "DistilBert": {**DISTIL, "pad_token_id": 0},
    "Electra": {**SIZES, "embedding_size": 8},
    "MPNet": SIZES,
    "Deberta": {**SIZES, "pooler_hidden_size": 16},
    "DebertaV2": {**SIZES, "pooler_hidden_size": 16},
    "Albert": {**SIZES, "embedding_size": 8},
    "XLMRoberta": SIZES,
    "Ernie": SIZES,
    "RoFormer": {**SIZES, "embedding_size": 16},
    "MobileBert": MOBILE,
    "SqueezeBert": SQUEEZE,
    "ModernBert": {**SIZES, "classifier_pooling": "mean", "cls_token_id": 1, "sep_token_id": 2},
}
WITH_POOLER = ("Albert", "Bert", "Deberta", "DebertaV2", "Ernie", "MobileBert", "SqueezeBert")
TOKENS = torch.tensor([[5, 6, 7, 8, 0, 0], [5, 9, 10, 11, 12, 13]])
MASK = (TOKENS != 0).long()


def saved(name: str, settings: dict[str, object], folder: Path, kind: str = "") -> str:
    """Save a model with weights so large that its tokens differ; return its folder."""
    cls = getattr(transformers, name + (kind or "ForSequenceClassification"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = cls(cls.config_class(**settings))
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.3)
            module.get_input_embeddings().weight[0] = 0  # MobileBERT reads a token's neighbours
    module.save_pretrained(folder)
    return str(folder)


def load(folder: str, pooling: str | None, labels: int = 3) -> LoadedModel:
    request = ModelRequest(folder, "text-classification", num_labels=labels, pooling=pooling)
    loaded = load_model(request)
    with torch.no_grad():  # a new head is so small that its logits hardly differ
        for path in loaded.head:
            for parameter in loaded.module.get_submodule(path).parameters():
                parameter.mul_(20)
    return loaded


def logits(module: nn.Module, rows: slice = slice(None), length: int = 6) -> Tensor:
    tokens, mask = TOKENS[rows, :length], MASK[rows, :length]
    with torch.no_grad():
        found: Tensor = module(input_ids=tokens, attention_mask=mask).logits
    return found


@pytest.mark.parametrize("how", ["mean", "cls"])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_head_reads_the_pooled_vector_alone_and_in_a_batch(name, how, tmp_path):
    folder = saved(name, ENCODERS[name], tmp_path)
    module = load(folder, how).module
    alone = logits(module, slice(0, 1), 4)
    torch.testing.assert_close(logits(module)[:1], alone, atol=1e-4, rtol=1e-4)
    backbone = module.base_model
    with torch.no_grad():
        states_TD = backbone.forward(TOKENS[:1, :4], attention_mask=MASK[:1, :4])[0][0]
        read = backbone(input_ids=TOKENS, attention_mask=MASK).last_hidden_state
    by_hand = sum(states_TD) / 4 if how == "mean" else states_TD[0]
    torch.testing.assert_close(read[0], by_hand[None], atol=1e-4, rtol=1e-4)
    with torch.no_grad():  # nothing but that vector reaches the head
        backbone.register_forward_hook(_zeros)
        blind = module(input_ids=TOKENS, attention_mask=MASK).logits
    torch.testing.assert_close(blind[0], blind[1])
    assert (alone[0] - blind[0]).abs().max() > 1e-3


def _zeros(backbone: nn.Module, args: object, output: dict[str, Tensor]) -> object:
    for value in output.values():
        value.zero_()
    return output


def test_the_mean_is_that_of_sentence_encoders():
    hidden_BTD, mask_BT = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)), MASK
    wide_BTD = mask_BT.unsqueeze(-1).expand(hidden_BTD.size()).float()
    theirs = (hidden_BTD * wide_BTD).sum(1) / wide_BTD.sum(1).clamp(min=1e-9)
    torch.testing.assert_close(pooled(hidden_BTD, mask_BT, "mean"), theirs)
    assert (hidden_BTD.mean(1) - theirs).abs().max() > 0.1, "padding would be seen"


def test_masks_of_two_and_of_four_axes_say_the_same():
    hidden_BTD = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    spread_B1TT = spread_mask(MASK, torch.float32, causal=False)
    for how in ("mean", "cls"):
        expected = pooled(hidden_BTD, MASK, how)
        assert torch.equal(pooled(hidden_BTD, spread_B1TT, how), expected)
        assert torch.equal(pooled(hidden_BTD, spread_B1TT == 0, how), expected)


def test_the_first_own_token_is_found_behind_padding_on_the_left():
    hidden_BTD, mask_BT = torch.arange(12.0).view(1, 4, 3), torch.tensor([[0, 0, 1, 1]])
    assert pooled(hidden_BTD, mask_BT, "cls").tolist() == [[6.0, 7.0, 8.0]]
    assert pooled(hidden_BTD, None, "cls").tolist() == [[0.0, 1.0, 2.0]]


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_unset_and_pooler_are_the_models_own_class(name, tmp_path):
    folder = saved(name, ENCODERS[name], tmp_path)
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    own = load_model(ModelRequest(folder)).module
    assert torch.equal(logits(own), logits(stock)) and pooling_of(own) is None
    if name == "Bert":
        assert torch.equal(logits(load_model(ModelRequest(folder, pooling="pooler")).module),
                           logits(stock))  # fmt: skip
    changed = load_model(ModelRequest(folder, pooling="mean")).module
    assert (logits(changed) - logits(stock)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ENCODERS)
def test_a_plan_has_the_tensors_of_the_model_and_no_unused_pooler(name, tmp_path):
    folder = saved(name, ENCODERS[name], tmp_path)
    for how in ("mean", "cls", *(["pooler"] if name in WITH_POOLER else [])):
        request = ModelRequest(folder, "text-classification", num_labels=3, pooling=how)
        loaded, planned = load_model(request), sketch_model(request)
        shapes = {path: tensor.shape for path, tensor in loaded.module.state_dict().items()}
        assert shapes == {p: tensor.shape for p, tensor in planned.module.state_dict().items()}
        assert loaded.fresh == planned.fresh
        inside = [path for path in shapes if path.startswith(loaded.module.base_model_prefix)]
        assert any("pooler" in path for path in inside) == (
            how == "pooler" and not name.startswith("Deberta")
        )
        assert loaded.recorded["model.pooling"] == how


def test_a_checkpoint_without_pooler_needs_none(tmp_path):
    folder = saved("Bert", SIZES, tmp_path, "ForMaskedLM")
    own, mean = load(folder, None), load(folder, "mean")
    assert {path.split(".")[0] for path in mean.fresh} == {"classifier"}
    assert "bert.pooler.dense.weight" in own.fresh, "read in its own way it has a new one"


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
)
def test_a_copied_model_pools(again, tmp_path):
    module = load(saved("Bert", SIZES, tmp_path), "mean").module
    assert pooling_of(again(module)) == "mean"
    assert torch.equal(logits(again(module)), logits(module))


def test_further_outputs_stay(tmp_path):
    module = load(saved("Bert", SIZES, tmp_path), "mean").module
    found = module(input_ids=TOKENS, attention_mask=MASK, output_hidden_states=True)
    assert [state.shape for state in found.hidden_states] == [(2, 6, 16)] * 3
    torch.testing.assert_close(found.logits, logits(module))


BART = {
    **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2},
    **{"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    **{"vocab_size": 24, "max_position_embeddings": 48, "pad_token_id": 0},
}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 24, "pad_token_id": 0}
CTRL = {"n_embd": 16, "dff": 32, "n_layer": 1, "n_head": 2, "vocab_size": 24, "pad_token_id": 0}
ALIEN = [
    ("GPT2", GPT2, "mean", "reads where a text ends", True),
    ("Bart", BART, "cls", "reads where a text ends", True),
    ("CTRL", CTRL, "mean", "cannot read a pooled vector", False),
    ("Roberta", SIZES, "pooler", "RobertaForSequenceClassification has no pooler", True),
]


@pytest.mark.parametrize(("name", "settings", "how", "message", "planned"), ALIEN)
def test_models_that_cannot_are_refused(name, settings, how, message, planned, tmp_path):
    request = ModelRequest(saved(name, settings, tmp_path), pooling=how)
    for read in (load_model, *([sketch_model] if planned else [])):
        with pytest.raises(ModelError, match=f"model.pooling: found '{how}' .*{message}.*leave"):
            read(request)


def test_a_pooling_that_there_is_not_is_refused():
    with pytest.raises(ModelError, match=r"found 'max'; choose one of mean, cls, pooler"):
        sketch_model(ModelRequest("preset:tiny-bert", pooling="max"))


@pytest.mark.parametrize("name", ["preset:tiny-vit", "preset:tiny-llama"])
@pytest.mark.parametrize("read", [load_model, sketch_model])
def test_other_tasks_are_refused(name, read):
    with pytest.raises(ModelError, match=r"its task is .*; leave the key out"):
        read(ModelRequest(name, pooling="mean"))
