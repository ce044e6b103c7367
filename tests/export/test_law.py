"""The law of exports: with nothing but the folder one gets the run's own test predictions.

    run on files -> fedpeft export -> stock processor or tokenizer -> stock model -> test logits

The default tier takes rows in which every model, source, method and transform stands, each with
several partners; the slow tier takes all combinations.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForSequenceClassification,
    PeftModel,
)
from PIL import Image
from safetensors.torch import load_file
from tiny_models import text_folder, texts
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForVideoClassification,
    AutoTokenizer,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.image_utils import load_image

import fedpeft
from fedpeft.build.model import load_run_data
from fedpeft.core.errors import RunFolderError
from fedpeft.data.bundled import read_set
from fedpeft.data.preprocessing import preprocessing_from
from fedpeft.experiment.resolve import Resolved
from fedpeft.export.export import export_run
from fedpeft.models.quiet import quiet
from fedpeft.runs.folder import RunFolder, stored_experiment
from fedpeft.runs.load import load_run

QUICK = {
    "federation.rounds": 1,
    "federation.clients_per_round": 2,
    "client.epochs": 2,
    "client.lr": 0.2,
    "engine.workers": 1,
    "data.partition.clients": 2,
    "data.partition.scheme": "iid",
    "data.partition.min_examples": 1,
}
SOURCES = ("folder", "deep", "parquet", "npz", "npz-of-16")
TRANSFORMS = {
    "plain": {},
    "resize": {"data.transforms.resize": 20},
    "dataset": {"data.transforms.normalize": "dataset"},
    "given": {"data.transforms.normalize": {"mean": [0.3], "std": [0.2]}},
    "augmented": {"data.transforms.random_crop": 2, "data.transforms.flip": True},
    "paper": {"data.fidelity": "paper", "data.transforms.normalize": "dataset"},
}
PICTURE_MODELS = ("vit-glyphs-8", "small-vit", "vit-224")
METHODS = ("full", "head", "bias", "lora", "ia3", "ln_tuning", "adapter", "prompt")
TEXT_MODELS = ("bert", "roberta", "gpt2", "llama", "qwen2")
TEXT_METHODS = ("full", "head", "lora", "prefix_tuning", "adapter")
TEXT_SOURCES = ("jsonl", "csv", "parquet")


def cover(*axes):
    """Return rows in which each value of each axis stands at least once, with shifting partners."""
    longest = max(map(len, axes))
    return [
        tuple(a[(i + i // len(a) * k) % len(a)] for k, a in enumerate(axes)) for i in range(longest)
    ]


def cases(*axes):
    """Return the quick rows, and all others marked slow."""
    import itertools

    quick = set(cover(*axes))
    return [
        pytest.param(*row, id="-".join(row), marks=() if row in quick else pytest.mark.slow)
        for row in itertools.product(*axes)
    ]


@dataclass(frozen=True)
class Made:
    """A finished run, and the raw test inputs in the order of its test set."""

    run: Path
    raw: list


def pictures(size, channels, white, count=30):
    """Return arrays of two classes that differ in brightness; size 0 is mixed sizes."""
    draw = np.random.RandomState(0)
    made = []
    for number in range(count):
        height, width = (size, size) if size else (9 + number % 5, 8 + number % 7)
        low, high = ((0, white // 2), (white // 3, white))[number % 2]
        shape = (height, width, 3) if channels == 3 else (height, width)
        made.append(draw.randint(low, high + 1, shape).astype(np.uint8))
    return made


def write_pictures(folder, source, channels):
    """Write train and test pictures; return (data.source, raw test pictures in their order)."""
    if source in ("folder", "deep"):
        deep = source == "deep"
        arrays = pictures(0, 1 if deep else channels, 255)
        for split, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
            for number, array in list(enumerate(arrays))[part]:
                place = folder / split / f"class-{number % 2}"
                place.mkdir(parents=True, exist_ok=True)
                exif = Image.Exif()
                exif[0x0112] = 1 if deep else (1, 6, 3, 8)[number % 4]
                values = array.astype(np.uint16) * 256 + 7 if deep else array
                Image.fromarray(values).save(place / f"{number:02}.png", exif=exif)
        return folder, sorted(map(str, folder.glob("test/*/*.png")))
    if source == "parquet":
        import datasets

        arrays = pictures(0, channels, 255)
        for split, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
            rows = {
                "image": [Image.fromarray(a) for a in arrays[part]],
                "label": [0, 1] * (10 if split == "train" else 5),
            }
            table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
            table.to_parquet(folder / f"{split}.parquet")
        return folder, [Image.fromarray(array) for array in arrays[20:]]
    white = 16 if source == "npz-of-16" else 255
    size = 8 if source == "npz-of-16" else 12
    arrays = np.stack(pictures(size, channels, white))
    labels = np.arange(30) % 2
    np.savez(folder / "d.npz", x_train=arrays[:20], y_train=labels[:20], x_test=arrays[20:],
             y_test=labels[20:], full_scale=white)  # fmt: skip
    return folder / "d.npz", list(arrays[20:])


def picture_model(folder, name):
    if name == "vit-glyphs-8":
        return name
    size = 224 if name == "vit-224" else 16
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_labels=5,
                       intermediate_size=32, image_size=size, patch_size=size // 4)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTForImageClassification(config).save_pretrained(folder)
    own = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.2], "resample": 3,
           "image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.9}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(own))
    return str(folder)


def run_pictures(tmp_path, model, source, method, transforms):
    channels = 1 if model == "vit-glyphs-8" else 3
    (tmp_path / "data").mkdir()
    (tmp_path / "model").mkdir()
    data, raw = write_pictures(tmp_path / "data", source, channels)
    settings = dict(TRANSFORMS[transforms])
    if "data.transforms.resize" in settings and model == "vit-224":
        settings["data.transforms.resize"] = 230
    if transforms == "given":
        settings = {
            "data.transforms.normalize": {"mean": [0.3] * channels, "std": [0.2] * channels}
        }
    name = picture_model(tmp_path / "model", model)
    table = {"model": {"name": name}, "data": {"source": str(data)},
             "tuning": {"method": method}}  # fmt: skip
    with quiet():
        fedpeft.run(table, {**QUICK, **settings}, out=tmp_path / "run")
    return Made(tmp_path / "run", raw)


def run_texts(tmp_path, model, source, method, config=None, pooling=None):
    (tmp_path / "data").mkdir()
    rows = [{**row, "label": bool(row["label"])} for row in texts(40)]
    for split, part in (("train", rows[:24]), ("test", rows[24:])):
        file = tmp_path / "data" / f"{split}.{source}"
        if source == "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in part))
        elif source == "csv":
            file.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in part))
        else:
            import datasets

            datasets.Dataset.from_list(part).to_parquet(file)
    pad = {} if model in ("bert", "roberta") else {"pad_token_id": None}
    folder = text_folder(
        tmp_path / "model",
        model,
        {**pad, **(config or {})},
        {"pad_token": "<unk>" if pad else "<pad>"},
    )
    pooled = {"pooling": pooling} if pooling else {}
    table = {"model": {"name": str(folder), "task": "text-classification", **pooled},
             "tuning": {"method": method},
             "data": {"source": str(tmp_path / "data"), "max_length": 8}}  # fmt: skip
    with quiet():
        fedpeft.run(table, QUICK, out=tmp_path / "run")
    return Made(tmp_path / "run", [row["text"] for row in rows[24:]])


def own_logits(run):
    """The logits of the run's own model on its own test set, as evaluation makes them."""
    finished = load_run(run)
    data = load_run_data(Resolved(stored_experiment(RunFolder(run))))
    batch = dict(data.test.batch(range(len(data.test)), seed=None))
    batch.pop("labels")
    with torch.no_grad():
        return finished.tuned.model.eval()(**batch).logits


