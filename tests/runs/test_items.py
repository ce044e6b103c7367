"""Law: a finished run tells which test examples its final model got right, wherever it ran."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import TINY
from tiny_models import text_folder, texts

import fedpeft
from fedpeft.client.evaluate import Evaluation
from fedpeft.core.errors import RunFolderError
from fedpeft.results.lines import append_line, read_lines
from fedpeft.results.runs import read_run
from fedpeft.runs.folder import RunFolder
from fedpeft.testing import world


def run(tmp_path: Path, out: str, *, resume: bool = False, **settings: object) -> dict[str, object]:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return fedpeft.run(file, dotted, out=tmp_path / out, resume=resume)


def right_in(folder: Path) -> list[bool]:
    found = read_run(folder).right
    assert found is not None
    return found.tolist()


def test_items_are_those_of_the_final_model_in_the_order_of_the_test_set(tmp_path: Path) -> None:
    from fedpeft.build.run import build_run
    from fedpeft.experiment.read import read_experiment
    from fedpeft.experiment.resolve import resolve

    summary = run(tmp_path, "run", client__lr=0.05)
    found = right_in(tmp_path / "run")
    assert np.mean(found) == pytest.approx(summary["accuracy"], abs=1e-12) and any(found)

    loaded = fedpeft.load(tmp_path / "run")
    built = build_run(resolve(read_experiment(tmp_path / "run" / "experiment.toml")))
    batch = dict(built.data.test.batch(range(len(found)), seed=None))
    labels = batch.pop("labels")
    with torch.inference_mode():
        expected = loaded(**batch).logits.argmax(-1) == labels
    built.engine.close()
    assert found == expected.tolist()
    assert found != expected.flip(0).tolist(), "another order would be noticed"


def test_workers_passes_and_a_resume_change_no_item(tmp_path: Path) -> None:
    one = run(tmp_path, "one", federation__rounds=3)
    two = run(tmp_path, "two", federation__rounds=3, engine__workers=2)
    run(tmp_path, "parts", federation__rounds=1)
    parts = run(tmp_path, "parts", federation__rounds=3, resume=True)
    (tmp_path / "parts" / "summary.json").unlink()
    again = run(tmp_path, "parts", federation__rounds=3, resume=True)  # nothing is left but the end
    assert one["items"] == two["items"] == parts["items"] == again["items"]
    assert run(tmp_path, "other", federation__rounds=3, seed=2)["items"] != one["items"]
    passes = run(tmp_path, "passes", engine__clients_per_pass=2)
    assert np.mean(right_in(tmp_path / "passes")) == pytest.approx(passes["accuracy"])


def test_items_come_back_from_a_line(tmp_path: Path) -> None:
    run(tmp_path, "run")
    append_line(tmp_path / "lines.jsonl", "a", tmp_path / "run")
    (line,) = read_lines(tmp_path / "lines.jsonl").values()
    assert line.right is not None and line.right.tolist() == right_in(tmp_path / "run")


def test_broken_items_are_named(tmp_path: Path) -> None:
    run(tmp_path, "run")
    file = tmp_path / "run" / "summary.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "items": {"count": 1000}}))
    with pytest.raises(RunFolderError, match=r"items\.right"):
        _ = read_run(tmp_path / "run").right


def test_a_run_that_ended_without_an_evaluation_has_no_items(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    ends = fedpeft.Callback(on_round=lambda record: True)
    settings = {"federation.eval_every": 2}
    ended = fedpeft.run(file, settings, out=tmp_path / "ended", callbacks=[ends])
    assert ended["stopped"] == "callback" and "items" not in ended
    assert "items" in fedpeft.run(file, settings, out=tmp_path / "ended", resume=True)


def test_a_language_model_has_no_items(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "model", "gpt2", {}, {"pad_token": "<pad>"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts(40)))
    table = {
        "model": {"name": str(folder), "task": "causal-lm"},
        "data": {"source": str(tmp_path / "train.jsonl"),
                 "partition": {"clients": 3, "scheme": "iid", "min_examples": 1}},
        "federation": {"rounds": 1, "clients_per_round": 2},
        "client": {"epochs": 1, "batch_size": 4},
        "engine": {"workers": 1},
    }  # fmt: skip
    assert "items" not in fedpeft.run(table, out=tmp_path / "run")
    assert read_run(tmp_path / "run").right is None
    assert RunFolder(tmp_path / "run").summary.exists()


def test_only_single_predictions_that_are_right_or_wrong_are_items() -> None:
    def made(count: list[float], correct: list[float]) -> Evaluation:
        zeros = torch.zeros(len(count), dtype=torch.float64)
        return Evaluation(zeros, torch.tensor(count), torch.tensor(correct), zeros)

    assert made([1, 1], [0, 1]).right().tolist() == [False, True]
    assert made([1, 2], [0, 1]).right() is None
    assert made([1, 1], [0, 0.5]).right() is None


@pytest.mark.parametrize(("metric", "told"), [("accuracy", True), ("loss", False)])
def test_a_task_that_is_not_judged_by_accuracy_has_no_items(
    tmp_path: Path, metric: str, told: bool
) -> None:
    """Such a task calls nothing correct, which is not the same as getting everything wrong."""

    def losses(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> fedpeft.Scores:
        scores = world.score(model, batch)
        return fedpeft.Scores(scores.loss_B, scores.count_B, torch.zeros_like(scores.loss_B))

    task = fedpeft.custom_task(losses, metric=metric)
    tuned = world.make_tuned()
    tuned = replace(tuned, loaded=replace(tuned.loaded, task=task))
    settings = {"federation.rounds": 1, "federation.clients_per_round": 2, "client.lr": 0.1}
    fedpeft.simulate(tuned, world.make_data(), settings, out=tmp_path / "run")
    right = read_run(tmp_path / "run").right
    assert (right is not None) == told
