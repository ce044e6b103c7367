import json

import chat_models
import numpy as np
import pytest
import torch

import fedpeft
from fedpeft.answers.generate import Decoding
from fedpeft.answers.judge import choose_questions
from fedpeft.core.errors import ConfigError
from fedpeft.data.examples import Federated
from fedpeft.inference.inputs import Input
from fedpeft.inference.predict import predict
from fedpeft.runs.load import load_before_and_after

PAIRS = [(f"what follows {i}?", str(i + 1)) for i in range(12)]
SETTINGS = {
    "federation.rounds": 2,
    "federation.clients_per_round": 2,
    "client.epochs": 2,
    "client.lr": 0.5,
    "engine.workers": 1,
    "answers.num_examples": 4,
    "answers.max_new_tokens": 5,
}


class Asked:
    """Questions and answers as bytes; only the answers are learnt."""

    def __init__(self, pairs, *, learn_all=False):
        self.pairs, self.learn_all = pairs, learn_all

    def __len__(self):
        return len(self.pairs)

    def batch(self, indices, *, seed):
        prompts, answers = (
            chat_models.chat_tokenizer()([self.pairs[i][side] for i in indices])["input_ids"]
            for side in (0, 1)
        )
        rows = [p + a for p, a in zip(prompts, answers, strict=True)]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        labels = torch.where(mask.bool(), ids, -100)
        for row, prompt in enumerate(prompts):
            labels[row, : 1 if self.learn_all else len(prompt)] = -100
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def federated(*, clients=True, **options):
    table = Asked(PAIRS, **options)
    rows = {"a": np.arange(6), "b": np.arange(6, 12)}
    return Federated(
        train=table, test=table, clients=rows, num_labels=None, label_names=None, labels=None,
        name="asked", test_clients=rows if clients else {},
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chat_models.chat_folder(tmp_path_factory.mktemp("qwen2"), "qwen2")


def simulate(folder, settings=SETTINGS, data=None, **options):
    loaded = fedpeft.load_model(fedpeft.ModelRequest(str(folder), task="causal-lm"))
    tuned = fedpeft.tune(loaded, fedpeft.TuningRequest("lora"))
    return fedpeft.simulate(tuned, data or federated(), settings, **options)


def test_the_untuned_and_the_final_model_answer_the_same_questions(folder):
    found = simulate(folder).answers
    assert [each["client"] for each in found["answers"]] == ["a", "a", "b", "b"]
    assert {*found["clients"]} == {"a", "b"}
    for each in found["answers"]:
        assert dict(PAIRS)[each["prompt"]] == each["reference"]
    assert any(each["before"] != each["after"] for each in found["answers"])
    assert found["after"]["perplexity"] < found["before"]["perplexity"]


def test_figures_are_means_over_all_and_over_each_client(folder):
    found = simulate(folder, scores={"length": lambda answer, reference: len(answer)}).answers
    assert {*found["before"]} == {"perplexity", "exact_match", "length"}
    for side in ("before", "after"):
        lengths = [len(each[side]) for each in found["answers"]]
        assert [each["scores"]["length"][side] for each in found["answers"]] == lengths
        assert found[side]["length"] == sum(lengths) / 4
        assert found["clients"]["b"][side]["length"] == sum(lengths[2:]) / 2


def test_the_perplexity_of_the_whole_lies_between_those_of_the_clients(folder):
    result = simulate(folder)
    for side in ("before", "after"):
        a, b = (result.answers["clients"][name][side]["perplexity"] for name in "ab")
        assert min(a, b) <= result.answers[side]["perplexity"] <= max(a, b)
    assert result.answers["after"]["perplexity"] == result.records[-1]["metrics"]["perplexity"]


def test_a_folder_keeps_the_answers_and_its_model_is_the_final_one(folder, tmp_path):
    from dataclasses import replace

    result = simulate(folder, data=replace(federated(), request=None), out=tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "answers.json").read_text())
    assert kept == json.loads(json.dumps(result.answers))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["answers"] == {side: kept[side] for side in ("before", "after")}
    assert {*kept} == {"before", "after", "clients", "answers"}


