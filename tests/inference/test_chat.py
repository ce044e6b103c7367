from pathlib import Path

import pytest

from fedpeft.answers.generate import Decoding
from fedpeft.core.errors import DataError, ModelError
from fedpeft.data.chat_templates import ChatTemplate
from fedpeft.inference.chat import AFTER, BEFORE, start_chat
from fedpeft.inference.inputs import Input
from fedpeft.inference.predict import predict
from fedpeft.inference.prompts import Prompts
from fedpeft.runs.load import load_before_and_after


@pytest.fixture
def model(language_run):
    return load_before_and_after(Path(language_run))


def test_pieces_join_to_the_answer_that_is_predicted(model):
    chat = start_chat(model, Decoding(12), both=True)
    [predicted] = predict(model, [Input("", "the number")], Decoding(12), both=True)
    assert "".join(chat.say(AFTER, [], "the number")) == predicted.after
    assert "".join(chat.say(BEFORE, [], "the number")) == predicted.before


def test_earlier_turns_are_read(model):
    chat, messages = start_chat(model, Decoding(12), both=True), []
    first = "".join(chat.say(AFTER, messages, "one"))
    second = "".join(chat.say(AFTER, messages, "two"))
    assert [each["content"] for each in messages] == ["one", first, "two", second]
    assert second != "".join(chat.say(AFTER, [], "two"))
    [whole] = predict(model, [Input("", messages[:3])], Decoding(12), both=False)
    assert whole.after == second


def test_without_a_template_each_text_is_continued(model):
    from dataclasses import replace

    chat = start_chat(model, Decoding(6), both=False)
    plain = replace(chat, prompts=Prompts(chat.prompts.tokenizer, None))
    messages = []
    assert "".join(plain.say(AFTER, messages, "one")) != "".join(chat.say(AFTER, [], "one"))
    assert messages == []
    with pytest.raises(DataError, match="neither the run nor the model's tokenizer"):
        plain.prompts.tokens([{"role": "user", "content": "one"}])


def test_a_template_that_refuses_is_named(model):
    tokenizer = start_chat(model, Decoding(), both=True).prompts.tokenizer
    refusing = Prompts(tokenizer, ChatTemplate(tokenizer, "{{ 1 / 0 }}"))
    with pytest.raises(DataError, match="the template cannot write the conversation: division"):
        refusing.tokens("one")


def test_a_conversation_that_is_too_long_is_refused(model):
    chat = start_chat(model, Decoding(6), both=True)
    with pytest.raises(ModelError, match="reads 512, the answer included"):
        list(chat.say(AFTER, [], "long " * 120))


def test_only_language_models_chat(pictures_run):
    with pytest.raises(ModelError, match="only language models answer"):
        start_chat(load_before_and_after(Path(pictures_run)), Decoding(), both=True)
