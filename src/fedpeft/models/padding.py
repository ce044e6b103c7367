"""Padding: one token id for the model, its batches and its export.

    tokenizer's padding token, config's pad_token_id, config's or tokenizer's end of text
        └── the first that the model has an embedding for and the tokenizer a token

A decoder with a classifier reads the last token that is not padding: where its config names another
token than the batch is padded with, a text's score depends on its neighbours in the batch. Models
whose positions start after the padding id (RoBERTa) keep the config's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fedpeft.core.errors import ModelError
from fedpeft.models.loaded import PadTokens, TextInput
from fedpeft.models.quiet import quiet
from fedpeft.models.reading import reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_SAME = 0.01
"""Of a score: rounding is a thousand times smaller, padding that is read far larger."""
_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    *("config.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model"),
)
"""Files that a tokenizer is made of."""

UNMASKED: Mapping[str, str] = {
    "convbert": "its convolutions read the padding beside a text",
    "fnet": "its Fourier transform mixes padding into a text",
    "reformer": "its attention reads other tokens where a text is padded",
    "xlnet": "its head reads the last token of a row, which may be padding",
    "yoso": "its attention counts padding",
}
"""`model_type` -> why its classifiers score a text by its padding too, in the library's code."""


def refuse_unmasked(model_type: str, *, where: str) -> None:
    """Refuse a classifier whose logits of a text depend on the texts that it is batched with.

    Raises:
      ModelError: naming the reason.
    """
    if model_type in UNMASKED:
        raise ModelError(
            f"model {where!r}: type {model_type!r} cannot classify texts in batches: "
            f"{UNMASKED[model_type]}, so a text's score would change with the other texts of its "
            "batch; choose another model, such as a BERT, RoBERTa or DeBERTa"
        )


def pad_tokens(module: nn.Module, *, ends: bool) -> PadTokens:
    """Return what a model and its config say about padding.

    Args:
      module: a model of `transformers`.
      ends: whether its head finds the end of a text by the padding.
    """
    config, (_, fixed) = getattr(module, "config", None), position_table(module) or (0, None)
    embedding = getattr(module, "get_input_embeddings", lambda: None)()
    num_tokens = getattr(embedding, "num_embeddings", None)
    text = getattr(config, "get_text_config", lambda: config)()
    found = getattr(text, "eos_token_id", None)
    eos = tuple(found) if isinstance(found, list | tuple) else (found,)
    pad = getattr(text, "pad_token_id", None) if fixed is None else fixed
    known = (pad, *eos)
    usable = tuple(i for i in known if isinstance(i, int) and _within(i, num_tokens))
    return PadTokens(
        pad=pad if pad in usable else None,
        eos=tuple(token for token in usable if token in eos),
        num_tokens=num_tokens,
        fixed=fixed is not None,
        ends=ends,
    )


def position_table(module: nn.Module) -> tuple[int, int | None] | None:
    """Return a model's (rows, padding index) of learnt absolute positions; None if it has none.

    A table with a padding index counts positions from the number after it (RoBERTa, XLM-R,
    CamemBERT, MPNet, Longformer): so many rows are no places for tokens.
    """
    for path, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if path.rpartition(".")[2] == "position_embeddings" and weight is not None:
            return len(weight), getattr(part, "padding_idx", None)
    return None


def open_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer, without running code that came with the model.

    Args:
      folder: folder or hub id.

    Raises:
      ModelError: if there is no tokenizer, or its files are broken.
    """
    if not folder:
        raise ModelError(
            "model.name: no tokenizer loads from a preset without files; take a model with a "
            "tokenizer, such as a folder, a hub id or preset:narrow-bert"
        )
    from transformers import AutoTokenizer

    path = Path(folder)
    files = [path / name for name in _FILES] if path.is_dir() else []
    advice = "a folder of a text model holds tokenizer.json: fetch the model again"
    problem = "no tokenizer loads"
    with quiet(), reading(f"model.name: {folder!r}", problem, advice=advice, files=files):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=path.is_dir(), trust_remote_code=False
        )
        _try_out(tokenizer)
    return tokenizer


def _try_out(tokenizer: PreTrainedTokenizerBase) -> None:
    """Use a tokenizer once, as data do: some settings of a wrong type raise at the first text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    cut = getattr(backend, "truncation", None)
    tokens = tokenizer(["a"], truncation=True, max_length=2, return_attention_mask=False)
    if not all(isinstance(token, int) for token in tokens["input_ids"][0]):
        raise ValueError("it makes no whole numbers of a text")
    _ = (len(tokenizer), tokenizer.all_special_ids, tokenizer.added_tokens_decoder)
    if backend is not None:  # it remembers the last call, and would be saved with it
        backend.no_truncation()
        if cut is not None:
            backend.enable_truncation(**cut)