def stock_model(folder, auto):
    """The model of an export by stock libraries, or by `fedpeft.load` if they lack the method."""
    info = json.loads((folder / "fedpeft.json").read_text())
    with quiet():
        if info["kind"] == "merged":
            return auto.from_pretrained(folder).eval()
        if info["kind"] == "peft":
            return PeftModel.from_pretrained(auto.from_pretrained(folder / "base"), folder).eval()
    return fedpeft.load(folder)


def picture_logits(folder, raw):
    made = json.loads((folder / "fedpeft.json").read_text())["preprocessing"]["picture"]
    processor = AutoImageProcessor.from_pretrained(folder)
    model = stock_model(folder, AutoModelForImageClassification)
    found = []
    for each in raw:
        if isinstance(each, np.ndarray):  # as the card shows
            scale = made["white"] / made["canvas"]["full_scale"]
            picture = Image.fromarray(
                (each * scale).round().astype("uint8") if scale != 1 else each
            )
        elif made["deep"]:
            upper = (np.asarray(Image.open(each), np.int64) >> 8).clip(0, 255).astype(np.uint8)
            picture = load_image(Image.fromarray(upper))
        else:
            picture = load_image(each)
        if made["canvas"]["channels"] == 1:
            picture = picture.convert("L")
        with torch.no_grad():
            found.append(
                model(pixel_values=processor(picture, return_tensors="pt").pixel_values).logits
            )
    return torch.cat(found)


