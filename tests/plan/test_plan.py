from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import text_folder

from fedpeft.core.errors import ConfigError, ModelError
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import apply_overrides, parse_override, validate
from fedpeft.launch.start import run
from fedpeft.models.locate import locate
from fedpeft.plan.plan import check_shapes, make_plan

TINY = {
    "model": {"name": "preset:tiny-vit"},
    "data": {"partition": {"clients": 6, "alpha": 1.0}},
    "federation": {"rounds": 2, "clients_per_round": 3},
    "client": {"epochs": 1},
    "engine": {"workers": 1},
}
WIRES = {
    "plain": [],
    "float16": ['wire.up=[{name="float16"}]', 'wire.down=[{name="float16"}]'],
    "int8": ['wire.up=[{name="int8", chunk=64}]'],
    "top_k": ['wire.up=[{name="top_k", fraction=0.1}]'],
    "full with buffers": ['model.name="preset:tiny-shufflenet"', 'tuning.method="full"'],
}


def experiment(*sets: str):
    table = apply_overrides(TINY, [parse_override(text) for text in sets])
    return validate(table, "test")


@pytest.mark.parametrize("wire", WIRES)
def test_plan_counts_the_bytes_that_a_run_sends(wire: str, tmp_path: Path) -> None:
    """To the byte, both ways."""
    plan = make_plan(experiment(*WIRES[wire])).as_json()
    summary = run(experiment(*WIRES[wire]), tmp_path / "run")
    turns = plan["rounds"] * plan["cohort"]
    assert summary["bytes_down"] == turns * plan["wire_bytes_down"]
    assert summary["bytes_up"] == turns * plan["wire_bytes_up"]
    assert plan["payload_bytes"] == summary["payload_bytes"]
    assert plan["trainable_parameters"] == summary["trainable_parameters"]


def test_total_is_all_messages() -> None:
    plan = make_plan(experiment()).as_json()
    each = plan["wire_bytes_up"] + plan["wire_bytes_down"]
    assert plan["total_bytes"] == 2 * 3 * each
    assert plan["epsilon"] is None


def test_compression_is_seen() -> None:
    plain, half = (make_plan(experiment(*WIRES[w])).as_json() for w in ("plain", "float16"))
    saved = plain["wire_bytes_up"] - half["wire_bytes_up"]
    assert abs(saved - plain["trainable_payload_bytes"] // 2) <= 8


def test_buffers_are_payload_but_not_trained() -> None:
    plan = make_plan(experiment(*WIRES["full with buffers"])).as_json()
    assert (
        plan["payload_bytes"] > plan["trainable_payload_bytes"] == 4 * plan["trainable_parameters"]
    )


def test_plan_of_a_huge_model_takes_no_memory() -> None:
    sets = [
        'model.name="preset:llama-7b"',
        'data.source="nobody/nothing"',
        'wire.up=[{name="int8"}]',
    ]
    plan = make_plan(experiment(*sets, 'tuning.method="full"', "client.lr=0.1")).as_json()
    assert plan["total_parameters"] > 6e9 and plan["partition"] is None
    assert plan["wire_bytes_up"] < 0.27 * plan["payload_bytes"]


def test_hub_model_is_planned_from_its_architecture() -> None:
    sets = [
        'model.name="google/vit-base-patch16-224-in21k"', "model.num_labels=100",
        'model.config="preset:vit-base-patch16-224"', 'data.source="uoft-cs/cifar100"',
    ]  # fmt: skip
    plan = make_plan(experiment(*sets)).as_json()
    assert plan["trainable_parameters"] == 179_812
    assert plan["partition"] is None


def test_partition_is_counted_where_data_is_at_hand() -> None:
    found = make_plan(experiment()).as_json()["partition"]
    assert found["clients"] == 6 and sum(found["sizes"]) == 1258
    assert [sum(row) for row in found["counts"]] == found["sizes"]
    assert json.dumps(found)


def test_shapes_of_a_hub_model_are_left_to_a_note() -> None:
    (note,) = check_shapes(experiment('model.name="nobody/nothing"'))
    assert "was not looked up" in note


def test_method_that_does_not_fit_is_found_by_check() -> None:
    with pytest.raises(ConfigError, match="prompt"):
        check_shapes(
            experiment(
                'model.name="preset:tiny-bert"', 'tuning.method="prompt"', "model.num_labels=2"
            )
        )


def test_the_plan_of_a_deployment_says_how_sites_weigh():
    sites = {"engine": {"name": "flower", "superlink": "127.0.0.1:1"},
             "data": {"partition": {"clients": 9}}}  # fmt: skip
    words = str(make_plan(validate(sites, "x")).figures["weights"])
    assert "counts as the median" in words and "no site is more" not in words
    capped = {**sites, "federation": {"max_weight_share": 0.4}}
    assert "no site is more than 0.4" in str(make_plan(validate(capped, "x")).figures["weights"])
    assert "weights" not in make_plan(validate({}, "x")).figures


def classes_of(folder, count):
    for name in range(count):
        (folder / f"kind-{name}").mkdir(parents=True)
        for number in range(6):
            pixels = np.full((8, 8), number, np.uint8)
            Image.fromarray(pixels).save(folder / f"kind-{name}" / f"{number}.png")
    return Experiment.model_validate(
        {
            "model": {"name": "vit-glyphs-8"},
            "data": {"source": str(folder), "partition": {"clients": 2, "scheme": "iid"}},
        }
    )


def test_the_classes_of_data_that_were_read_count(tmp_path):
    figures = make_plan(classes_of(tmp_path / "seven", 7)).figures
    assert (figures["num_labels"], figures["num_labels_assumed"]) == (7, "")


def test_data_that_were_not_read_leave_an_assumption(tmp_path):
    experiment = classes_of(tmp_path / "seven", 7)
    shutil.rmtree(tmp_path / "seven")
    figures = make_plan(experiment).figures
    assert figures["num_labels"] == 757
    assert "the data were not read" in str(figures["num_labels_assumed"])


@pytest.mark.parametrize("act", [make_plan, check_shapes])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_broken_model_is_one_error_and_no_warning(act, name, tmp_path, caplog):
    folder = shutil.copytree(locate("vit-glyphs-8").folder, tmp_path / "m")
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(ModelError, match=name):
        act(experiment(f'model.name="{folder}"'))
    assert caplog.records == []


@pytest.mark.parametrize("broken", [False, True])
def test_check_tries_the_tokenizer_of_a_folder(tmp_path, broken):
    folder = text_folder(tmp_path / "m", "bert", {}, {"pad_token": "<pad>"})
    made = experiment(f'model.name="{folder}"', 'data.source="org/texts"', 'tuning.method="bias"')
    if broken:
        (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not") if broken else nullcontext():
        assert check_shapes(made) == []


def test_a_model_without_a_tokenizer_is_a_problem_of_texts(tmp_path):
    rows = [{"text": f"a text {number}", "label": number % 2} for number in range(20)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = ['model.name="preset:tiny-bert"', 'tuning.method="lora"']
    assert not check_shapes(experiment(*sets, "model.num_labels=2"))  # no texts were named
    with pytest.raises(ModelError, match="no tokenizer loads from a preset"):
        check_shapes(experiment(*sets, f'data.source="{tmp_path / "texts.jsonl"}"'))
