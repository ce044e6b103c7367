"""Training goes on from adapters of peft, runs and exports; what does not fit is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import chat_models
import finished_runs
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import fedpeft
from fedpeft.build.model import build_start, build_tuned
from fedpeft.core.errors import ConfigError, ModelError
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.read import dump_experiment, read_toml, validate
from fedpeft.experiment.resolve import Resolved, resolve
from fedpeft.export.export import export_run
from fedpeft.federation.serving import for_sites
from fedpeft.runs.load import load_before_and_after
from fedpeft.tuning.tuned import read_delta

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOKENS = torch.tensor([[5, 9, 40, 7, 60]])
CONFIGS = {
    "lora": peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"]),
    "dora": peft.LoraConfig(r=2, use_dora=True, target_modules=["v_proj"]),
    "ia3": peft.IA3Config(target_modules=["v_proj", "up_proj"], feedforward_modules=["up_proj"]),
    "vera": peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "prompt_tuning": peft.PromptTuningConfig(num_virtual_tokens=3),
    "prefix_tuning": peft.PrefixTuningConfig(num_virtual_tokens=3),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return chat_models.chat_folder(tmp_path_factory.mktemp("base"), "llama")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = finished_runs.model_folder("bert", tmp_path_factory.mktemp("bert"))
    AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder)
    return folder


def saved(model, config, folder):
    """Save a stock adapter whose values have moved, and return its model."""
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def started(model, adapter, *, labels=None, **tuning):
    """Return the tuned model before round 1."""
    table = {"model": {"name": str(model)}, "tuning": {"from": str(adapter), **tuning}}
    table["model"]["task"] = "text-classification" if labels else "causal-lm"
    if labels:
        table["model"]["num_labels"] = labels
    return build_start(resolve(validate(table, "test")), labels)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_of_peft_gives_its_outputs(base, tmp_path, name):
    config = CONFIGS[name]
    config.task_type = "CAUSAL_LM"
    stock = saved(AutoModelForCausalLM.from_pretrained(base), config, tmp_path)
    ours = started(base, tmp_path)
    mask = torch.ones_like(TOKENS)
    with torch.no_grad():
        expected = stock(input_ids=TOKENS, attention_mask=mask).logits[:, -5:]
        found = ours.model(input_ids=TOKENS, attention_mask=mask).logits
        plain = AutoModelForCausalLM.from_pretrained(base)(input_ids=TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (expected - plain).abs().max() > 1e-3, "the adapter must matter"


@pytest.mark.parametrize("classes", [3, 4])
def test_a_head_of_the_same_classes_is_taken(classifier, tmp_path, caplog, classes):
    model = AutoModelForSequenceClassification.from_pretrained(
        classifier, num_labels=3, ignore_mismatched_sizes=True
    )
    config = peft.LoraConfig(
        r=2, target_modules=["query"], task_type="SEQ_CLS", modules_to_save=["classifier"]
    )
    stock = saved(model, config, tmp_path)
    with caplog.at_level(logging.WARNING):
        ours = started(classifier, tmp_path, labels=classes)
    head = stock.get_base_model().classifier.modules_to_save["default"].weight
    assert ours.loaded.module.classifier.weight.shape == (classes, 16)
    lora = next(p for n, p in stock.named_parameters() if "lora_B" in n)
    assert torch.equal(next(p for n, p in ours.parameters.items() if "lora_b" in n), lora)
    same = classes == 3
    assert ("its head is not that of this model" in caplog.text) != same
    assert not same or torch.equal(ours.loaded.module.classifier.weight, head)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    chosen = finished_runs.experiment(base, "llama", "lora", r=2)
    return finished_runs.write_finished(tmp_path_factory.mktemp("run") / "run", chosen)


@pytest.mark.parametrize("form", ["run", "export", "adapter"])
def test_a_run_or_its_export_is_gone_on_with(base, run, tmp_path, form):
    folder = run if form == "run" else tmp_path / "out"
    if form != "run":
        export_run(run, folder, form="" if form == "export" else form)
    ours = started(base, folder)
    after = load_file(run / "delta.safetensors")
    assert ours.method == "lora" and ours.options["r"] == 2
    assert {*ours.parameters} == {*after}
    assert all(torch.equal(ours.parameters[name], value) for name, value in after.items())


def test_a_full_model_is_gone_on_with_with_its_buffers(tmp_path):
    table = {
        "model": {"name": "preset:tiny-vit", "num_labels": 10},
        "tuning": {"method": "full"},
        "federation": {"rounds": 1, "clients_per_round": 2},
        "data": {"partition": {"clients": 4, "scheme": "iid"}},
        "client": {"epochs": 1},
        "engine": {"workers": 1},
    }
    first = fedpeft.run(table, out=tmp_path / "first")
    again = {**table, "tuning": {"from": str(tmp_path / "first")}}
    second = fedpeft.run(again, {"client.lr": 1e-9}, out=tmp_path / "second")
    assert second["initial_accuracy"] == first["accuracy"]
    assert second["method"] == "full"


def test_before_is_the_adapter_that_a_run_started_from(base, run, tmp_path):
    table = {
        "model": {"name": str(base), "task": "causal-lm"},
        "tuning": {"from": str(run)},
    }
    chosen = resolve(validate(table, "test")).experiment
    second = finished_runs.write_finished(tmp_path / "second", chosen)
    both = load_before_and_after(second)
    assert torch.equal(both.before.delta, read_delta(build_start(Resolved(chosen), None)))
    assert not torch.equal(both.before.delta, read_delta(build_tuned(Resolved(chosen), None)))


def test_the_key_is_recorded_and_read_back(run, tmp_path):
    file = tmp_path / "experiment.toml"
    file.write_text(f'tuning.from = "{run}"\n')
    chosen = resolve(validate(read_toml(file), "test")).experiment
    file.write_text(dump_experiment(chosen))
    assert 'from = "' in file.read_text()
    again = Experiment.model_validate(read_toml(file))
    assert (again.tuning.start, again.tuning.method) == (str(run), "lora")
    assert resolve(again).experiment.tuning == chosen.tuning
    assert for_sites(again).tuning.start is None


def test_relative_paths_count_from_the_file(run, tmp_path):
    file = run.parent / "experiment.toml"
    file.write_text('tuning.from = "run"\n')
    from fedpeft.experiment.read import read_experiment

    assert read_experiment(file, []).tuning.start == str(run)
    with pytest.raises(ConfigError, match=r"tuning\.form: unknown key; did you mean 'from'"):
        validate({"tuning": {"form": "x"}}, "test")


@pytest.mark.parametrize(
    ("tuning", "match"),
    [
        ({"method": "ia3"}, "tuning.method: found 'ia3'; the adapter of tuning.from is 'lora'"),
        ({"options": {"r": 3}}, r"tuning.options.r: found 3; the adapter of tuning.from has 2"),
        ({"blocks": [0, 0]}, "tuning.blocks: found with tuning.from"),
    ],
)
def test_keys_that_contradict_the_adapter_are_refused(base, run, tuning, match):
    with pytest.raises(ConfigError, match=match):
        started(base, run, **tuning)
    table = {"model": {"name": str(base)}, "tuning": {"from": str(run), **tuning}}
    with pytest.raises(ConfigError, match=match):
        validate(table, "test")
    same = {"method": "lora", "options": {"r": 2}}
    assert started(base, run, **same).options["r"] == 2


def test_an_adapter_of_another_model_is_refused(run, tmp_path):
    other = chat_models.chat_folder(tmp_path, "qwen2")
    with pytest.raises(ModelError, match=r"does not fit the model: .* nothing"):
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
        model = AutoModelForCausalLM.from_pretrained(other)
        model.model.layers = model.model.layers[:1]
        saved(model, config, tmp_path / "one")
        started(other, tmp_path / "one")


def broken(run, folder, **files):
    folder.mkdir()
    for name in ("experiment.toml", "delta.safetensors"):
        (folder / name).write_bytes((run / name).read_bytes())
    for name, content in files.items():
        (folder / name.replace("_DOT_", ".")).write_bytes(content)
    return folder


def test_folders_without_an_adapter_are_refused(base, run, tmp_path):
    with pytest.raises(ConfigError, match="there is no folder 'nowhere'"):
        started(base, "nowhere")
    with pytest.raises(ConfigError, match="holds no adapter; expected is"):
        started(base, base)
    merged = export_run(run, tmp_path / "merged", form="merged")
    with pytest.raises(ConfigError, match="an export with an ordinary model"):
        started(base, merged)
    torn = broken(run, tmp_path / "torn", delta_DOT_safetensors=b"xyz")
    with pytest.raises(ModelError, match="cannot be read"):
        started(base, torn)
    tensors = load_file(run / "delta.safetensors")
    name = next(iter(tensors))
    hollow = broken(run, tmp_path / "hollow")
    save_file({**tensors, name: tensors[name] * torch.nan}, hollow / "delta.safetensors")
    with pytest.raises(ModelError, match="not finite"):
        started(base, hollow)
    Path(tmp_path / "new").mkdir()
    (tmp_path / "new" / "adapter_config.json").write_text(json.dumps({"peft_type": "NEWEST"}))
    with pytest.raises(ConfigError, match="its type 'newest' is not offered here"):
        started(base, tmp_path / "new")
