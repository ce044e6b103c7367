"""Folders of earlier versions, which lacked keys of today: continued, or refused in one sentence.

A key that is added later must not change what an experiment without it was: a checkpoint names its
experiment by a digest.
"""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from typer.testing import CliRunner

from fedpeft.cli.app import app
from fedpeft.core.errors import RunFolderError
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.launch.start import run
from fedpeft.runs.checkpoint import checkpoints, read_checkpoint, write_checkpoint
from fedpeft.runs.folder import RunFolder, experiment_digest, stored_experiment

WRITTEN = """
name = "quickstart"
seed = 1
sweep = []
[model]
name = "preset:tiny-vit"
num_labels = 10
[tuning]
method = "bias"
head_init = "normal"
[tuning.options]
add_missing = false
[data]
source = "digits"
budget = 60
evaluate_on = "test"
[data.transforms]
normalize = "model"
flip = false
frame_offset = false
[data.partition]
scheme = "dirichlet"
clients = 3
alpha = 0.1
min_examples = 1
classes_per_client = 2
examples_per_client = 20
[data.partition.options]
[federation]
algorithm = "fedavg"
mode = "synchronous"
rounds = 2
clients_per_round = 2
sampling = "fixed"
min_replies = 1
eval_every = 1
evaluate_clients = false
[federation.buffered]
exponent = 0.5
[federation.sampling_options]
[federation.options]
lr = 1.0
[client]
epochs = 1
batch_size = 10
optimizer = "sgd"
lr = 0.05
momentum = 0.9
nesterov = true
weight_decay = 0.0001
prox_mu = 0.0
prefix_cache = "auto"
prefix_memory = 1024
prefix_disk = 8192
[wire]
up = []
down = []
[privacy]
mode = "none"
variant = "corrected"
delta = 0.001
clip_norm = 1.0
reproducible_noise = false
[engine]
name = "local"
workers = 1
clients_per_pass = 1
device = "cpu"
precision = "fp32"
insecure = false
[run]
keep_deltas = false
callbacks = []
[objects]
"""
"""What a version wrote into a folder before sites announced their examples."""

EXAMPLE = WRITTEN.replace('method = "bias"', 'method = "head"').replace("add_missing = false\n", "")
DIGESTS = {
    WRITTEN: "abccfd138f7ecbbcc6b2615a75c1a9ff1274edf967e3cbfdfc0685bc2acf4891",
    EXAMPLE.replace('mode = "none"', 'mode = "example"\nnoise_multiplier = 1.0'):
    "d9d953f6acf529c5dcff1ff33b381b244ea95778593785df28edceb916945820",
}  # fmt: skip
LATER = ("max_examples", "site_examples", "max_weight_share", "eval_first", "example_sampling")
TINY = (
    "model.name=preset:tiny-vit", "client.epochs=1", "engine.workers=1", "data.budget=60",
    "data.partition.clients=3", "federation.clients_per_round=2", "client.batch_size=10",
)  # fmt: skip
PRIVATE = (
    "privacy.mode=example", "privacy.noise_multiplier=2.0", "privacy.reproducible_noise=true",
    "privacy.example_sampling=shuffle", "tuning.method=head",
)  # fmt: skip


def read(*sets):
    return read_experiment(DIGITS, [*TINY, *sets])


def begun(folder, *sets, without=LATER):
    """Run two rounds, and take the keys out of the folder's experiment."""
    run(read("federation.rounds=2", *sets), folder)
    file = folder / "experiment.toml"
    text = file.read_text()
    for key in without:
        text = re.sub(rf"(?m)^{key} = .*\n|^\[federation\.{key}\]\n", "", text)
    assert not any(re.search(rf"\b{key}\b", text) for key in without)
    file.write_text(text)
    (folder / "initial.json").unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("text", DIGESTS, ids=["plain", "example"])
def test_an_experiment_has_the_digest_that_an_earlier_version_wrote(tmp_path, text):
    (tmp_path / "experiment.toml").write_text(text)
    assert experiment_digest(stored_experiment(RunFolder(tmp_path))) == DIGESTS[text]
    (tmp_path / "experiment.toml").write_text(text.replace("momentum = 0.9", "momentum = 0.8"))
    assert experiment_digest(stored_experiment(RunFolder(tmp_path))) != DIGESTS[text]


@pytest.mark.parametrize("sets", [(), PRIVATE], ids=["plain", "example"])
def test_a_folder_alone_goes_on_as_it_was_begun(tmp_path, sets):
    folder = begun(tmp_path / "r", *sets)
    words = ["run", "--resume", "--out", str(folder), "--set", "federation.rounds=3", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    straight = run(read("federation.rounds=3", *sets), tmp_path / "s")
    resumed = json.loads((folder / "summary.json").read_text())
    assert resumed["delta_digest"] == straight["delta_digest"]


def test_a_key_that_changes_results_and_was_not_there_is_named_with_the_version(tmp_path):
    folder = begun(tmp_path / "r", "client.prox_mu=0.1", without=("prox_mu",))
    with pytest.raises(RunFolderError) as error:
        run(read("client.prox_mu=0.1", "federation.rounds=3"), folder, resume=True)
    words = r"begun by an earlier fedpeft \(environment.json: [0-9.]+\), which did not have "
    assert re.search(words + "client.prox_mu: client.prox_mu is 0.1 here", str(error.value))
    with pytest.raises(RunFolderError, match=r"another experiment: client\.momentum is 0\.5"):
        run(read("client.momentum=0.5", "client.prox_mu=0.1"), folder, resume=True)


@pytest.mark.parametrize("without", [LATER, ()], ids=["earlier", "today"])
def test_a_checkpoint_of_an_earlier_version_names_it(tmp_path, without):
    folder = begun(tmp_path / "r", without=without)
    files = checkpoints(folder / "checkpoints")
    kept = dataclasses.replace(read_checkpoint(files[-1]), experiment="0" * 64)
    write_checkpoint(folder / "checkpoints", kept)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    words = "written by an earlier fedpeft .*did not have federation.eval_first"
    with pytest.raises(RunFolderError, match=words if without else "is of another experiment than"):
        run(read("federation.rounds=3"), folder, resume=True)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
