import chat_models
import pytest
import torch
from transformers import AutoModelForCausalLM

import fedpeft
from fedpeft.answers.generate import Decoding, generate, stop_tokens
from fedpeft.core.errors import ConfigError, ModelError
from fedpeft.data.chat_templates import ChatTemplate
from fedpeft.models.padding import open_tokenizer
from fedpeft.tuning.tuned import read_delta, write_delta

PROMPT = list(b"what is this?")
NONE: frozenset[int] = frozenset()


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folder(request, tmp_path_factory):
    return chat_models.chat_folder(tmp_path_factory.mktemp(request.param), request.param)


def tuned(folder, method="lora", **options):
    loaded = fedpeft.load_model(fedpeft.ModelRequest(str(folder), task="causal-lm"))
    found = fedpeft.tune(loaded, fedpeft.TuningRequest(method, options))
    start = read_delta(found)
    noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(1))
    write_delta(found, start + 0.1 * noise)
    return found


def slow_answer(model, prompt, count):
    """Take the most probable token of a whole forward pass, again and again."""
    tokens = list(prompt)
    for _ in range(count):
        ids = torch.tensor([tokens])
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        tokens.append(int(found.logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(
    "method", ["full", "lora", "ia3", "adapter", "prefix_tuning", "prompt_tuning"]
)
def test_an_answer_is_what_whole_passes_give(folder, method):
    options = {"num_virtual_tokens": 3} if "tuning" in method else {}
    model = tuned(folder, method, **options)
    found = list(generate(model, PROMPT, NONE, Decoding(12)))
    assert found == slow_answer(model.model, PROMPT, 12)
    assert len({*found}) > 2, "an answer of one token alone would hide a cache that goes wrong"


def test_the_library_generates_the_same(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([PROMPT])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    untouched = fedpeft.load_model(fedpeft.ModelRequest(str(folder), task="causal-lm"))
    start = fedpeft.tune(untouched, fedpeft.TuningRequest("lora", {}))
    assert list(generate(start, PROMPT, NONE, Decoding(12))) == made[0, len(PROMPT) :].tolist()


def test_a_stop_token_ends_an_answer_and_is_not_part_of_it(folder):
    model = tuned(folder)
    whole = list(generate(model, PROMPT, NONE, Decoding(12)))
    stop = whole[5]
    first = whole.index(stop)
    assert list(generate(model, PROMPT, frozenset([stop]), Decoding(12))) == whole[:first]


def test_equal_seeds_draw_equal_answers(folder):
    model = tuned(folder)

    def drawn(seed):
        return list(generate(model, PROMPT, NONE, Decoding(12, temperature=2.0, seed=seed)))

    before = torch.random.get_rng_state()
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_longest_text_of_the_model_ends_an_answer(tmp_path):
    short = tuned(chat_models.chat_folder(tmp_path, "llama", max_position_embeddings=16))
    assert len(list(generate(short, PROMPT, NONE, Decoding(12)))) == 16 - len(PROMPT)
    with pytest.raises(ModelError, match=r"has 16 tokens; .* reads 16, the answer included"):
        next(generate(short, [*PROMPT, 1, 2, 3], NONE, Decoding()))


def test_the_tokens_that_end_an_answer(folder):
    model, tokenizer = tuned(folder), open_tokenizer(str(folder))
    assert stop_tokens(model.loaded, tokenizer) == {tokenizer.eos_token_id}


def test_a_template_may_end_an_answer_with_a_token_of_its_own(folder):
    model, tokenizer = tuned(folder), open_tokenizer(str(folder))
    own = tokenizer.convert_tokens_to_ids(chat_models.KINDS[folder_kind(folder)][1][1])
    assert own != tokenizer.eos_token_id
    text = "{% for m in messages %}{{ m.content }}" + tokenizer.decode([own]) + "{% endfor %}"
    ends = stop_tokens(model.loaded, tokenizer, ChatTemplate(tokenizer, text))
    assert ends == {tokenizer.eos_token_id, own}
    for silent in ("{% for m in messages %}{{ m.content }}{% endfor %}", "{{ 1 / 0 }}"):
        ends = stop_tokens(model.loaded, tokenizer, ChatTemplate(tokenizer, silent))
        assert ends == {tokenizer.eos_token_id}


def folder_kind(folder):
    return AutoModelForCausalLM.from_pretrained(folder).config.model_type


def test_a_classifier_generates_nothing():
    loaded = fedpeft.load_model(fedpeft.ModelRequest("preset:tiny-vit"))
    with pytest.raises(ModelError, match="task is image-classification"):
        next(generate(fedpeft.tune(loaded, fedpeft.TuningRequest("head")), [1], NONE, Decoding()))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: found 0"),
        ({"temperature": -1.0}, "temperature: found -1.0"),
        ({"temperature": float("nan")}, "temperature: found nan"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, match):
    with pytest.raises(ConfigError, match=match):
        Decoding(**wrong)
