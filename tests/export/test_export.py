import json
import re

import finished_runs
import pytest
import torch
from huggingface_hub import ModelCard
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import fedpeft
from fedpeft.core.errors import RunFolderError
from fedpeft.export.export import export_run
from fedpeft.models.quiet import quiet

AUTO = {
    "vit": AutoModelForImageClassification,
    "bert": AutoModelForSequenceClassification,
    "llama": AutoModelForCausalLM,
}
WHOLE = [
    ("vit", "scratch"),
    ("vit", "head"),
    ("bert", "bias"),
    ("llama", "full"),
    *(
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in (("vit", "full"), ("vit", "bias"), ("llama", "head"))
    ),
]
INJECTED = ["lora", "dora", "rslora", "ia3", "vera", "ln_tuning", "loha", "lokr", "oft"]
PROMPTED = ["prefix_tuning", "prompt_tuning", "p_tuning"]
QUICK = {
    "vit": ["lora", "dora", "vera", "loha", "lokr"],
    "bert": ["rslora", "ia3", "prefix_tuning", "p_tuning"],
    "llama": ["lora", "ln_tuning", "oft", "prompt_tuning"],
}
PEFT = [
    pytest.param(kind, method, marks=() if method in QUICK[kind] else pytest.mark.slow)
    for kind, methods in (
        ("vit", INJECTED),
        ("bert", [*INJECTED, *PROMPTED]),
        ("llama", [*INJECTED, *PROMPTED]),
    )
    for method in methods
]
OURS = [("vit", "adapter"), ("vit", "prompt"), ("bert", "adapter"), ("llama", "adapter")]
OPTIONS = {
    **{method: {"r": 2} for method in ("lora", "dora", "rslora", "vera", "loha", "lokr")},
    **{method: {"num_virtual_tokens": 3} for method in PROMPTED},
    "oft": {"oft_block_size": 4},
    "prompt": {"num_tokens": 2},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {kind: finished_runs.model_folder(kind, tmp_path_factory.mktemp(kind)) for kind in AUTO}


@pytest.fixture(scope="module")
def finished(models, tmp_path_factory):
    def make(kind, method, **options):
        options = options or OPTIONS.get(method, {})
        chosen = finished_runs.experiment(models[kind], kind, method, **options)
        return finished_runs.write_finished(tmp_path_factory.mktemp("runs") / "run", chosen)

    return make


def stock(kind, folder):
    with quiet():
        return AUTO[kind].from_pretrained(folder).eval()


@pytest.mark.parametrize(("kind", "method"), WHOLE)
def test_whole_methods_load_with_stock_transformers(kind, method, finished, tmp_path):
    run = finished(kind, method)
    folder = export_run(run, tmp_path / "out")
    ours = finished_runs.logits(fedpeft.load(run), kind)
    theirs = finished_runs.logits(stock(kind, folder), kind)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    again = finished_runs.logits(fedpeft.load(folder), kind)
    torch.testing.assert_close(again, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "method"), PEFT)
def test_peft_types_load_with_stock_peft(kind, method, finished, tmp_path):
    run = finished(kind, method)
    folder = export_run(run, tmp_path / "out")
    ours = finished_runs.logits(fedpeft.load(run), kind)
    with quiet():
        model = PeftModel.from_pretrained(stock(kind, folder / "base"), folder).eval()
        theirs = finished_runs.logits(model, kind)
    theirs = theirs[:, -6:] if kind == "llama" else theirs
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    again = finished_runs.logits(fedpeft.load(folder), kind)
    torch.testing.assert_close(again, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "method"), OURS)
def test_our_own_methods_load_with_fedpeft_and_the_card_says_so(kind, method, finished, tmp_path):
    run = finished(kind, method)
    folder = export_run(run, tmp_path / "out")
    ours = finished_runs.logits(fedpeft.load(run), kind)
    again = finished_runs.logits(fedpeft.load(folder), kind)
    torch.testing.assert_close(again, ours, atol=1e-5, rtol=0)
    card = (folder / "README.md").read_text()
    assert "Stock libraries cannot load this folder" in card
    assert "fedpeft.load(folder)" in card


def test_the_delta_matters_to_the_logits(models, finished, tmp_path):
    """The negative control of the tests above: the base alone gives other logits."""
    run = finished("vit", "lora")
    folder = export_run(run, tmp_path / "out")
    ours = finished_runs.logits(fedpeft.load(run), "vit")
    base = finished_runs.logits(stock("vit", folder / "base"), "vit")
    assert (base - ours).abs().max() > 1e-3


def test_added_biases_are_not_exported_as_a_stock_model(finished, tmp_path):
    run = finished("llama", "bias", add_missing=True)
    folder = export_run(run, tmp_path / "out")
    ours = finished_runs.logits(fedpeft.load(run), "llama")
    torch.testing.assert_close(finished_runs.logits(fedpeft.load(folder), "llama"), ours)


