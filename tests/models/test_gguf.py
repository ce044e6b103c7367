"""A GGUF file is unpacked into a model folder that computes the same."""

from __future__ import annotations

import chat_models
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fedpeft.core.errors import ModelError
from fedpeft.models import gguf as ours
from fedpeft.models.source import ModelRequest, load_model, sketch_model

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight, heads):
    """Order the rows of a query or key as GGUF does for Llama."""
    size = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, size, -1).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A Llama of 16 dimensions and its byte tokenizer, as GGUF; and the model itself."""
    gguf = pytest.importorskip("gguf")
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    folder = chat_models.chat_folder(tmp_path / "model", "llama")
    config, model = (each.from_pretrained(folder) for each in (AutoConfig, AutoModelForCausalLM))
    tokenizer = chat_models.chat_tokenizer(*chat_models.KINDS["llama"], begins=True)
    writer = gguf.GGUFWriter(str(tmp_path / "tiny.gguf"), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = {*tokenizer.all_special_tokens, *tokenizer.added_tokens_decoder}
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if each in special else 1 for each in vocabulary])
    import json

    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(each) for each in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy().astype(np.float32)
        part = name.removeprefix("model.").removesuffix(".weight")
        if part.startswith("layers."):
            _, block, inner = part.split(".", 2)
            if inner.endswith(("q_proj", "k_proj")):
                values = interleaved(values, config.num_attention_heads)
            part = f"blk.{block}.{NAMES[inner]}"
        whole = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
        writer.add_tensor(f"{whole.get(part, part)}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf", model.eval()


def test_an_unpacked_model_computes_the_same(file):
    path, original = file
    loaded = load_model(ModelRequest(str(path)))
    ids = torch.tensor([[5, 9, 40, 7, 60]])
    with torch.no_grad():
        found, expected = loaded.module(ids).logits, original(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert loaded.task.name == "causal-lm"
    sketch = sketch_model(ModelRequest(str(path)))
    assert {n: p.shape for n, p in sketch.module.named_parameters()} == {
        n: p.shape for n, p in loaded.module.named_parameters()
    }


def test_it_brings_its_tokenizer_and_template(file):
    from fedpeft.models.padding import open_tokenizer

    path, _ = file
    tokenizer = open_tokenizer(load_model(ModelRequest(str(path))).inputs.folder)
    words = "how warm is water?"
    assert tokenizer.decode(tokenizer.encode(words), skip_special_tokens=True) == words
    assert tokenizer.chat_template == chat_models.LLAMA3


def test_it_is_unpacked_once_and_again_when_the_file_changes(file):
    import os

    path, _ = file
    first = ours.unpacked(path)
    made = (first / "config.json").stat().st_mtime_ns
    assert ours.unpacked(path) == first
    assert (first / "config.json").stat().st_mtime_ns == made
    os.utime(path, (1, 1))
    assert ours.unpacked(path) != first
    assert [each.name for each in first.parent.iterdir() if each.name.startswith(".")] == []


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"not one")
    with pytest.raises(ModelError, match="is no GGUF file"):
        load_model(ModelRequest(str(tmp_path / "a.gguf")))


def test_a_broken_file_is_refused_and_leaves_nothing(file):
    path, _ = file
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="the transformers library does not read it"):
        ours.unpacked(path)
    cache = path.parent / "cache" / "gguf"
    assert list(cache.iterdir()) == []


def test_a_missing_package_or_a_full_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.gguf").write_bytes(b"GGUF and more")
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"the package gguf, .* install `fedpeft\[llm\]`"):
        ours.unpacked(tmp_path / "a.gguf")
    monkeypatch.undo()
    monkeypatch.setenv("FEDPEFT_CACHE", str(tmp_path / "cache"))
    pytest.importorskip("gguf")
    monkeypatch.setattr(ours, "_LARGER", 2**60)
    with pytest.raises(ModelError, match="set FEDPEFT_CACHE to a folder with more"):
        ours.unpacked(tmp_path / "a.gguf")