def test_choices_are_judged_before_and_after(folder, tmp_path):
    file = tmp_path / "items.jsonl"
    rows = [{"question": q, "choices": [a, "none"], "answer": 0} for q, a in PAIRS[:3]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = SETTINGS | {"answers.choices": str(file), "answers.num_examples": 0}
    found = simulate(folder, settings).answers
    assert found["answers"] == []
    for side in ("before", "after"):
        assert {*found[side]["choices"]} == {"items", "accuracy", "accuracy_norm"}
        assert found[side]["choices"]["items"] == 3


def test_without_the_table_nothing_is_answered(folder):
    settings = {key: value for key, value in SETTINGS.items() if "answers" not in key}
    assert simulate(folder, settings).answers is None
    with pytest.raises(ConfigError, match=r"scores: found mine without \[answers\]"):
        simulate(folder, settings, scores={"mine": len})


def test_documents_ask_nothing(folder):
    with pytest.raises(ConfigError, match="nothing is asked in the test set of asked"):
        simulate(folder, data=federated(learn_all=True))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"answers.scores": [{"name": "exact"}]}, "answers.scores.0.: score 'exact' is unknown"),
        (
            {"answers.scores": [{"name": "exact_match"}, {"name": "exact_match"}]},
            "'exact_match' is named twice",
        ),
        ({"answers.num_examples": 0}, "found 0 without answers.choices"),
        ({"answers.choices": "none.jsonl"}, "there is no file 'none.jsonl'"),
        ({"answers.max_new_tokens": 0}, "answers.max_new_tokens: found 0"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_training(folder, settings, match):
    with pytest.raises(ConfigError, match=match):
        simulate(folder, SETTINGS | settings)


def test_only_language_models_are_asked():
    loaded = fedpeft.load_model(fedpeft.ModelRequest("preset:tiny-vit"))
    tuned = fedpeft.tune(loaded, fedpeft.TuningRequest("head"))
    request = fedpeft.DataRequest("digits", partition=fedpeft.PartitionRequest("iid", clients=2))
    data = fedpeft.load_data(request, loaded.inputs)
    with pytest.raises(ConfigError, match="task is image-classification; only language models"):
        fedpeft.simulate(tuned, data, SETTINGS)


def test_questions_are_spread_over_groups_and_rows():
    groups = {"a": range(6), "b": range(6, 12)}
    rows = [(name, q.row) for name, q in choose_questions(Asked(PAIRS), groups, 5)]
    assert rows == [("a", 0), ("a", 2), ("a", 4), ("b", 6), ("b", 9)]
    assert len(choose_questions(Asked(PAIRS), groups, 100)) == 12


def test_a_run_of_a_file_answers_as_its_folder_predicts(folder, tmp_path):
    """What a run asks is what a person asks: the same template, and the same end."""
    rows = [{"prompt": q, "completion": a, "client": "ab"[i % 2]} for i, (q, a) in enumerate(PAIRS)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {
        "model": {"name": str(folder), "task": "causal-lm"},
        "tuning": {"method": "lora", "options": {"lora_alpha": 120}},
        "data": {
            "source": str(file),
            "max_length": 64,
            "partition": {"scheme": "natural", "min_examples": 1},
        },
    }
    summary = fedpeft.run(table, SETTINGS, out=tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "answers.json").read_text())
    assert summary["answers"]["after"] == kept["after"]
    assert {*kept["clients"]} <= {"a", "b"}
    model = load_before_and_after(tmp_path / "run")
    for each in kept["answers"]:
        asked = each["prompt"].partition("user\n")[2].partition("<|im_end|>")[0]
        [found] = predict(model, [Input("", asked)], Decoding(5), both=True)
        assert (found.before, found.after) == (each["before"], each["after"])
        assert dict(PAIRS)[asked] == each["reference"]