def text_logits(folder, raw, model=None):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = model or stock_model(folder, AutoModelForSequenceClassification)
    options = {"padding": True, "truncation": True, "return_tensors": "pt"}
    tokens = [tokenizer([text], return_token_type_ids=False, **options) for text in raw]
    together = tokenizer(raw, return_token_type_ids=False, **options)
    with torch.no_grad():
        alone = torch.cat([model(**each).logits for each in tokens])
        torch.testing.assert_close(model(**together).logits, alone, atol=2e-5, rtol=0)
        return alone


def exported(made, tmp_path, form=""):
    """Export a run, and take the run and its model away."""
    folder = export_run(made.run, tmp_path / "out", form=form)
    if form != "adapter":
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
    return folder


@pytest.mark.parametrize(
    ("model", "source", "method", "transforms"),
    cases(PICTURE_MODELS, SOURCES, METHODS, tuple(TRANSFORMS)),
)
def test_pictures(model, source, method, transforms, tmp_path):
    made = run_pictures(tmp_path, model, source, method, transforms)
    ours = own_logits(made.run)
    theirs = picture_logits(exported(made, tmp_path), made.raw)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("model", "source", "method"), cases(TEXT_MODELS, TEXT_SOURCES, TEXT_METHODS)
)
def test_texts(model, source, method, tmp_path):
    made = run_texts(tmp_path, model, source, method)
    ours = own_logits(made.run)
    folder = exported(made, tmp_path)
    torch.testing.assert_close(text_logits(folder, made.raw), ours, atol=2e-5, rtol=0)
    loaded = fedpeft.load(folder)
    torch.testing.assert_close(text_logits(folder, made.raw, loaded), ours, atol=2e-5, rtol=0)
    assert loaded.config.id2label == {0: "False", 1: "True"}
    assert loaded.config.problem_type == "single_label_classification"


@pytest.mark.parametrize(
    ("model", "method", "pooling"),
    cases(("bert", "roberta"), (*TEXT_METHODS, "bias", "prompt_tuning"), ("mean", "cls")),
)
def test_pooled_texts(model, method, pooling, tmp_path):
    """Stock libraries would read the model as its class does: `fedpeft.load` alone reads it."""
    made = run_texts(tmp_path, model, "jsonl", method, pooling=pooling)
    ours = own_logits(made.run)
    with pytest.raises(RunFolderError, match=f"model.pooling = '{pooling}'"):
        export_run(made.run, tmp_path / "merged", form="merged")
    folder = exported(made, tmp_path)
    loaded = fedpeft.load(folder)
    torch.testing.assert_close(text_logits(folder, made.raw, loaded), ours, atol=2e-5, rtol=0)
    assert loaded.config.id2label == {0: "False", 1: "True"}
    card = (folder / "README.md").read_text()
    assert f'(`model.pooling = "{pooling}"`)' in card and "Stock libraries cannot load" in card
    info = json.loads((folder / "fedpeft.json").read_text())
    assert info["kind"] == "fedpeft" and not (folder / "adapter_config.json").exists()
    base = load_file(folder / "base/model.safetensors")
    assert not [name for name in base if "pooler" in name], "it is not used"


