"""Equal deltas are equal files; a checkpoint of another version is not called corrupt."""

from __future__ import annotations

import json

import pytest
import safetensors
import safetensors.torch
import torch

from fedpeft.core.errors import RunFolderError
from fedpeft.runs.checkpoint import read_checkpoint
from fedpeft.runs.folder import _save

METADATA = {f"key {i}": "é\n" * i for i in range(8)}


def test_equal_deltas_are_equal_files_with_the_same_content(tmp_path):
    tensors, file = {"b": torch.arange(5.0), "a": torch.ones(2, 3)}, tmp_path / "d.safetensors"
    seen = set()
    for _ in range(8):
        _save(tensors, file, METADATA)
        seen.add(file.read_bytes())
    assert len(seen) == 1
    with safetensors.safe_open(file, "pt") as opened:
        assert opened.metadata() == METADATA
        assert all(torch.equal(opened.get_tensor(name), each) for name, each in tensors.items())
    _save(tensors | {"b": torch.zeros(5)}, file, METADATA)
    assert file.read_bytes() not in seen


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("fedpeft-checkpoint-7", "another version of fedpeft"),
        ("pt", "is corrupt"),
        ("", "is corrupt"),
    ],
)
def test_a_checkpoint_of_another_version_is_told_apart(tmp_path, form, said):
    file = tmp_path / "round-00001.safetensors"
    safetensors.torch.save_file({"delta": torch.ones(1)}, file, {"format": form})
    with pytest.raises(RunFolderError, match=said) as raised:
        read_checkpoint(file)
    assert ("corrupt" in str(raised.value)) == (said == "is corrupt")
    assert json.dumps(form).strip('"') in str(raised.value)
