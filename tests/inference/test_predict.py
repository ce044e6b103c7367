from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedpeft
from fedpeft.answers.generate import Decoding
from fedpeft.build.model import load_run_data
from fedpeft.core.errors import DataError, ModelError
from fedpeft.experiment.resolve import Resolved
from fedpeft.export.export import export_run
from fedpeft.inference.inputs import Input
from fedpeft.inference.predict import predict
from fedpeft.inference.readings import Label
from fedpeft.runs.folder import RunFolder, stored_experiment
from fedpeft.runs.load import load_before_and_after


def test_set(run):
    return load_run_data(Resolved(stored_experiment(RunFolder(Path(run))))).test


test_set.__test__ = False


def expected(run, rows):
    """Return label and probability of test rows, by the public way to load a run."""
    batch = test_set(run).batch(rows, seed=None)
    with torch.no_grad():
        model = fedpeft.load(run)
        chances = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.softmax(-1)
    names = model.config.id2label
    return [
        (names[int(row.argmax())], pytest.approx(float(row.max()), abs=1e-5)) for row in chances
    ]


def found(run, values, **options):
    model = load_before_and_after(Path(run))
    inputs = [Input(f"input {i}", value) for i, value in enumerate(values)]
    return list(predict(model, inputs, Decoding(6), both=options.pop("both", True)))


def test_picture_files_get_the_labels_of_the_run(pictures_run, tmp_path):
    """Digits have 0 to 16, files 0 to 255: the run's own scale is found again."""
    pixels = test_set(pictures_run).pixels.tensor[:20, :, :, 0].numpy()
    files = []
    for number, picture in enumerate(pixels):
        file = tmp_path / f"{number}.png"
        Image.fromarray((picture.astype(float) / 16 * 255).round().astype(np.uint8)).save(file)
        files.append(str(file))
    after = [each.after for each in found(pictures_run, files)]
    assert [(each.label, each.probability) for each in after] == expected(pictures_run, range(20))


def test_texts_get_the_labels_of_the_run(texts_run):
    texts = ["w1 w2 w3 w4 w5 w6 w7 w8", "w3"]
    from fedpeft.models.padding import open_tokenizer

    model = fedpeft.load(texts_run)
    tokenizer = open_tokenizer(str(model.name_or_path))
    for text, each in zip(texts, found(texts_run, texts), strict=True):
        tokens = tokenizer([text], truncation=True, max_length=6, return_tensors="pt")
        with torch.no_grad():
            row = model(tokens["input_ids"]).logits.softmax(-1)[0]
        label = ["no", "yes"][int(row.argmax())]
        assert each.after == Label(label, pytest.approx(float(row.max()), abs=1e-5))


def test_before_is_the_model_before_round_1(texts_run):
    [each] = found(texts_run, ["w1 w2"])
    assert isinstance(each.before, Label)
    assert each.before != each.after
    assert found(texts_run, ["w1 w2"], both=False)[0].before is None


def test_the_order_of_batches_is_that_of_the_inputs(texts_run):
    texts = [f"w{i % 20}" for i in range(40)]
    one_by_one = [found(texts_run, [text])[0].after.label for text in texts[:3]]
    assert [each.after.label for each in found(texts_run, texts)][:3] == one_by_one


def test_a_language_model_answers(language_run):
    [plain, chat] = found(language_run, ["the number", [{"role": "user", "content": "the number"}]])
    assert isinstance(plain.after, str)
    assert plain.after == chat.after, "a text is asked as a conversation of one turn"
    assert plain.before != plain.after
    assert plain.as_json() == {
        "input": "input 0",
        "answer": plain.after,
        "before": {"answer": plain.before},
    }


def test_an_answer_at_the_end_of_a_conversation_is_not_read(language_run):
    asked = [{"role": "user", "content": "the number"}]
    given = [asked, [*asked, {"role": "assistant", "content": "is 4"}]]
    assert len({each.after for each in found(language_run, given)}) == 1
    with pytest.raises(DataError, match="input 0 asks nothing"):
        found(language_run, [[{"role": "assistant", "content": "is 4"}]])


def test_exports_predict_as_their_run(texts_run, language_run, tmp_path):
    for name, run, value in (("a", texts_run, "w1 w2"), ("b", language_run, "the number")):
        [of_run] = found(run, [value])
        [of_export] = found(export_run(Path(run), tmp_path / name), [value])
        if isinstance(of_run.after, str):
            assert of_export == of_run
        else:
            assert of_export.after.label == of_run.after.label
    merged = export_run(Path(language_run), tmp_path / "c", form="merged")
    [alone] = found(merged, ["the number"])
    assert (alone.before, alone.after) == (None, of_run.after)


def test_an_input_that_cannot_be_read_is_named(pictures_run, texts_run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="input 0"):
        found(pictures_run, [str(tmp_path / "a.png")])
    with pytest.raises(DataError, match=r"^INPUT: input 0 is no valid text"):
        found(texts_run, ["a\ud800b"])


def test_a_run_without_preprocessing_is_refused(pictures_run):
    model = load_before_and_after(Path(pictures_run))
    from dataclasses import replace

    with pytest.raises(ModelError, match="did not record how inputs become tensors"):
        list(predict(replace(model, preprocessing=None), [Input("a", "b")], Decoding(), both=True))