def test_shufflenet_loads_with_fedpeft(tmp_path):
    chosen = finished_runs.experiment("preset:shufflenet-v2-x0.5", "vit", "full")
    run = finished_runs.write_finished(tmp_path / "run", chosen)
    folder = export_run(run, tmp_path / "out")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, again = fedpeft.load(run)(pixel_values=x), fedpeft.load(folder)(pixel_values=x)
    torch.testing.assert_close(again.logits, ours.logits)


def test_export_names_the_classes_and_brings_the_processor(finished, tmp_path):
    folder = export_run(finished("vit", "head"), tmp_path / "out")
    assert AutoConfig.from_pretrained(folder).label2id == {"x": 0, "y": 1, "z": 2}
    assert '"image_mean"' in (folder / "preprocessor_config.json").read_text()
    text = export_run(finished("bert", "lora"), tmp_path / "text")
    assert AutoTokenizer.from_pretrained(text / "base").pad_token_id == 0


def test_the_automatic_class_of_peft_loads_a_language_model(finished, tmp_path):
    run = finished("llama", "lora")
    folder = export_run(run, tmp_path / "out")
    with quiet():
        model = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    ours = finished_runs.logits(fedpeft.load(run), "llama")
    torch.testing.assert_close(finished_runs.logits(model, "llama"), ours, atol=1e-5, rtol=0)


def test_the_card_lists_what_happened(finished, tmp_path):
    card = (export_run(finished("vit", "lora"), tmp_path / "out") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    for words in (
        "| Rounds | 2 |",
        "| Clients | 2 |",
        "| Clients per round | 2 |",
        "840 B as encoded",
        "No differential privacy was used",
        "PeftModel.from_pretrained(base, folder)",
        "2 clients hold 4 to 4 examples",
    ):
        assert words in card


def test_the_card_holds_the_last_figure_for_the_hub(finished, tmp_path):
    run = finished("llama", "lora")
    card = (export_run(run, tmp_path / "out") / "README.md").read_text()
    (result,) = ModelCard(card).data.eval_results
    assert (result.task_type, result.task_name) == ("text-generation", "causal-lm")
    assert (result.dataset_name, result.dataset_split) == ("digits", "test")
    assert (result.metric_type, result.metric_value) == ("perplexity", pytest.approx(0.2))


def test_a_run_that_was_never_evaluated_has_no_figure_for_the_hub(finished, tmp_path):
    run = finished("vit", "head")
    records = (run / "rounds.jsonl").read_text()
    (run / "rounds.jsonl").write_text(records.replace('"accuracy"', '"other"'))
    card = (export_run(run, tmp_path / "out") / "README.md").read_text()
    assert ModelCard(card).data.eval_results is None and "model-index" not in card


def test_export_never_overwrites(finished, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty"):
        export_run(finished("vit", "head"), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_file_is_no_target(finished, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(RunFolderError, match="this is a file"):
        export_run(finished("vit", "head"), tmp_path / "out")


def test_a_failed_export_leaves_nothing(finished, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    run = finished("vit", "head")
    monkeypatch.setattr("fedpeft.export.export.model_card", fail)
    with pytest.raises(OSError, match="disk full"):
        export_run(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_run_is_not_exported(finished, tmp_path):
    run = finished("vit", "head")
    (run / "summary.json").unlink()
    with pytest.raises(RunFolderError, match="--resume"):
        export_run(run, tmp_path / "out")


def test_a_base_on_the_hub_is_named_and_not_copied(finished, models, tmp_path, monkeypatch):
    monkeypatch.setattr("fedpeft.export.export.is_local", lambda name: False)
    monkeypatch.setattr("fedpeft.export.export._portable", lambda experiment, **_: experiment)
    run = finished("vit", "lora")
    folder = export_run(run, tmp_path / "out")
    assert not (folder / "base").exists()
    assert str(models["vit"]) in (folder / "adapter_config.json").read_text()
    assert "num_labels=3" in (folder / "README.md").read_text()
    ours = finished_runs.logits(fedpeft.load(run), "vit")
    torch.testing.assert_close(finished_runs.logits(fedpeft.load(folder), "vit"), ours)


def test_an_export_says_nothing_about_this_machine(finished, models, tmp_path):
    folder = export_run(finished("vit", "adapter"), tmp_path / "out")
    for file in folder.rglob("*"):
        assert file.is_dir() or str(models["vit"].parent).encode() not in file.read_bytes()


def test_the_card_tells_what_the_untuned_model_scored_where_it_was_scored(finished, tmp_path):
    run = finished("vit", "bias")
    silent = (export_run(run, tmp_path / "silent") / "README.md").read_text()
    assert "before training" not in silent
    file = run / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"initial_accuracy": 0.125}))
    card = (export_run(run, tmp_path / "out") / "README.md").read_text()
    assert re.search(r"before training \| 12\.50? ?%? \|", card)