def test_an_export_that_forgets_its_pooling_is_seen(tmp_path):
    """The negative control of the law."""
    config = {"initializer_range": 0.3}
    made = run_texts(tmp_path, "roberta", "jsonl", "head", config, pooling="mean")
    ours, folder = own_logits(made.run), exported(made, tmp_path)
    file = folder / "fedpeft.json"
    info = json.loads(file.read_text())
    assert info["experiment"]["model"].pop("pooling") == "mean"
    file.write_text(json.dumps(info))
    assert (text_logits(folder, made.raw, fedpeft.load(folder)) - ours).abs().max() > 0.01


def test_a_pooled_adapter_alone_names_its_base(tmp_path):
    made = run_texts(tmp_path, "bert", "jsonl", "lora", pooling="mean")
    ours, folder = own_logits(made.run), exported(made, tmp_path, "adapter")
    assert not (folder / "base").exists()
    torch.testing.assert_close(
        text_logits(folder, made.raw, fedpeft.load(folder)), ours, atol=2e-5, rtol=0
    )


def test_a_wrong_rescale_is_seen(tmp_path):
    """The negative control of the law."""
    made = run_pictures(tmp_path, "vit-glyphs-8", "folder", "lora", "plain")
    ours, folder = own_logits(made.run), exported(made, tmp_path)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rescale_factor": 1 / 16}))
    assert (picture_logits(folder, made.raw) - ours).abs().max() > 0.1


@pytest.mark.parametrize("method", ["lora", "prefix_tuning"])
def test_the_automatic_class_of_peft_loads_texts(method, tmp_path):
    made = run_texts(tmp_path, "roberta", "jsonl", method)
    ours, folder = own_logits(made.run), exported(made, tmp_path)
    with quiet():
        model = AutoPeftModelForSequenceClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(text_logits(folder, made.raw, model), ours, atol=2e-5, rtol=0)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"


def test_the_automatic_class_of_peft_loads_pictures(tmp_path):
    made = run_pictures(tmp_path, "small-vit", "npz", "lora", "plain")
    folder = exported(made, tmp_path)
    with quiet():
        model = AutoPeftModel.from_pretrained(folder).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            model(pixel_values=x).logits, fedpeft.load(folder)(pixel_values=x).logits
        )


@pytest.mark.parametrize("method", ["lora", "ia3", "ln_tuning"])
def test_merged_is_an_ordinary_model(method, tmp_path):
    made = run_texts(tmp_path, "llama", "jsonl", method)
    ours, folder = own_logits(made.run), exported(made, tmp_path, "merged")
    assert not (folder / "adapter_config.json").exists()
    torch.testing.assert_close(text_logits(folder, made.raw), ours, atol=2e-5, rtol=0)


@pytest.mark.parametrize("method", ["lora", "adapter"])
def test_an_adapter_alone_names_its_base(method, tmp_path):
    made = run_texts(tmp_path, "bert", "jsonl", method)
    ours, folder = own_logits(made.run), exported(made, tmp_path, "adapter")
    assert not (folder / "base").exists()
    torch.testing.assert_close(
        text_logits(folder, made.raw, fedpeft.load(folder)), ours, atol=2e-5, rtol=0
    )


def test_a_base_elsewhere_is_loaded_with_the_runs_own_settings(tmp_path):
    """Its config may name another problem and another padding token than the run used."""
    made = run_texts(tmp_path, "llama", "jsonl", "lora", {"problem_type": "regression"})
    ours, folder = own_logits(made.run), exported(made, tmp_path, "adapter")
    assert '"problem_type": "regression"' in (tmp_path / "model/config.json").read_text()
    names: dict[str, object] = {"folder": str(folder)}
    with quiet():
        exec((folder / "README.md").read_text().split("```python")[1].split("```")[0], names)
    model = names["model"]
    torch.testing.assert_close(text_logits(folder, made.raw, model), ours, atol=2e-5, rtol=0)
    assert model.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("form", ["", "merged"])
