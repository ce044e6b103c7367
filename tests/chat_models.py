"""Folders of tiny untrained language models, each with its own tokenizer and chat template."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

WORDS = ("how warm is water when it boils", "it boils at one hundred degrees", "and on a mountain?")
"""What the tokenizer's merges are learnt from."""

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen2 writes a conversation."""
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""As Llama 3 writes a conversation."""
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no role ' + m.role) }}{% endif %}{% endfor %}"
)
"""As Llama 2 and Mistral write a conversation: no words begin an answer."""
THINKING = (
    "{% set last = namespace(user=0) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% if loop.index0 > last.user and '</think>' not in m.content %}"
    "<think>\n\n</think>\n\n{{ m.content }}{% elif loop.index0 > last.user %}{{ m.content }}"
    "{% else %}{{ m.content.split('</think>')[-1] | trim }}{% endif %}{% else %}{{ m.content }}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3 writes a conversation: what was thought is left out of earlier answers."""

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 512,
}
KINDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "qwen2": (CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
    "llama": (
        LLAMA3,
        ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    ),
}
"""`model_type` -> (template, special tokens, of which the first begins and the second ends)."""


@functools.cache
def _bytes_and_words() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return str(tokenizer.to_str())


def chat_tokenizer(
    template: str | None = CHATML,
    special: tuple[str, ...] = KINDS["qwen2"][1],
    *,
    begins: bool = False,
) -> PreTrainedTokenizerFast:
    """Make a tokenizer of bytes and a few words.

    Args:
      template: chat template; None for none.
      special: special tokens; the first begins a text, the last ends it.
      begins: whether every text gets the first special token.
    """
    tokenizer = Tokenizer.from_str(_bytes_and_words())
    tokenizer.add_special_tokens([*special])
    if begins:
        place = tokenizer.token_to_id(special[0])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", special_tokens=[(special[0], place)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[-1]
    )
    made.chat_template = template
    return made


def chat_folder(
    folder: Path, kind: str = "qwen2", *, template: str | None = "", **config: object
) -> Path:
    """Save an untrained language model with its tokenizer.

    Args:
      folder: to write.
      kind: `model_type` of the library, a key of `KINDS`.
      template: another chat template, or None for none.
      config: settings that replace the small ones.
    """
    own, special = KINDS[kind]
    tokenizer = chat_tokenizer(own if template == "" else template, special, begins=kind == "llama")
    tokenizer.save_pretrained(folder)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    settings = {**SIZES, "vocab_size": len(tokenizer), **ends, **config}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # so that attention matters to a loss
    made.save_pretrained(folder)
    return folder


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
