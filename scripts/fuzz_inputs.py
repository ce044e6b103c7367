"""Mutate experiment files, data files and model folders: each is read, or refused in one sentence.

    whole input ──mutate, by (seed, number)──> reader ──> read | refused | neither

    python scripts/fuzz_inputs.py configs --count 50000    # prints those that are neither
    python scripts/fuzz_inputs.py data --count 500
    python scripts/fuzz_inputs.py models --count 500 --start 200    # goes on after a stop

Neither is any exception but our own, an error that does not name its file, and an input that
takes longer than 5 seconds.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import gzip
import io
import json
import logging
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedpeft.core.errors import FedpeftError

__all__ = [
    "check_config", "check_data", "check_model", "fuzz", "make_models", "mutate_folder",
    "mutate_text",
]  # fmt: skip

_SECONDS = 5.0
_ODD = (
    "-1", "0", "1e300", "-1e300", "1e-300", "nan", "inf", "-inf", "9" * 30, "true", '""', "[]",
    "{}", '"\\u0000"', "[[[[[[]]]]]]", "1979-05-27", "0x10", "1_000", '"' + "a" * 5000 + '"',
    "[1, 2, 3]", '"iid"', '"central"', "0.5", "2147483648",
)  # fmt: skip
_VALUES = (
    0,
    -1,
    10**9,
    10**6,
    10**30,
    1e300,
    -1e300,
    float("nan"),
    "x",
    "",
    None,
    [],
    {},
    True,
    0.5,
    3,
    [3],
    {"a": 1},
    ["x", 2],
    "a" * 5000,
    [[10**9]],
    2**31,
    "\u0000",
    {"type": []},
)
_KEYS = (
    "num_labels",
    "model_type",
    "architectures",
    "auto_map",
    "quantization_config",
    "dtype",
    "vocab_size",
    "id2label",
    "text_config",
    "num_hidden_layers",
    "pad_token_id",
)
_WORDS = ("=", "[", "]", '"', "\n", ".", "\u00e9", "\ufeff", "\r\n", "#", "[[sweep]]\n", "\x00")


def mutate_text(text: str, draw: random.Random) -> bytes:
    """Return a text file with one to four changes of values, lines, characters or bytes."""
    for _ in range(draw.randint(1, 4)):
        lines = text.splitlines(keepends=True) or [""]
        place = draw.randrange(len(lines))
        kind = draw.randrange(6)
        if kind <= 2 and "=" in lines[place]:
            key = lines[place].split("=")[0]
            lines[place] = f"{key}= {draw.choice(_ODD)}\n"
        elif kind == 3:
            lines.insert(place, draw.choice(lines))
        elif kind == 4:
            del lines[place]
        else:
            at = draw.randrange(len(lines[place]) + 1)
            lines[place] = lines[place][:at] + draw.choice(_WORDS) + lines[place][at:]
        text = "".join(lines)
    return mutate_bytes(text.encode("utf-8", "surrogatepass"), draw, often=0.1)


def mutate_bytes(content: bytes, draw: random.Random, *, often: float = 1.0) -> bytes:
    """Return bytes that are cut, changed in a few places, or doubled; with a probability."""
    if draw.random() >= often or not content:
        return content
    kind = draw.randrange(3)
    if kind == 0:
        return content[: draw.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 3, 30))):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed) if kind == 1 else content + bytes(changed)


def check_config(folder: Path, draw: random.Random) -> None:
    """Read, complete and check a mutated experiment file, with its sweep rows."""
    from fedpeft.experiment.read import read_experiment
    from fedpeft.experiment.resolve import resolve
    from fedpeft.experiment.sweep_rows import read_rows

    file = folder / "experiment.toml"
    file.write_bytes(mutate_text(draw.choice(_configs()), draw))
    experiment = read_experiment(file)
    rows = read_rows(file, ()) if experiment.sweep else ()
    for each in (experiment, *(row.experiment for row in rows[:3])):
        resolve(each)


def check_data(folder: Path, draw: random.Random) -> None:
    """Load a mutated data file or folder of pictures for a tiny model."""
    from fedpeft.data.load import load_splits
    from fedpeft.data.request import DataRequest
    from fedpeft.data.schemes import PartitionRequest
    from fedpeft.data.source import read_source
    from fedpeft.models.loaded import ImageInput

    suffix, content = draw.choice(_tables())
    if suffix in (".png", ".jpg", ".gif", ".tif"):
        for kind in ("cat", "dog"):
            (folder / kind).mkdir()
            for number in range(3):
                (folder / kind / f"{number}{suffix}").write_bytes(content)
        (folder / "cat" / f"1{suffix}").write_bytes(mutate_bytes(content, draw))
        source = folder
    elif suffix.startswith(".idx"):
        source = _write_idx(folder, content, draw, packed=suffix.endswith(".gz"))
    else:
        source = folder / f"data{suffix}"
        text = suffix in (".csv", ".tsv", ".jsonl") and draw.random() < 0.5
        source.write_bytes(
            mutate_text(content.decode(), draw) if text else mutate_bytes(content, draw)
        )
    partition = PartitionRequest("iid", 2, min_examples=1)
    request = DataRequest(str(source), partition=partition)
    inputs = ImageInput(8, 8, 1, (0.5,), (0.5,))
    splits = read_source(request)
    if "image" in next(iter(splits.tables.values())).columns or suffix in (".npz", ".parquet"):
        load_splits(splits, request, inputs)


def _write_idx(folder: Path, content: bytes, draw: random.Random, *, packed: bool) -> Path:
    """Write pictures and labels as MNIST has them, one of both files mutated."""
    header = (b"\0\0\x08\x01" + (12).to_bytes(4, "big"), b"\0\0\x08\x03" + content[:12])
    values = (bytes(i % 2 for i in range(12)), content[12:])
    files = [head + rest for head, rest in zip(header, values, strict=True)]
    chosen, inside = draw.randrange(2), draw.random() < 0.5
    for number, name in enumerate(("labels-idx1", "images-idx3")):
        whole = mutate_bytes(files[number], draw) if number == chosen and inside else files[number]
        whole = gzip.compress(whole, mtime=0) if packed else whole
        whole = mutate_bytes(whole, draw) if number == chosen and not inside else whole
        (folder / f"train-{name}-ubyte").write_bytes(whole)
    return folder


def check_model(folder: Path, draw: random.Random) -> None:
    """Load a mutated model folder, its sketch and its tokenizer."""
    from fedpeft.data.texts import load_tokenizer, tokenize
    from fedpeft.models.loaded import TextInput
    from fedpeft.models.source import ModelRequest, load_model, sketch_model

    model = folder / "model"
    shutil.copytree(draw.choice(make_models()), model)
    mutate_folder(model, draw)
    request = ModelRequest(str(model), num_labels=3)
    for read in draw.sample((load_model, sketch_model), 2):
        inputs = read(request).inputs
    if isinstance(inputs, TextInput):
        tokenize(["w1 w2", "w3"], load_tokenizer(inputs, None))


def mutate_folder(folder: Path, draw: random.Random) -> None:
    """Change one or two files of a model folder: settings, a header, bytes, or what the file is."""
    for _ in range(draw.choice((1, 1, 2))):
        file = draw.choice(sorted(folder.iterdir()))
        if not file.is_file():
            continue
        kind = draw.random()
        if kind < 0.15:
            _replace_file(file, draw)
        elif kind < 0.35 or file.suffix not in (".json", ".safetensors"):
            file.write_bytes(mutate_bytes(file.read_bytes(), draw))
        elif file.suffix == ".json":
            with contextlib.suppress(ValueError):
                file.write_text(json.dumps(_mutate_table(json.loads(file.read_bytes()), draw)))
        else:
            _mutate_header(file, draw)


def _replace_file(file: Path, draw: random.Random) -> None:
    """Put another thing, or nothing, in the place of a file."""
    content = file.read_bytes()
    file.unlink()
    kind = draw.randrange(7)
    if kind == 0:
        file.write_bytes(b"")
    elif kind == 1:
        file.mkdir()
    elif kind == 2:
        file.symlink_to(draw.choice((file.name, "nowhere", "/dev/zero", "..")))
    elif kind == 3:
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 12\n")
    elif kind == 4:
        file.with_name(draw.choice(("pytorch_model.bin", "adapter_config.json"))).write_bytes(
            content
        )
    elif kind == 5:
        shutil.copyfile(draw.choice(sorted(file.parent.iterdir())), file)


def _mutate_table(table: object, draw: random.Random) -> object:
    """Change, remove or add values of a JSON value, also of tables and lists inside."""
    if isinstance(table, dict) and table:
        for _ in range(draw.randint(1, 2)):
            key = draw.choice(sorted(table) or ["num_labels"])
            if draw.random() < 0.15:
                del table[key]
            elif draw.random() < 0.3 and isinstance(table[key], dict | list):
                table[key] = _mutate_table(table[key], draw)
            else:
                table[key if draw.random() < 0.9 else draw.choice(_KEYS)] = draw.choice(_VALUES)
        return table
    if isinstance(table, list) and table and draw.random() < 0.8:
        table[draw.randrange(len(table))] = draw.choice(_VALUES)
        return table
    return draw.choice(_VALUES)


def _mutate_header(file: Path, draw: random.Random) -> None:
    """Change the header of a safetensors file, with a right or a wrong length before it."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8:end])
    except ValueError:
        return
    name = draw.choice(sorted(header))
    entry = header[name]
    kind = draw.randrange(4)
    if kind == 0 and "dtype" in entry:
        entry["dtype"] = draw.choice(("I32", "U32", "F32", "F64", "BOOL", "X", 3, "F16"))
    elif kind == 1 and "shape" in entry:
        shape = entry["shape"]
        entry["shape"] = draw.choice((shape[::-1], [1, *shape], [], [10**12], [-1], "x", [0]))
    elif kind == 2:
        header[draw.choice(("x", "\u0000", "bert"))] = header.pop(name)
    else:
        header = _mutate_table(header, draw)
    words = json.dumps(header).encode()
    size = len(words) if draw.random() < 0.9 else draw.choice((0, 1, 2**62, len(words) + 1))
    file.write_bytes(size.to_bytes(8, "little") + words + content[end:])


