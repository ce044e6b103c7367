"""Question types from three places: one spelling, one file."""

from __future__ import annotations

import json

import pytest

from trec import clean, read_jsonl, read_label_file, write_split

LABELS = "LOC:city Which sister\u00f0city has Rome ?\nNUM:date When did it begin ? \n"
HUB = [("LOC", "Which sister city has Rome ?"), ("NUM", "When did it begin ?")]


@pytest.fixture
def label_file(tmp_path):
    file = tmp_path / "train_5500.label"
    file.write_bytes(LABELS.encode("latin-1"))
    return file


@pytest.fixture
def jsonl_file(tmp_path):
    rows = [
        {"split": "train", "label": "LOC", "text": "Which sister\u00f0city has Rome ?"},
        {"split": "test", "label": "HUM", "text": "Who ?"},
        {"split": "train", "label": "NUM", "text": " When did it begin ?"},
    ]
    file = tmp_path / "trec.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return file


def test_every_source_gives_the_same_bytes(label_file, jsonl_file, tmp_path):
    sources = (read_label_file(label_file), read_jsonl(jsonl_file, "train"), HUB)
    digests = {write_split(tmp_path / "train.jsonl", questions) for questions in sources}
    assert len(digests) == 1
    assert write_split(tmp_path / "other.jsonl", HUB[::-1]) not in digests


def test_a_written_file_is_read_back(tmp_path):
    write_split(tmp_path / "new" / "train.jsonl", HUB)
    lines = (tmp_path / "new" / "train.jsonl").read_text("utf-8").splitlines()
    assert [(row["label"], row["text"]) for row in map(json.loads, lines)] == HUB


def test_other_letters_stay():
    assert clean("ENTY", "What is a caf\u00e9 ?") == ("ENTY", "What is a caf\u00e9 ?")
