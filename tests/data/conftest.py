"""Shared fixtures: a tiny tokenizer folder and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fedpeft.models.loaded import ImageInput, TextInput

WORDS = ("<pad>", "<s>", "<unk>", "the", "cat", "sat", "dog", "barks", "loud", "down")


@pytest.fixture(scope="session")
def text_input(tmp_path_factory: pytest.TempPathFactory) -> TextInput:
    """A word tokenizer that puts `<s>` (1) in front; `<pad>` is 0, words start at 3."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)
    return TextInput(str(folder), 16)


@pytest.fixture
def image_input() -> ImageInput:
    return ImageInput(8, 8, 3, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture
def noise() -> npt.NDArray[np.uint8]:
    """Forty pictures of 8 x 8 in colour."""
    return np.random.RandomState(0).randint(0, 256, (40, 8, 8, 3)).astype(np.uint8)