def test_another_problem_of_the_checkpoint_is_not_exported(form, tmp_path):
    settings = {"problem_type": "multi_label_classification"}
    made = run_texts(tmp_path, "bert", "jsonl", "lora", settings)
    folder = exported(made, tmp_path, form)
    config = json.loads((folder / ("" if form else "base") / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"


def test_a_run_and_its_export_name_the_classes(tmp_path):
    made = run_pictures(tmp_path, "small-vit", "folder", "adapter", "plain")
    names = {0: "class-0", 1: "class-1"}
    assert fedpeft.load(made.run).config.id2label == names
    assert fedpeft.load(exported(made, tmp_path)).config.id2label == names


def test_all_files_have_the_permissions_of_new_files(tmp_path):
    made = run_pictures(tmp_path, "small-vit", "npz", "lora", "plain")
    folder = exported(made, tmp_path)
    (tmp_path / "new").touch()
    usual = (tmp_path / "new").stat().st_mode
    assert {file.stat().st_mode for file in folder.rglob("*") if file.is_file()} == {usual}


def test_a_lost_delta_is_written_again_from_the_checkpoint(tmp_path):
    made = run_pictures(tmp_path, "small-vit", "npz", "lora", "plain")
    ours = own_logits(made.run)
    (made.run / "delta.safetensors").write_bytes(b"torn")
    with pytest.raises(RunFolderError, match="or remove it: it is written again from the check"):
        own_logits(made.run)
    (made.run / "delta.safetensors").unlink()
    torch.testing.assert_close(own_logits(made.run), ours)
    assert (made.run / "delta.safetensors").is_file()


@pytest.mark.parametrize(
    ("method", "form", "message"),
    [
        ("head", "adapter", "trains the model's own weights"),
        ("adapter", "merged", "cannot be folded into the weights"),
        ("prefix_tuning", "merged", "cannot be folded into the weights"),
        ("lora", "zip", "allowed are adapter, merged"),
    ],
)
def test_a_form_that_cannot_be_is_refused(method, form, message, tmp_path):
    made = run_texts(tmp_path, "bert", "jsonl", method)
    with pytest.raises(RunFolderError, match=message):
        export_run(made.run, tmp_path / "out", form=form)
    assert not (tmp_path / "out").exists()


def test_the_recorded_preprocessing_makes_the_tensors_of_evaluation(tmp_path):
    made = run_pictures(tmp_path, "small-vit", "folder", "head", "resize")
    found = preprocessing_from(json.loads((made.run / "preprocessing.json").read_text()))
    test = load_run_data(Resolved(stored_experiment(RunFolder(made.run)))).test
    expected = test.batch(range(len(test)), seed=None)["pixel_values"]
    assert torch.equal(found.picture(made.raw), expected)


def test_clips(tmp_path):
    """The frames that evaluation takes, each made by the stock processor."""
    settings = {"tuning.method": "head", "model.name": "preset:tiny-videomae"}
    table = {"data": {"source": "motion"}, "model": {"task": "video-classification"}}
    with quiet():
        fedpeft.run(table, {**QUICK, **settings}, out=tmp_path / "run")
    folder = export_run(tmp_path / "run", tmp_path / "out")
    ours = own_logits(tmp_path / "run")[:4]
    clips = list(read_set("motion").tables["test"].columns["video"][:4])
    made = json.loads((folder / "fedpeft.json").read_text())["preprocessing"]["picture"]
    assert (made["frames"], len(clips[0])) == (4, 8)
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForVideoClassification.from_pretrained(folder).eval()
    for clip, expected in zip(clips, ours, strict=True):
        frames = [Image.fromarray(frame) for frame in clip[1::2]]  # the middle of four parts
        x = processor(frames, return_tensors="pt").pixel_values
        with torch.no_grad():
            found = model(pixel_values=x.reshape(1, *x.shape[-4:])).logits[0]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
