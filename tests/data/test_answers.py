"""Which tokens of a conversation are learnt: just those that the model has to produce in use."""

from __future__ import annotations

import pytest
from chat_models import (
    CHATML,
    KINDS,
    LLAMA3,
    MISTRAL,
    THINKING,
    answer,
    chat_tokenizer,
    user,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedpeft.core.errors import DataError
from fedpeft.data.answers import write_conversations
from fedpeft.data.chat_templates import DATE, ChatTemplate, open_template

QWEN, LLAMA = KINDS["qwen2"][1], KINDS["llama"][1]
SENTENCE = ("<s>", "</s>")
MARKED = CHATML.replace(
    "{{ m.content }}<|im_end|>",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}",
)
ENDED = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
"""Like Phi 3: the text as a whole has an end of its own."""
TALK = [
    user("how warm is water?"), answer("it boils at 100 °C"),
    user("and on\n\na mountain?"), answer("user: <|im_end|> less, 😀"),
]  # fmt: skip


def learnt(
    template: ChatTemplate, messages: list[dict[str, object]], learn: str = "answers"
) -> str:
    written = next(write_conversations([messages], template, learn))
    pairs = zip(written.tokens, written.learnt, strict=True)
    return template.tokenizer.decode([token for token, mark in pairs if mark])


def read(text: str | None, special: tuple[str, ...], name: str | None = None) -> ChatTemplate:
    return open_template(chat_tokenizer(text, special), name, "a model")


TEMPLATES = {
    "chatml": (read(CHATML, QWEN), "", "<|im_end|>"),
    "llama3": (read(LLAMA3, LLAMA), "", "<|eot_id|>"),
    "mistral": (read(MISTRAL, SENTENCE), " ", "</s>"),
    "ended": (read(ENDED, QWEN), "", "<|im_end|>"),
    "marked": (read(MARKED, QWEN), "", "<|im_end|>"),
    "none": (read(None, SENTENCE, "none"), "", "</s>"),
    "alpaca": (read(None, SENTENCE, "alpaca"), "", "</s>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_learnt_tokens_are_exactly_the_answers_and_their_ends(name):
    template, before, end = TEMPLATES[name]
    talk = TALK if "<|im_end|>" not in str(template.tokenizer.all_special_tokens) else [
        *TALK[:3], answer("user: less, 😀")
    ]  # fmt: skip
    expected = [f"{before}{each['content']}{end}" for each in talk[1::2]]
    assert learnt(template, talk) == "".join(expected)
    assert learnt(template, talk, "last") == expected[-1]
    whole = learnt(template, talk, "all")
    assert all(each in whole for each in expected) and "mountain?" in whole  # negative control


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_read_before_an_answer_are_the_tokens_of_its_prompt_in_use(name):
    template, *_ = TEMPLATES[name]
    written = next(write_conversations([TALK[:2]], template, "answers"))
    prompt = template.tokenizer(
        template.render(TALK[:1], "row", prompt=True), add_special_tokens=False
    )["input_ids"]
    assert written.tokens[: len(prompt)] == prompt
    assert written.learnt[: len(prompt) + 1] == [False] * len(prompt) + [True]


def test_a_turn_of_the_assistants_that_opens_a_conversation_is_read():
    template, *_ = TEMPLATES["llama3"]
    talk = [answer("hello, how can I help?"), *TALK[:2]]
    assert learnt(template, talk) == "it boils at 100 °C<|eot_id|>"
    written = next(write_conversations([talk[:2]], template, "answers"))
    assert not any(written.learnt)


def test_a_template_that_changes_earlier_answers_is_refused_or_learnt_at_its_last():
    template = read(THINKING, QWEN)
    with pytest.raises(
        DataError, match=r"turn 2 of row 0 in another way once turns follow.*'last'"
    ):
        learnt(template, [*TALK[:2], user("why?"), answer("so")])
    thought = answer("<think>\nhm 100\n</think>\n\n100 °C")
    assert learnt(template, [TALK[0], thought]) == f"{thought['content']}<|im_end|>"
    last = learnt(template, [TALK[0], thought, TALK[2], answer("less")], "last")
    assert last == "<think>\n\n</think>\n\nless<|im_end|>"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            CHATML.replace("add_generation_prompt", "false"),
            r"begins no answer.*'<\|im_start\|>assist",
        ),
        (
            CHATML.replace("{{ m.content }}", "{{ m.content[:4] }}"),
            r"does not write the whole of turn 2",
        ),
        (
            CHATML + "{% if add_generation_prompt %}<think>{% endif %}",
            r"another way than it begins an",
        ),
        (MISTRAL.replace("'user'", "'human'"), r"the template cannot write row 0: no role user"),
        ("{{ messages[9].content }}{% if %}", r"the template cannot write row 0"),
    ],
)
def test_a_template_of_which_the_answer_cannot_be_told_is_refused(template, words):
    with pytest.raises(DataError, match=words):
        learnt(read(template, QWEN), TALK[:2])


