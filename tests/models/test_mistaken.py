"""What is given as a model and is something else: said what it is, and what to give instead."""

from __future__ import annotations

import json
import shutil

import pytest

from fedpeft.core.errors import ModelError
from fedpeft.models import locate
from fedpeft.models.locate import is_local
from fedpeft.models.source import ModelRequest, load_model, sketch_model


def refusal(path):
    with pytest.raises(ModelError) as caught:
        sketch_model(ModelRequest(str(path)))
    words = str(caught.value)
    assert str(path) in words and len(words.splitlines()) == 1
    return words


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_named_with_its_base(vit_folder, tmp_path, whole):
    """Beside a whole model too: the library would load the model that the adapter names."""
    folder = shutil.copytree(vit_folder, tmp_path / "m") if whole else tmp_path
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    words = refusal(folder)
    assert "it is an adapter of peft" in words and "base model (org/base) as model.name" in words
    with pytest.raises(ModelError, match="it is an adapter of peft"):
        load_model(ModelRequest(str(folder)))


def test_an_adapter_that_is_broken_itself_is_still_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    assert "Give its base model as model.name" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("experiment.toml", "it is a run folder of fedpeft, .*`fedpeft export .* --to DIR`"),
        ("fedpeft.json", "it is an export of fedpeft .*`fedpeft.load"),
        ("notes.txt", "has no config.json; a model folder holds config and weights"),
    ],
)
def test_a_folder_without_a_model_is_said_to_be_what_it_is(tmp_path, name, message):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=message):
        sketch_model(ModelRequest(str(tmp_path)))


def test_the_model_in_a_folder_of_models_is_named(vit_folder, tmp_path):
    for inner in ("inner", "models--owner--name/snapshots/0a1b"):
        shutil.copytree(vit_folder, tmp_path / inner)
    assert f"did you mean {tmp_path / 'inner'}?" in refusal(tmp_path)
    cached = tmp_path / "models--owner--name"
    assert f"did you mean {cached / 'snapshots' / '0a1b'}?" in refusal(cached)


def test_a_file_of_a_folder_is_not_the_folder(vit_folder, tmp_path):
    words = refusal(vit_folder / "model.safetensors")
    assert f"is a file; .* give {vit_folder}".split(".*")[1] in words
    (tmp_path / "model.pth").write_bytes(b"x")
    assert "is a file" in refusal(tmp_path / "model.pth")
    assert "`fedpeft convert`" in refusal(tmp_path / "model.pth")


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    for target in ("gone", "link"):
        link = tmp_path / "link"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        assert f"is a link to {target}, which leads nowhere" in refusal(link)


def test_a_folder_without_permission_is_named(vit_folder, monkeypatch):
    """Root may open any folder, so the system's answer is put in its place."""

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(locate.os, "scandir", denied)
    words = f"model '{vit_folder}': it cannot be looked up (Permission denied: {vit_folder})"
    assert refusal(vit_folder).startswith(words)


@pytest.mark.parametrize("name", ["owner/a--b", "owner/a.git", "owner/" + "a" * 300])
def test_a_name_that_the_hub_does_not_allow_is_refused(name):
    with pytest.raises(ModelError, match=rf"model '{name}': no folder here, and no hub id \("):
        sketch_model(ModelRequest(name))


@pytest.mark.parametrize("name", ["a" * 5000, "/" + "b/" * 3000, "~nobody-here/x"])
def test_a_path_that_no_system_has_is_refused(name):
    assert not is_local(name)
    with pytest.raises(ModelError):
        sketch_model(ModelRequest(name))
