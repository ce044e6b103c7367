"""Whole runs of the rows of the task table that are no classification into single classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import text_folder, texts
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fedpeft
from fedpeft.experiment.read import DIGITS
from fedpeft.export.export import export_run

LABELS: dict[str, Callable[[int], object]] = {
    "text-regression": lambda n: 2.5 * (n % 2) - 1,
    "text-multi-label": lambda n: [["even"], ["odd", "big"], ["odd"]][n % 3],
}
METRICS = {
    "text-regression": ("rmse", {"mae", "r2"}),
    "text-multi-label": ("f1", {"exact_match"}),
}


@pytest.fixture(scope="module", params=sorted(LABELS))
def asked(request, tmp_path_factory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("texts")
    text_folder(folder / "model", "bert", {}, {"pad_token": "<pad>"})
    rows = [{**row, "label": LABELS[request.param](n)} for n, row in enumerate(texts(40))]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "model.name": str(folder / "model"), "model.task": request.param,
        "data.source": str(folder / "data.jsonl"), "data.partition.scheme": "iid",
        "data.partition.clients": 4, "data.partition.min_examples": 1, "tuning.method": "bias",
        "federation.rounds": 3, "federation.clients_per_round": 4, "client.epochs": 2,
        "client.batch_size": 3, "client.lr": 0.05, "engine.workers": 1,
    }  # fmt: skip


def delta_of(folder: Path) -> torch.Tensor:
    found = load_file(folder / "delta.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found)])


def test_a_run_reports_its_metrics_and_clients_of_a_pass_learn_the_same(asked, tmp_path):
    headline, more = METRICS[str(asked["model.task"])]
    for together in (1, 4):
        settings = {**asked, "engine.clients_per_pass": together}
        found = fedpeft.run(DIGITS, settings, out=tmp_path / str(together))
    records = [json.loads(x) for x in (tmp_path / "1" / "rounds.jsonl").read_text().splitlines()]
    assert {headline, "loss", "train_loss", *more} == {
        *records[-1]["metrics"]
    } and headline in found
    assert records[-1]["metrics"]["loss"] < records[0]["metrics"]["loss"]
    one, many = delta_of(tmp_path / "1"), delta_of(tmp_path / "4")
    assert torch.allclose(one, many, rtol=1e-3, atol=1e-5)


def test_frozen_features_keep_the_targets(asked, tmp_path):
    for kept in ("off", "memory"):
        head = {"tuning.method": "head", "client.prefix_cache": kept, "federation.rounds": 1}
        found = fedpeft.run(DIGITS, {**asked, **head}, out=tmp_path / kept)
        assert ("all below" in found["prefix"]) == (kept == "memory")
    off, kept = delta_of(tmp_path / "off"), delta_of(tmp_path / "memory")
    assert torch.allclose(off, kept, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", ["", "merged"])
def test_other_libraries_load_the_export_with_its_kind_of_answer(asked, tmp_path, form):
    method = {"tuning.method": "lora", "federation.rounds": 1} if form else {"federation.rounds": 1}
    fedpeft.run(DIGITS, {**asked, **method}, out=tmp_path / "run")
    folder = export_run(tmp_path / "run", tmp_path / "export", form=form)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    kinds = {
        "text-regression": ("regression", 1),
        "text-multi-label": ("multi_label_classification", 3),
    }
    assert (model.config.problem_type, model.config.num_labels) == kinds[str(asked["model.task"])]
    batch = AutoTokenizer.from_pretrained(folder)(["w1 w2 w3"], return_tensors="pt")
    ids = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        ours = fedpeft.load(tmp_path / "run")(**ids).logits
        assert torch.allclose(model(**ids).logits, ours, atol=1e-5)
