"""Uploads to a hub that is not there: what would be sent, and what is refused."""

from __future__ import annotations

import inspect
import json

import finished_runs
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from typer.testing import CliRunner

import fedpeft
from fedpeft.cli.app import app
from fedpeft.core.errors import ConfigError, RunFolderError
from fedpeft.export.push import push_run


class FakeHub:
    """A hub that keeps what is uploaded, and takes only calls that the real client takes."""

    def __init__(self, *, fails=None, holds=()):
        self.fails, self.files, self.repos, self.uploaded = fails, [*holds], {}, {}

    def _check(self, name, args, kwargs):
        inspect.signature(getattr(HfApi, name)).bind(self, *args, **kwargs)
        if self.fails:
            raise self.fails

    def create_repo(self, *args, **kwargs):
        self._check("create_repo", args, kwargs)
        self.repos.setdefault(args[0], kwargs["private"])

    def list_repo_files(self, *args, **kwargs):
        self._check("list_repo_files", args, kwargs)
        return self.files

    def upload_folder(self, *args, **kwargs):
        self._check("upload_folder", args, kwargs)
        from pathlib import Path

        folder = Path(kwargs["folder_path"])
        self.uploaded = {
            str(file.relative_to(folder)): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file()
        }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    base = finished_runs.model_folder("llama", folder)
    chosen = finished_runs.experiment(base, "llama", "lora", r=2)
    return finished_runs.write_finished(tmp_path_factory.mktemp("run") / "run", chosen)


def test_what_is_uploaded_loads_as_the_run(run, tmp_path):
    hub = FakeHub()
    done = push_run(run, "me/mine", hub=hub)
    assert hub.repos == {"me/mine": True}
    assert done.url == "https://huggingface.co/me/mine"
    assert (done.files, done.size) == (len(hub.uploaded), sum(map(len, hub.uploaded.values())))
    for name, content in hub.uploaded.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    ours = finished_runs.logits(fedpeft.load(run), "llama")
    assert finished_runs.logits(fedpeft.load(tmp_path), "llama").equal(ours)


@pytest.mark.parametrize("form", ["", "merged"])
def test_no_path_of_this_machine_is_uploaded(run, form):
    hub = FakeHub()
    push_run(run, "me/mine", form=form, hub=hub)
    home = str(run.parent.parent).encode()
    assert [name for name, content in hub.uploaded.items() if home in content] == []
    assert b"fedpeft-push" not in b"".join(hub.uploaded.values())
    if not form:
        config = json.loads(hub.uploaded["adapter_config.json"])
        assert config["base_model_name_or_path"] == "base"


def test_a_new_repository_can_be_public(run):
    hub = FakeHub(holds=[".gitattributes", "README.md", "fedpeft.json"])
    push_run(run, "me/mine", public=True, hub=hub)
    assert hub.repos == {"me/mine": False}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"hub": FakeHub(holds=["config.json"])}, RunFolderError, "holds something else .config"),
        ({"form": "adapter"}, RunFolderError, "is not on the hub, so nobody else could load"),
        ({"form": "whole"}, RunFolderError, "--as whole: unknown"),
        (
            {"hub": FakeHub(fails=LocalTokenNotFoundError("no token"))},
            ConfigError,
            "the hub refuses it .no token.; log in by `hf auth login`",
        ),
        ({"hub": FakeHub(fails=OfflineModeIsEnabled("x"))}, ConfigError, "cannot be reached"),
        ({"hub": FakeHub(fails=OSError("no route"))}, ConfigError, "cannot be reached .no route"),
    ],
)
def test_what_cannot_be_uploaded_is_refused(run, options, error, match):
    hub = options.pop("hub", FakeHub())
    with pytest.raises(error, match=match):
        push_run(run, "me/mine", hub=hub, **options)
    assert hub.uploaded == {}


def test_a_refusal_of_the_hub_is_told(run):
    class Response:
        headers, request = {}, None

    hub = FakeHub(fails=HfHubHTTPError("403 Forbidden", response=Response()))
    with pytest.raises(ConfigError, match=r"the hub refuses it .403 Forbidden"):
        push_run(run, "me/mine", hub=hub)


@pytest.mark.parametrize("name", ["a/b/c", "me/..", "with space", "", "-x"])
def test_a_name_that_is_none_is_refused(run, name):
    hub = FakeHub()
    with pytest.raises(ConfigError, match="give OWNER/NAME"):
        push_run(run, name, hub=hub)
    assert hub.repos == {}


def test_the_command_prints_where_it_went(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    found = CliRunner().invoke(app, ["push", str(run), "me/mine"])
    assert found.stdout.startswith("pushed: https://huggingface.co/me/mine (")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: FakeHub(fails=OSError("no route")))
    found = CliRunner().invoke(app, ["push", str(run), "me/mine"])
    assert found.exit_code == 2
