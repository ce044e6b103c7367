"""GGUF files as models: unpacked once into an ordinary model folder, from which all else is read.

    model.gguf ──transformers, gguf──> float32 weights, config, tokenizer, chat template
                                       in the cache folder, by the file's path, size and time

`transformers` says which families it reads. What a file holds in 4 bits takes 32 in the folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import uuid
from pathlib import Path

import torch

from fedpeft.core.errors import ModelError
from fedpeft.core.text import byte_words
from fedpeft.models.quiet import quiet
from fedpeft.models.reading import read_start, reading

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_LARGER = 8
"""A folder has at most so many times the bytes of its file (32 bits for 4)."""


def unpacked(file: Path) -> Path:
    """Return the model folder of a GGUF file; it is made where it is not there yet.

    Raises:
      ModelError: if the file is none, the package `gguf` is not installed, `transformers` does not
        read the file's family, or the disk is too full.
    """
    if read_start(file, len(_MAGIC)) != _MAGIC:
        raise ModelError(f"{file}: is no GGUF file; give a model folder, or fetch the file again")
    folder = _cache() / _key(file)
    if (folder / "config.json").is_file():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"{file}: GGUF files are read by the package gguf, which is not installed; install "
            "`fedpeft[llm]`"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed, free = _LARGER * file.stat().st_size, shutil.disk_usage(folder.parent).free
    if free < needed:
        raise ModelError(
            f"{file}: is unpacked once, to at most {byte_words(needed)} in {folder.parent}, which "
            f"has {byte_words(free)}; set FEDPEFT_CACHE to a folder with more"
        )
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        with reading(file, "the transformers library does not read it", advice=_ADVICE):
            _unpack(file, partial)
        if not folder.exists():
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


_ADVICE = "give the model in the form of transformers, a folder with config.json and safetensors"


def _unpack(file: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True
        )
        model.hf_quantizer = None  # its weights are ordinary ones by now
        del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _key(file: Path) -> str:
    """Return the name of a file's folder: other contents have another size or time."""
    found = file.resolve().stat()
    words = f"{file.resolve()} {found.st_size} {found.st_mtime_ns}"
    return f"{file.stem[:60]}-{hashlib.sha256(words.encode()).hexdigest()[:16]}"


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FEDPEFT_CACHE") or Path(home) / "fedpeft") / "gguf"