@functools.cache
def make_models() -> tuple[Path, ...]:
    """Return folders of four tiny models, made once a process.

    They are a text classifier with a tokenizer, an image classifier with a processor, a language
    model in several files with an index, and our own convolutional network.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        ViTConfig,
        ViTForImageClassification,
    )

    from fedpeft.models.quiet import quiet
    from fedpeft.models.shufflenet import ShuffleNet, ShuffleNetConfig, save_shufflenet

    root = Path(tempfile.mkdtemp(prefix="fuzz-model-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    sizes: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16,
    }  # fmt: skip
    texts: dict[str, Any] = {**sizes, "vocab_size": 40, "max_position_embeddings": 16}
    bert, vit, llama, net = (root / name for name in ("bert", "vit", "llama", "shufflenet"))
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *(f"w{n}" for n in range(38))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with quiet():
        BertForSequenceClassification(BertConfig(**texts, num_labels=3)).save_pretrained(bert)
        LlamaForCausalLM(LlamaConfig(**texts)).save_pretrained(llama, max_shard_size="4KB")
        images = ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3)
        ViTForImageClassification(images).save_pretrained(vit)
        for folder in (bert, llama):
            PreTrainedTokenizerFast(
                tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
            ).save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8},
        "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2,
        "do_rescale": True, "rescale_factor": 1 / 255,
    }  # fmt: skip
    (vit / "preprocessor_config.json").write_text(json.dumps(processor))
    save_shufflenet(ShuffleNet(ShuffleNetConfig(3, 3, 8, (1, 1, 1), (4, 4, 4, 4, 8))), net)
    return bert, vit, llama, net


@functools.cache
def _configs() -> list[str]:
    root = Path(__file__).parents[1]
    files = [*sorted(root.glob("examples/*.toml")), *sorted(root.glob("experiments/small/*.toml"))]
    return [file.read_text("utf-8") for file in files]


@functools.cache
def _tables() -> list[tuple[str, bytes]]:
    """Return (suffix, content) of whole data files with 12 examples of two classes."""
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet

    draw = np.random.default_rng(1)
    pixels = draw.integers(0, 256, (12, 8, 8), dtype=np.uint8)
    labels = np.arange(12) % 2
    arrays, table = io.BytesIO(), io.BytesIO()
    np.savez(arrays, x=pixels, y=labels)
    encoded = []
    for row in pixels:
        buffer = io.BytesIO()
        Image.fromarray(row).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    parquet.write_table(pa.table({"image": encoded, "label": labels}), table)
    lines = [json.dumps({"text": f"t {i}", "label": "ab"[i % 2]}) for i in range(12)]
    rows = [f"t {i},{'ab'[i % 2]}" for i in range(12)]
    found = [
        (".npz", arrays.getvalue()), (".parquet", table.getvalue()),
        (".jsonl", "\n".join(lines).encode()), (".csv", "\n".join(["text,label", *rows]).encode()),
        (".tsv", "\n".join(["text,label", *rows]).replace(",", "\t").encode()),
    ]  # fmt: skip
    sizes = b"".join(size.to_bytes(4, "big") for size in pixels.shape)
    found += [(suffix, sizes + pixels.tobytes()) for suffix in (".idx", ".idx.gz")]
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG"), (".gif", "GIF"), (".tif", "TIFF")):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(buffer, kind)
        found.append((suffix, buffer.getvalue()))
    return found


_CHECKS: dict[str, Callable[[Path, random.Random], None]] = {
    "configs": check_config,
    "data": check_data,
    "models": check_model,
}


def fuzz(kind: str, count: int, *, start: int = 0, seed: int = 1) -> Iterator[tuple[int, str, str]]:
    """Yield (number, outcome, words) of mutated inputs; outcome is `read`, `refused` or `neither`.

    Args:
      kind: `configs`, `data` or `models`.
      count: of inputs.
      start: number of the first.
      seed: with a number, it decides an input.
    """
    for number in range(start, start + count):
        draw = random.Random(f"{seed} {kind} {number}")
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            before = time.process_time()
            try:
                _CHECKS[kind](Path(folder), draw)
                outcome, words = "read", ""
            except FedpeftError as error:
                words = str(error)
                outcome = "refused" if _is_clear(kind, words, folder) else "neither"
            except Exception:
                outcome, words = "neither", traceback.format_exc(limit=-3)
            took = time.process_time() - before
            if took > _SECONDS:
                outcome, words = "neither", f"{took:.1f} s; {words}"
        yield number, outcome, words


def _is_clear(kind: str, words: str, folder: str) -> bool:
    """Whether an error names its place, and is one sentence (a file's problems: one line each)."""
    named = folder in words or words.startswith("data.") or (kind != "models" and "model" in words)
    lines, most = (1, 1000) if kind != "configs" else (200, 100_000)
    short = len(words.splitlines()) <= lines and len(words) <= most
    return named and short and "Traceback" not in words


def main() -> int:
    """Run from the command line; 1 if any input is neither read nor refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(_CHECKS))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    outcomes: Counter[str] = Counter()
    for number, outcome, words in fuzz(asked.kind, asked.count, start=asked.start, seed=asked.seed):
        outcomes[outcome] += 1
        if outcome == "neither":
            print(f"--- {asked.kind} {number}\n{words}", flush=True)
    print(f"{asked.kind}: {sum(outcomes.values())} inputs: {dict(outcomes)}")
    return int(outcomes["neither"] > 0)


if __name__ == "__main__":
    sys.exit(main())
