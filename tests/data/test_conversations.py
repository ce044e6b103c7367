"""Which columns hold conversations, and what messages a row gives."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fedpeft.core.errors import DataError
from fedpeft.data.conversations import conversation_columns, conversations_of
from fedpeft.data.request import Columns, DataRequest
from fedpeft.data.tables import Table

REQUEST = DataRequest(task="causal-lm")
ASKED = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]


def read(columns: dict[str, list[object]], request: DataRequest = REQUEST) -> list[object]:
    table = Table(columns)
    found = conversation_columns((table, table), request)
    return [] if found is None else conversations_of(table, found)


@pytest.mark.parametrize(
    "columns",
    [
        {"messages": [ASKED]},
        {"messages": [json.dumps(ASKED)]},
        {"conversations": [[{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]]},
        {"messages": [{"role": ["user", "assistant"], "content": ["2 + 2?", "4"]}]},
        {
            "messages": [
                [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}, ASKED[1]]
            ]
        },
        {"prompt": ["2 + 2?"], "completion": ["4"]},
        {"instruction": ["2 + 2?"], "input": [""], "output": ["4"], "text": ["### 2 + 2? 4"]},
        {"Question": ["2 + 2?"], "Answer": ["4"]},
        {"prompt": [ASKED[:1]], "completion": [ASKED[1:]]},
    ],
)
def test_columns_of_all_forms_are_found_by_their_names(columns):
    assert read(columns) == [ASKED]


def test_an_input_stands_below_its_instruction():
    found = read({"instruction": ["Add."], "input": ["2, 2"], "output": ["4"]})
    assert found[0][0] == {"role": "user", "content": "Add.\n\n2, 2"}


def test_named_columns_go_before_found_ones():
    columns = {"messages": [ASKED], "q": ["hello?"], "a": ["hello"], "text": ["a document"]}
    named = replace(REQUEST, columns=Columns(prompt="q", completion="a"))
    assert [m["content"] for m in read(columns, named)[0]] == ["hello?", "hello"]
    assert read(columns, replace(REQUEST, columns=Columns(text="text"))) == []
    assert read(columns) == [ASKED]


@pytest.mark.parametrize("columns", [{"text": ["a"]}, {"question": ["a"]}, {"query": ["a"]}])
def test_a_text_alone_is_a_document(columns):
    assert read(columns) == []


def test_other_keys_of_a_message_stay_for_the_template():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    found = read({"messages": [[ASKED[0], call]]})
    assert found[0][1] == {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}


@pytest.mark.parametrize(
    ("columns", "named", "words"),
    [
        ({"messages": ["hello"]}, {}, r"data.messages: row 0 is str; allowed is a list such as"),
        ({"messages": [[]]}, {}, r"row 0 is empty"),
        ({"messages": ["[1, "]}, {}, r"row 0 is not JSON"),
        (
            {"messages": [[{"text": "a"}]]},
            {},
            r"turn 1 of row 0 has the keys text; needed are a role",
        ),
        (
            {"messages": [[ASKED[0], {"role": "assistant", "content": " "}]]},
            {},
            r"turn 2 of row 0 is empty",
        ),
        (
            {"messages": [[{"role": "user", "content": 3}]]},
            {},
            r"turn 1 of row 0 is int, not a text",
        ),
        ({"prompt": ["a"], "completion": [""]}, {}, r"data.completion: row 0 is empty"),
        ({"prompt": [None], "completion": ["b"]}, {}, r"data.prompt: row 0 is empty"),
        ({"prompt": ["a"], "input": [3], "completion": ["b"]}, {}, r"data.input: row 0 is int"),
        ({"a": ["b"]}, {"prompt": "a"}, r"data.completion: none of the columns a has a usual name"),
        ({"a": ["b"]}, {"messages": "c"}, r"data.messages: there is no column 'c'"),
        ({"a": ["b"]}, {"messages": "a", "text": "a"}, r"data.messages: found beside data.text"),
        (
            {"a": ["b"]},
            {"messages": "a", "prompt": "a"},
            r"data.prompt: found beside data.messages",
        ),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_place(columns, named, words):
    with pytest.raises(DataError, match=words):
        read(columns, replace(REQUEST, columns=Columns(**named)))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("learn", "answers", "data.learn: found, but the examples are documents"),
        ("truncation", "left", "data.truncation: found, but the examples are documents"),
        ("chat_template", "none", "data.chat_template: found, but the examples are documents"),
        ("learn", "some", "data.learn: found 'some'; allowed are answers, last, all"),
    ],
)
def test_keys_of_conversations_say_nothing_about_documents(key, value, words):
    with pytest.raises(DataError, match=words):
        read({"text": ["a"]}, replace(REQUEST, **{key: value}))
