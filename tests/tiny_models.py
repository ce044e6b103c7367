"""Folders of tiny untrained text models, each with a tokenizer of a few words."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

WORDS = ("<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(20)))
"""The words of the tokenizer; its ids are their places."""
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
}
TEXT_MODELS = {
    "bert": {},
    "roberta": {"pad_token_id": 0},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40},
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2},
    "gemma": {"num_key_value_heads": 2, "head_dim": 8},
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "phi": {"num_key_value_heads": 2},
}


def text_folder(folder: Path, kind: str, config: dict, tokens: dict) -> Path:
    """Save a text classifier of two classes.

    Args:
      folder: to write.
      kind: `model_type` of the library.
      config: settings that replace the small ones.
      tokens: special tokens of the tokenizer; one that is no word of it is added at the end.
    """
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{"bos_token": "<s>", "unk_token": "<unk>", **tokens}
    ).save_pretrained(folder)
    settings = {**SIZES, "bos_token_id": 1, "eos_token_id": 2, **TEXT_MODELS[kind], **config}
    pad = settings.get("pad_token_id")
    beyond = pad is not None and not 0 <= pad < settings["vocab_size"]
    changed = {"pad_token_id": settings.pop("pad_token_id")} if beyond else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForSequenceClassification.from_config(
            AutoConfig.for_model(kind, **settings)
        )
    made.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return folder


def texts(count: int = 30) -> list[dict[str, object]]:
    """Return rows of one to nine words, some unknown or special, with two classes."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        length = 1 + number % 9
        drawn = torch.randint(0, 21, (length,), generator=draw).tolist()
        words = ["other" if i == 20 else f"w{i}" for i in drawn]
        words += [["</s>"], ["<unk>"], []][number % 3]
        rows.append({"text": " ".join(words), "label": number % 2})
    return rows
