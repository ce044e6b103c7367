"""`fedpeft show`: the tokens and the mask of the examples that are trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from chat_models import CHATML, answer, chat_folder, chat_tokenizer, user
from support import TINY
from transformers import T5Config

from fedpeft.build.model import load_run_data
from fedpeft.cli import main
from fedpeft.experiment.read import read_experiment
from fedpeft.experiment.resolve import resolve

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talks")
    chat_folder(folder / "model")
    rows = [
        {"messages": [user(f"say \x1b[31m{word}"), answer(word)], "client": f"c{n % 2}"}
        for n, word in enumerate(("one", "two", "three", "four", "five", "six"))
    ]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "exp.toml").write_text(
        '[model]\nname = "model"\n[data]\nsource = "."\nmax_length = 200\n'
        '[data.partition]\nscheme = "natural"\nmin_examples = 1\n[tuning]\nmethod = "lora"\n'
    )
    return folder / "exp.toml"


@pytest.mark.parametrize("packing", ["false", "true"])
def test_json_holds_the_tokens_and_the_mask_of_the_training_batch(call, file, packing):
    sets = (f"data.packing={packing}",)
    code, out, _ = call("show", file, "--set", *sets, "--examples", 2, "--json")
    found = json.loads(out)
    assert code == 0 and found["packed"] == (packing == "true") and found["clients"] == 2
    table = load_run_data(resolve(read_experiment(file, sets))).train
    for row in {each["row"] for each in found["examples"]}:
        parts = [p for each in found["examples"] if each["row"] == row for p in each["parts"]]
        batch = table.batch([row], seed=None)
        assert [i for part in parts for i in part["ids"]] == batch["input_ids"][0].tolist()
        marks = [part["learnt"] for part in parts for _ in part["ids"]]
        assert marks == (batch["labels"][0] != -100).tolist()
    learnt = [p["text"] for e in found["examples"] for p in e["parts"] if p["learnt"]]
    assert learnt[0] == "one<|im_end|>" and len(learnt) == (6 if packing == "true" else 2)


def test_what_is_learnt_stands_in_brackets_or_in_colour(call, file, monkeypatch):
    code, out, _ = call("show", file, "--examples", 1)
    talk = [user("say \x1b[31mone"), answer("one")]
    whole = chat_tokenizer().apply_chat_template(talk, chat_template=CHATML, tokenize=False)
    before, learnt, after = whole.replace("\x1b", "\\x1b").rpartition("one<|im_end|>")
    expected = f"{before}⟦{learnt}⟧{after}"
    assert code == 0 and expected in out and "example 1, row 0 of c0" in out
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = call("show", file, "--examples", 1)
    assert "\x1b[32m\x1b[1mone<|im_end|>\x1b[0m" in out and "⟦" not in out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in call("show", file, "--examples", 1)[1]


def test_a_batch_is_counted_as_it_is_trained(call, file):
    _, out, _ = call("show", file, "--set", "data.max_length=20", "--set", "data.truncation=left")
    assert out.count("20 tokens, ") == 3 and "6 training examples of 2 clients" in out


def test_pictures_are_described(call, tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)
    code, out, _ = call("show", tmp_path / "tiny.toml", "--examples", 2)
    assert code == 0 and out.count("pixel_values 1 x 8 x 8, class '") == 2


def test_there_may_be_fewer_examples_than_are_wanted(call, file):
    _, out, _ = call("show", file, "--examples", 99, "--json")
    assert len(json.loads(out)["examples"]) == 6


def test_a_text_that_is_written_stands_behind_the_one_that_is_read(call, tmp_path):
    model = tmp_path / "model"
    tokenizer = chat_tokenizer()
    tokenizer.save_pretrained(model)
    T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
             decoder_start_token_id=0, pad_token_id=0).save_pretrained(model)  # fmt: skip
    row = json.dumps({"source": "how warm is water?", "target": "100 °C"})
    (tmp_path / "data.jsonl").write_text(f"{row}\n" * 20)
    (tmp_path / "exp.toml").write_text(
        '[model]\nname = "model"\ntask = "seq2seq-lm"\n[data]\nsource = "data.jsonl"\n'
        '[data.partition]\nscheme = "iid"\nclients = 8\nmin_examples = 1\n'
    )
    code, out, err = call("show", tmp_path / "exp.toml", "--examples", 1)
    assert code == 0, err
    assert "how warm is water?⟦100 °C<|im_end|>⟧" in out
