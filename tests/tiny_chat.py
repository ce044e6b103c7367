"""Folders of tiny untrained language models with chat templates: their tokens are bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "[{{ m['role'] }}]{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
KINDS = {
    "llama": (LLAMA_TEMPLATE, ("<s>", "</s>"), {"bos_token": "<s>", "eos_token": "</s>"}),
    "qwen2": (
        QWEN_TEMPLATE,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
}
"""`model_type` -> (chat template, special tokens, their roles)."""


def tokens_of(text: str) -> list[int]:
    """Return the tokens of a text of ASCII characters, by any of these tokenizers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [alphabet.index(letter) for letter in text.replace(" ", "\u0120")]


def chat_folder(folder: Path, kind: str, *, template: bool = True, length: int = 256) -> Path:
    """Save a language model of 16 dimensions, and its tokenizer.

    Args:
      folder: to write.
      kind: a key of `KINDS`.
      template: whether the tokenizer has a chat template.
      length: largest number of tokens that the model reads.
    """
    text, special, roles = KINDS[kind]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **roles)
    tokenizer.chat_template = text if template else None
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,  # answers of random weights then differ from token to token
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