def choose_padding(inputs: TextInput, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the one padding id of a model.

    Args:
      inputs: the form of the model's inputs.
      tokenizer: its tokenizer; None where it has none.

    Raises:
      ModelError: if the head finds the end of a text by the padding, and neither config nor
        tokenizer names a token that both know.
    """
    if inputs.padding.fixed and inputs.padding.pad is not None:
        return inputs.padding.pad
    for token in _candidates(inputs, tokenizer):
        if _within(token, inputs.padding.num_tokens) and _has(tokenizer, token):
            return token
    if not inputs.padding.ends:
        return 0  # masked: no logit depends on it
    raise ModelError(
        f"model.name: {inputs.folder or 'the preset'}: this classifier finds the end of a text by "
        "its padding, and neither config.json nor the tokenizer names a padding or end token that "
        "the model has an embedding for; set pad_token in tokenizer_config.json to a token that "
        "texts do not hold, and pad_token_id in config.json to its id"
    )


def set_padding(module: nn.Module, inputs: TextInput) -> None:
    """Write the one padding id into a model's config.

    Raises:
      ModelError: as `choose_padding`.
    """
    tokenizer = None
    if inputs.folder and not (inputs.padding.fixed and inputs.padding.pad is not None):
        try:
            tokenizer = open_tokenizer(inputs.folder)
        except ModelError:  # data that need one say so
            tokenizer = None
    pad = choose_padding(inputs, tokenizer)
    config: Any = module.config
    texts = getattr(config, "get_text_config", lambda: config)()
    for part in (config, texts, getattr(module, "generation_config", None)):
        if part is not None:
            part.pad_token_id = pad


def check_padding(module: nn.Module, inputs: TextInput) -> None:
    """Check that a classifier scores a text alone as it does beside a longer one.

    Raises:
      ModelError: if it reads its padding: it has no attention mask (FNet), or takes the text's end
        from the last place (XLNet); or if it cannot be run on short texts at all.
    """
    pad, rows = int(module.config.pad_token_id), inputs.padding.num_tokens or 0  # type: ignore[union-attr, arg-type]
    words = [token for token in range(rows - 1, -1, -1) if token not in (pad, *inputs.padding.eos)]
    length = min(8, inputs.max_length)
    if len(words) < length or length < 2:
        return
    tokens_BT = torch.tensor([words[:length], words[:length]])
    mask_BT = torch.ones_like(tokens_BT)
    short_length = length // 2
    if inputs.padding.eos:  # some read a text where it ends (BART, T5)
        tokens_BT[0, -1] = tokens_BT[1, short_length - 1] = inputs.padding.eos[0]
    tokens_BT[1, short_length:], mask_BT[1, short_length:] = pad, 0
    where = f"model.name: {inputs.folder or 'the preset'}"
    advice = "take another model, such as a BERT, RoBERTa or DeBERTa"
    with reading(where, "it cannot be run on short texts", advice=advice), torch.no_grad():
        beside = module(input_ids=tokens_BT, attention_mask=mask_BT).logits[1]
        short = slice(1, None), slice(0, short_length)
        alone = module(input_ids=tokens_BT[short], attention_mask=mask_BT[short]).logits[0]
    if (beside - alone).abs().max() > _SAME * alone.abs().max():
        raise ModelError(
            f"{where}: this classifier reads its padding: the "
            "score of a text depends on the texts beside it in a batch. Take a model with an "
            "attention mask that is padded on the right"
        )


def _candidates(inputs: TextInput, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[int]:
    """Yield tokens in the order in which they are tried.

    A padding token of the config that is an ordinary word of the tokenizer goes last: as padding it
    would become special, and be cut out of longer words.
    """
    padding = inputs.padding
    own = () if padding.pad is None else (padding.pad,)
    if tokenizer is None:
        yield from (*own, *padding.eos)
    else:
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        first = (pad, *(i for i in own if i in special), *padding.eos, eos)
        yield from (i for i in first if i is not None)
        if not padding.ends:
            yield from tokenizer.all_special_ids  # masked: any will do
        yield from own


def _within(token: int, num_tokens: int | None) -> bool:
    return token >= 0 and (num_tokens is None or token < num_tokens)


def _has(tokenizer: PreTrainedTokenizerBase | None, token: int) -> bool:
    return tokenizer is None or (
        token < len(tokenizer) and tokenizer.convert_ids_to_tokens(token) is not None
    )
