import json
import math

import chat_models
import pytest
import torch

import fedpeft
from fedpeft.answers.choices import Item, log_likelihoods, read_items, score_items
from fedpeft.core.errors import DataError
from fedpeft.models.padding import open_tokenizer

ITEMS = [
    Item("Which is a colour?", ("red", "seven hundred", "to run"), 0),
    Item("Two and two are ", ("four", "5"), 0),
    Item("", ("a", "bb"), 1),
    Item("<s>begins", ("x", "yz"), 0),
]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request, tmp_path_factory):
    folder = chat_models.chat_folder(
        tmp_path_factory.mktemp(request.param), request.param, max_position_embeddings=48
    )
    loaded = fedpeft.load_model(fedpeft.ModelRequest(str(folder), task="causal-lm"))
    tuned = fedpeft.tune(loaded, fedpeft.TuningRequest("lora"))
    return tuned, open_tokenizer(str(folder))


def words(tokenizer, text):
    """Return the tokens of a text, without one that begins it."""
    return tokenizer.encode(text, add_special_tokens=False)


def one_by_one(model, before, after):
    """Sum the log-probabilities of `after`, in one pass of one text without padding."""
    ids = torch.tensor([[*before, *after]])
    with torch.no_grad():
        logs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.log_softmax(-1)[0]
    return sum(float(logs[len(before) + i - 1, token]) for i, token in enumerate(after))


@pytest.mark.parametrize("item", ITEMS[:2], ids=["plain", "spaces"])
def test_a_choice_has_the_likelihood_of_its_own_tokens(model, item):
    tuned, tokenizer = model
    stem = item.question.rstrip()
    spaces = item.question[len(stem) :]
    expected = [
        one_by_one(tuned.model, tokenizer.encode(stem), words(tokenizer, f"{spaces} {choice}"))
        for choice in item.choices
    ]
    assert log_likelihoods(tuned, tokenizer, item) == pytest.approx(expected, abs=1e-4)


def test_an_empty_question_begins_with_the_first_token(model):
    tuned, tokenizer = model
    first = tokenizer.bos_token_id
    first = tokenizer.eos_token_id if first is None else first
    expected = [one_by_one(tuned.model, [first], words(tokenizer, f" {c}")) for c in ("a", "bb")]
    assert log_likelihoods(tuned, tokenizer, ITEMS[2]) == pytest.approx(expected, abs=1e-4)


def test_what_is_too_long_loses_its_beginning(model):
    tuned, tokenizer = model
    long = Item("q" * 90, ("red", "green"), 0)
    expected = [
        one_by_one(
            tuned.model,
            words(tokenizer, "q" * (49 - len(words(tokenizer, f" {c}")))),
            words(tokenizer, f" {c}"),
        )
        for c in long.choices
    ]
    found = log_likelihoods(tuned, tokenizer, long)
    assert found == pytest.approx(expected, abs=1e-4)
    whole = Item("x" + "q" * 90, long.choices, 0)
    assert log_likelihoods(tuned, tokenizer, whole) == pytest.approx(found, abs=1e-6)


def test_figures_count_the_right_choices(model):
    tuned, tokenizer = model
    found = score_items(tuned, tokenizer, ITEMS)
    logs = [log_likelihoods(tuned, tokenizer, item) for item in ITEMS]
    right = [
        max(range(len(log)), key=log.__getitem__) == item.answer
        for log, item in zip(logs, ITEMS, strict=True)
    ]
    per_letter = [
        max(range(len(log)), key=lambda i, log=log, item=item: log[i] / len(item.choices[i]))
        == item.answer
        for log, item in zip(logs, ITEMS, strict=True)
    ]
    assert (found.items, found.accuracy) == (4, sum(right) / 4)
    assert found.accuracy_norm == sum(per_letter) / 4


def test_a_model_without_knowledge_of_the_choices_scores_evenly(model):
    """A head of zeros gives every token 1/V: short choices win unless they are normalised."""
    tuned, tokenizer = model
    head = tuned.model.get_output_embeddings()
    kept = head.weight.detach().clone()
    with torch.no_grad():
        head.weight.zero_()
        log = log_likelihoods(tuned, tokenizer, Item("q", ("ab", "abcd"), 0))
        head.weight.copy_(kept)
    size = math.log(kept.shape[0])
    lengths = [len(words(tokenizer, f" {choice}")) for choice in ("ab", "abcd")]
    assert log == pytest.approx([-length * size for length in lengths], rel=1e-5)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": ["a", "b"], "answer": 1},
        {"prompt": "q", "options": ["a", "b"], "label": "B"},
        {"question": "q", "choices": ["a", "b"], "gold": "b"},
        {"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
    ],
)
def test_items_are_read_from_their_usual_forms(tmp_path, row):
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps(row))
    assert read_items(file) == [Item("q", ("a", "b"), 1)]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"question": "q", "choices": ["a"], "answer": 0}, "two texts or more"),
        ({"question": "q", "choices": "ab", "answer": 0}, "two texts or more"),
        ({"question": "q", "choices": ["a", ""], "answer": 0}, "two texts or more"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "line 1 .*allowed are 0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "`answer` is True"),
        ({"question": "q", "choices": ["a", "b"], "answer": "e"}, "a letter from A to B"),
        ({"question": "q", "choices": ["a", "b"]}, "a column 'answer' is needed"),
        ({"question": None, "choices": ["a", "b"], "answer": 0}, "a text `question`"),
    ],
)
def test_what_is_no_item_is_refused(tmp_path, row, match):
    file = tmp_path / "items.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(DataError, match=match):
        read_items(file)


def test_files_that_hold_no_items_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_items(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"no \.jsonl or \.parquet"):
        read_items(tmp_path / "items.csv")
    (tmp_path / "broken.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"^answers\.choices: .*line 1 is not JSON"):
        read_items(tmp_path / "broken.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="a column 'question' is needed"):
        read_items(tmp_path / "empty.jsonl")
