"""Broken model folders: one sentence that names the folder and the file, whatever is wrong."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import text_folder
from transformers import LlamaConfig, LlamaForCausalLM, VideoMAEConfig

from fedpeft.core.errors import ModelError
from fedpeft.data.texts import load_tokenizer
from fedpeft.models import source
from fedpeft.models.padding import open_tokenizer
from fedpeft.models.shufflenet import ShuffleNet, ShuffleNetConfig, save_shufflenet
from fedpeft.models.source import ModelRequest, load_model, sketch_model

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
SHARD = "model-00001-of-00004.safetensors"
PROCESSOR = "preprocessor_config.json"
TWICE = [pytest.param(load_model, id="load"), pytest.param(sketch_model, id="sketch")]


@pytest.fixture(scope="module")
def whole(vit_folder, tmp_path_factory):
    """Whole folders: images, texts, a language model in several files, our own network."""
    root = tmp_path_factory.mktemp("whole")
    shutil.copytree(vit_folder, root / "vit")
    (root / "vit" / PROCESSOR).write_text(json.dumps({"image_mean": [0.5], "size": 8}))
    text_folder(root / "bert", "bert", {}, {"pad_token": "<pad>"})
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, intermediate_size=16, vocab_size=40, max_position_embeddings=16)
    LlamaForCausalLM(config).save_pretrained(root / "llama", max_shard_size="4KB")
    net = ShuffleNet(ShuffleNetConfig(3, 1, 8, (1, 1, 1), (4, 4, 4, 4, 8)))
    save_shufflenet(net, root / "shufflenet")
    return root


@pytest.fixture
def copied(whole, tmp_path):
    """Copy a whole folder, to be broken."""
    return lambda kind: shutil.copytree(whole / kind, tmp_path / kind)


def refusal(read, folder, **request):
    with pytest.raises(ModelError) as caught:
        read(ModelRequest(str(folder), **request))
    words = str(caught.value)
    assert str(folder) in words
    assert len(words.splitlines()) == 1 and len(words) < 1000
    return words


def change(file, **values):
    table = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in table.items() if value != "gone"}))


def replaced(file, with_):
    """Put something else in the place of a file."""
    content = file.read_bytes() if file.exists() else b""
    file.unlink(missing_ok=True)
    if with_ == "folder":
        file.mkdir()
    elif with_ == "itself":
        file.symlink_to(file.name)
    elif with_ == "pointer":
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    elif with_ == "half":
        file.write_bytes(content[: len(content) // 2])
    elif with_ == "empty":
        file.write_bytes(b"")
    else:
        file.symlink_to(with_)


@pytest.mark.parametrize("kind", ["vit", "bert", "llama", "shufflenet"])
@pytest.mark.parametrize("read", TWICE)
def test_whole_folders_are_read(copied, kind, read):
    """The negative control of everything below."""
    loaded = read(ModelRequest(str(copied(kind)), num_labels=3))
    if kind == "bert":
        assert load_tokenizer(loaded.inputs, None).pad_id == 0


@pytest.mark.parametrize("read", TWICE)
@pytest.mark.parametrize(
    ("with_", "message"),
    [
        ("folder", "is a folder; a file is expected"),
        ("itself", "is a link to {name}, which leads to no file"),
        ("nowhere", "is a link to nowhere, which leads to no file"),
        ("/dev/zero", "is no ordinary file"),
        ("pointer", "is a pointer of Git LFS, not the file itself; run `git lfs pull`"),
        ("half", ""),
        ("empty", "the file is empty"),
    ],
)
@pytest.mark.parametrize(
    ("kind", "name"), [("vit", CONFIG), ("vit", WEIGHTS), ("llama", INDEX), ("llama", SHARD)]
)
def test_what_is_no_whole_file_is_named(copied, kind, name, with_, message, read):
    folder = copied(kind)
    replaced(folder / name, with_)
    words = refusal(read, folder, num_labels=3)
    assert words.startswith(str(folder / name)) and message.format(name=name) in words


@pytest.mark.parametrize("with_", ["folder", "itself", "half", "empty", "pointer"])
def test_a_processor_that_is_no_whole_file_is_named(copied, with_):
    folder = copied("vit")
    replaced(folder / PROCESSOR, with_)
    assert refusal(sketch_model, folder).startswith(str(folder / PROCESSOR))


@pytest.mark.skipif(sys.platform != "linux", reason="a file that nobody can read is made by proc")
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_that_cannot_be_read_is_named(copied, name):
    folder = copied("vit")
    replaced(folder / name, "/proc/self/mem")  # also root may not read its first byte
    assert "cannot be read (Input/output error)" in refusal(load_model, folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, PROCESSOR, ""])
def test_a_file_without_permission_is_read_or_named(copied, name):
    folder = copied("vit")
    os.chmod(folder / name, 0)
    try:
        load_model(ModelRequest(str(folder)))  # root may
    except ModelError as error:
        assert "Permission denied" in str(error) and str(folder / name) in str(error)
    finally:
        os.chmod(folder / name, 0o700)


@pytest.mark.parametrize("read", TWICE)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 0}, "hidden_size: found 0; allowed is at least 1"),
        ({"patch_size": 0}, "patch_size: found 0; allowed is at least 1"),
        ({"patch_size": [4, 0]}, "patch_size: found 0; allowed is at least 1"),
        ({"hidden_size": "x"}, "'hidden_size' expected int, got str (value: 'x')"),
        ({"num_attention_heads": 0}, "num_attention_heads: found 0; allowed is at least 1"),
        ({"intermediate_size": -1}, "intermediate_size: found -1; allowed is at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers: found -1; allowed is at least 1"),
        ({"hidden_act": "x"}, "the model cannot be built (KeyError: 'x')"),
        ({"model_type": 3}, "model_type: found 3; the name of a model type is expected"),
        ({"model_type": "a" * 5000}, "model type 'aaaaa"),
        ({"text_config": 3}, "the settings of its text model: found 3; a table is expected"),
        ({"decoder": ["x"]}, "the settings of its text model: found ['x']; a table is expected"),
        ({"model_type": "gone"}, "model type None cannot be read"),
        ({"architectures": 7}, "architectures: found 7; a list with the name of a class"),
        ({"architectures": [None]}, "architectures: found [None]"),
        ({"num_labels": "x", "id2label": "gone"}, "model type 'vit' cannot be read"),
        ({"id2label": ["a", "b"]}, "model type 'vit' cannot be read"),
        ({"dtype": "x"}, "model type 'vit' cannot be read"),
        ({"num_channels": None}, "num_channels"),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, dict) else "",
)
def test_a_wrong_setting_is_named_with_its_file(copied, values, message, read):
    folder = copied("vit")
    change(folder / CONFIG, **values)
    words = refusal(read, folder, num_labels=None if "num_labels" in values else 3)
    assert words.startswith(str(folder / CONFIG)) and message in words


@pytest.mark.parametrize(
    ("read", "values", "message"),
    [
        (load_model, {"hidden_size": 15}, "of another shape: vit.embeddings"),
        (load_model, {"intermediate_size": 16}, "of another shape: vit.layers.0"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_named(copied, read, values, message):
    folder = copied("vit")
    change(folder / CONFIG, **values)
    assert message in refusal(read, folder, num_labels=3)


ABSURD = [
    ("vit", {"hidden_size": 10**9}),
    ("vit", {"hidden_size": 10**30}),
    ("vit", {"num_hidden_layers": 10**6}),
    ("vit", {"num_hidden_layers": 9_000}),
    ("vit", {"num_labels": 10**9, "id2label": "gone"}),
    ("vit", {"image_size": 10**9}),
    ("vit", {"intermediate_size": 10**12}),
    ("bert", {"vocab_size": 10**10}),
    ("bert", {"max_position_embeddings": 10**9}),
    ("llama", {"vocab_size": 2**31}),
    ("llama", {"num_hidden_layers": 10**9}),
    ("llama", {"num_key_value_heads": 10**9}),
    ("shufflenet", {"repeats": [1, 10**9, 1]}),
    ("shufflenet", {"repeats": [60_000, 1, 1]}),
    ("shufflenet", {"widths": [4, 4, 4, 4, 65_536], "num_labels": 65_536}),
]


@pytest.mark.parametrize("read", TWICE)
@pytest.mark.parametrize(("kind", "values"), ABSURD, ids=str)
def test_an_absurd_setting_is_refused_at_once(copied, kind, values, read):
    folder = copied(kind)
    change(folder / CONFIG, **values)
    before = time.process_time()
    assert refusal(read, folder).startswith(str(folder / CONFIG))
    assert time.process_time() - before < 4


@pytest.mark.parametrize(
    "values", [{"image_size": 4096}, {"num_frames": 10**6}, {"hidden_size": 2**20}], ids=str
)
def test_a_table_that_takes_minutes_is_refused_at_once(tmp_path, values):
    (tmp_path / CONFIG).write_text(json.dumps({**VideoMAEConfig().to_dict(), **values}))
    before = time.process_time()
    assert "a table of" in refusal(sketch_model, tmp_path, task="video-classification")
    assert time.process_time() - before < 2


def test_a_config_without_weights_is_bounded_too(tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps({"model_type": "vit", "hidden_size": 12 * 10**8}))
    words = refusal(sketch_model, tmp_path, task="image-classification")
    assert "more than any published one has" in words


def test_more_labels_than_anybody_has_are_refused(whole):
    with pytest.raises(ModelError, match=r"model\.num_labels: found 1,000,000,000; allowed is"):
        sketch_model(ModelRequest(str(whole / "vit"), num_labels=10**9))


def header_changed(file, name, **values):
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header[name] |= values
    words = json.dumps(header).encode()
    file.write_bytes(len(words).to_bytes(8, "little") + words + content[end:])


@pytest.mark.parametrize("read", TWICE)
@pytest.mark.parametrize(
    "values", [{"shape": [10**12]}, {"dtype": "F64"}, {"dtype": "X"}, {"data_offsets": [0, 2**40]}]
)
def test_a_header_that_lies_is_found(copied, values, read):
    folder = copied("vit")
    header_changed(folder / WEIGHTS, "classifier.weight", **values)
    words = refusal(read, folder)
    assert words.startswith(str(folder / WEIGHTS)) and "no whole safetensors file" in words


@pytest.mark.parametrize("read", TWICE)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.gguf", "tf_model.h5"])
def test_weights_of_another_format_alone_are_refused(copied, name, read):
    folder = copied("vit")
    (folder / WEIGHTS).rename(folder / name)
    assert f"has no {WEIGHTS} (found ['{name}'])" in refusal(read, folder)


def test_a_tensor_without_numbers_is_named(copied):
    folder = copied("bert")
    (folder / WEIGHTS).unlink()
    change(folder / CONFIG, type_vocab_size=0)
    words = refusal(sketch_model, folder)
    assert "gives 1 tensors without any number: bert.embeddings.token_type_embeddings" in words


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.uint8, torch.complex64])
@pytest.mark.parametrize("old", [False, True])
def test_weights_that_are_no_numbers_are_found(old_vit_folder, vit_folder, tmp_path, kind, old):
    folder = shutil.copytree(old_vit_folder if old else vit_folder, tmp_path / "m")
    tensors = load_file(folder / WEIGHTS)
    name = next(
        name
        for name in tensors
        if name.endswith("intermediate.dense.weight" if old else "fc1.weight")
    )
    tensors[name] = tensors[name].to(kind)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert "1 tensors of" in refusal(load_model, folder)


@pytest.mark.parametrize("read", TWICE)
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "weight_map: found {}"),
        ([1], "weight_map: found [1]"),
        ({"a": 3}, "weight_map: a: found 3"),
        ({"a": "../other.safetensors"}, "the name of a file in the same folder is expected"),
        ({"a": "/etc/passwd"}, "the name of a file in the same folder is expected"),
        ({"a": "gone.safetensors"}, "gone.safetensors: is missing, and model.safetensors.index"),
        ({"a": "config.json"}, "safetensors files are expected"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(copied, table, message, read):
    folder = copied("llama")
    change(folder / INDEX, weight_map=table)
    assert message in refusal(read, folder)


def test_parts_without_their_index_are_named(copied):
    folder = copied("llama")
    (folder / INDEX).unlink()
    assert f"has no {INDEX}, which says what is in {SHARD}" in refusal(load_model, folder)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (PROCESSOR, {"image_mean": {}}, "image_mean: {} is not a number"),
        (PROCESSOR, {"image_std": [0.0]}, "image_std: found (0.0,); numbers above 0"),
        (PROCESSOR, {"rescale_factor": float("inf")}, "rescale_factor: inf is not a number"),
        (PROCESSOR, {"resample": 10**400}, "resample: 1000"),
    ],
)
def test_a_wrong_setting_of_a_processor_is_named(copied, name, values, message):
    folder = copied("vit")
    change(folder / name, **values)
    words = refusal(sketch_model, folder)
    assert words.startswith(str(folder / name)) and message in words


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", ""),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"version": "1.0", "model": 3}'),
        ("tokenizer.json", '{"version": "1.0", "added_tokens": 3, "model": {"type": "x"}}'),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"tokenizer_class": 7}'),
        ("tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": 3}'),
        ("tokenizer_config.json", '{"truncation_side": "up"}'),
        ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["evil.T", null]}}'),
        ("special_tokens_map.json", "\udce9"),
    ],
)
def test_a_broken_tokenizer_is_named(copied, name, content):
    folder = copied("bert")
    (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    try:
        load_tokenizer(sketch_model(ModelRequest(str(folder))).inputs, None)
    except ModelError as error:
        words = str(error)
    else:
        words = "" if name == "special_tokens_map.json" else "no error"  # a file that is not used
    assert words == "" or (str(folder) in words and name in words and "\n" not in words)


def test_trying_a_tokenizer_out_leaves_it_as_it_was(copied):
    tokenizer = open_tokenizer(str(copied("bert")))
    assert tokenizer.backend_tokenizer.truncation is None
    assert len(tokenizer("w1 w2 w3 w4")["input_ids"]) == 5


def test_a_fault_of_our_own_is_no_broken_folder(whole, monkeypatch):
    """The negative control of the guard: it surrounds the library's calls only."""
    monkeypatch.setattr(source, "init_head", lambda *_, **__: {}["ours"])
    with pytest.raises(KeyError, match="ours"):
        load_model(ModelRequest(str(whole / "vit")))