def test_answers_are_told_from_thoughts_that_hold_them_and_from_special_tokens():
    template = read(CHATML.replace("<|im_end|>", "<|end|>"), ("<|begin|>", "<|end|>"))
    assert learnt(template, [user("say end"), answer("end")]) == "end<|end|>"
    thoughts = read(
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<|end|>{% else %}"
        "<|begin|>4 may be<|end|><|begin|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|begin|>{% endif %}",
        ("<|begin|>", "<|end|>"),
    )
    assert learnt(thoughts, [user("2 + 2"), answer("4")]) == "4 may be<|end|><|begin|>4<|end|>"


def test_a_call_of_a_tool_is_learnt_to_the_end_of_its_turn():
    text = CHATML.replace(
        "{{ m.content }}", "{{ m.content }}{% if m.calls %}<|im_start|>{{ m.calls }}{% endif %}"
    )
    call = {"role": "assistant", "content": "", "calls": "add"}
    assert learnt(read(text, QWEN), [TALK[0], call]) == "<|im_start|>add<|im_end|>"


def test_a_tokenizer_that_joins_prompt_and_answer_keeps_the_prompt_of_use():
    tokenizer = chat_tokenizer(None, SENTENCE)
    template = ChatTemplate(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}")
    talk = [user("how wa"), answer("rm is water")]
    written = next(write_conversations([talk], template, "answers"))
    prompt = tokenizer("how wa", add_special_tokens=False)["input_ids"]
    joined = tokenizer("how warm is water", add_special_tokens=False)["input_ids"]
    assert joined[: len(prompt)] != prompt  # the case is real
    assert written.tokens[: len(prompt)] == prompt and not any(written.learnt[: len(prompt)])
    assert tokenizer.decode(written.tokens[len(prompt) :]) == "rm is water"


@pytest.mark.parametrize(
    ("prompt", "said", "expected"),
    [
        ("ba", "ab", ["▁", "b", "a", "a", "b"]),
        ("ba", "ca", ["▁", "b", "a", "c", "a"]),  # "ac" is one token of the whole text
    ],
)
def test_a_tokenizer_that_begins_every_text_with_a_blank_does_not_put_one_into_an_answer(
    prompt, said, expected
):
    words = ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "\n", "▁a", "ac", "▁c"]
    merges = [("▁", "a"), ("a", "c"), ("▁", "c")]
    ids = {word: place for place, word in enumerate(words)}
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    made.decoder = decoders.Metaspace()
    made.add_special_tokens([*SENTENCE])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    template = ChatTemplate(tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}")
    talk = [user(prompt), answer(said)]
    written = next(write_conversations([talk], template, "answers"))
    assert [words[token] for token in written.tokens] == expected
    assert written.learnt == [False] * 3 + [True] * 2


def test_the_date_that_a_template_writes_is_always_the_same():
    text = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}"
    )
    template = read(text + "{{ date_string }} {{ strftime_now('%Y') }}" + CHATML, QWEN)
    assert template.render(TALK, "row").startswith(f"{DATE} {DATE}<|im_start|>")


def test_a_tokenizer_without_a_template_says_how_to_give_one():
    with pytest.raises(DataError) as caught:
        open_template(chat_tokenizer(None), None, "models/base")
    said = str(caught.value)
    assert "models/base has no chat template" in said and "'alpaca'" in said and "'none'" in said
    example = said.splitlines()[1]  # the advice works as it stands
    assert learnt(read(example.replace("\\n", "\n"), QWEN), TALK[:2]).endswith("100 °C<|im_end|>")


def test_built_in_templates_begin_a_text_as_the_tokenizer_does():
    plain, begun = (
        open_template(chat_tokenizer(None, SENTENCE, begins=begins), "none", "a model")
        for begins in (False, True)
    )
    texts = [each.render(TALK[:2], "row") for each in (plain, begun)]
    assert texts[1] == "<s>" + texts[0]
