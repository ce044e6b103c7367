"""Files with thousands of keys or rows: the work is counted, so that no clock decides."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.core.text import MOST_LISTED, hints
from fedpeft.experiment import read, sweep_rows
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.experiment.sweep_rows import MOST_ROWS, read_rows

MANY = 3_000
SLACK = 20  # searches for the names of other things


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The words for which a near one was looked for."""
    found: list[str] = []
    search = difflib.get_close_matches

    def counted(word: str, *args: object, **options: object) -> list[str]:
        found.append(word)
        return search(word, *args, **options)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(difflib, "get_close_matches", counted)
    return found


@pytest.mark.parametrize(
    "table",
    [
        "",
        "[client]",
        "[client.lr]",
        '[tuning]\nmethod = "adapter"\n[tuning.options]',
        '[tuning]\nmethod = "lora"\n[tuning.options]',
    ],
)
def test_the_first_of_many_unknown_keys_are_listed_and_the_others_counted(
    tmp_path, searches, table
):
    file = tmp_path / "e.toml"
    file.write_text("\n".join([table, *(f"unknown{i} = 1" for i in range(MANY))]))
    with pytest.raises(ConfigError) as error:
        read_experiment(file)
    first, *lines = str(error.value).splitlines()
    assert first.endswith(f": {MANY:,} problems")
    assert len(lines) == MOST_LISTED + 1
    assert lines[-1].strip() == f"... and {MANY - MOST_LISTED:,} more"
    assert "unknown0" in lines[0] and ("allowed are" in lines[0] or "did you mean" in lines[0])
    assert len(searches) <= MOST_LISTED + SLACK


def test_each_of_few_words_is_looked_for(searches):
    """The negative control."""
    words = [f"word{i}" for i in range(MOST_LISTED)]
    assert all(hints(words, ["words"])) and len(searches) == MOST_LISTED
    assert list(hints([*words, "more"], ["words"]))[-1] == ""


def sweep_of(count: int, line: str = "seed = {}") -> str:
    return "".join(f"[[sweep]]\n{line.format(i)}\n" for i in range(count))


def test_more_rows_than_anybody_runs_are_refused_before_any_is_checked(tmp_path, monkeypatch):
    file = tmp_path / "e.toml"
    file.write_text(sweep_of(MOST_ROWS + 1))
    monkeypatch.delattr(sweep_rows, "validate")
    with pytest.raises(ConfigError, match="found 5,001 sweep rows; allowed are at most 5,000"):
        read_rows(file)
    with pytest.raises(ConfigError, match=r"found [0-9,]*,000,000,000,000 sweep rows; allowed are"):
        wide = ",".join(map(str, range(10**4)))
        read_rows(DIGITS, overs=[f"{key}={wide}" for key in ("seed", "client.epochs", "name")])


@pytest.mark.parametrize("count", [7, 150])
def test_after_many_rows_with_problems_no_further_row_is_checked(tmp_path, monkeypatch, count):
    checked = []
    monkeypatch.setattr(
        sweep_rows, "validate", lambda *args: checked.append(args) or read.validate(*args)
    )
    file = tmp_path / "e.toml"
    file.write_text(sweep_of(count, "client.epochs = -{}"))
    with pytest.raises(ConfigError) as error:
        read_rows(file)
    assert len(checked) == min(count, MOST_LISTED)
    left = f"... and {count - MOST_LISTED} rows that were not checked"
    assert str(error.value).endswith(left) == (count > MOST_LISTED)


def test_a_name_of_a_row_is_compared_with_no_other(tmp_path, monkeypatch):
    """Equal names get digests, found by counting them once."""
    file = tmp_path / "e.toml"
    file.write_text('[[sweep]]\nname = "a b"\n[[sweep]]\nname = "a-b"\n[[sweep]]\nname = "c"\n')
    monkeypatch.setattr(sweep_rows, "validate", lambda *args: None)
    names = [row.name for row in read_rows(file)]
    assert names[2] == "name=c" and len(set(names)) == 3
    assert all(name.startswith("name=a-b-") for name in names[:2])


def test_a_long_path_is_refused_as_it_was_written(tmp_path):
    file = tmp_path / "e.toml"
    file.write_text(f"[data]\nsource = '{'b/' * 4000}'")
    with pytest.raises(ConfigError, match="found a text of 8000 characters"):
        read_rows(file)


@pytest.mark.parametrize("place", ["[data]\nsource", "[engine]\nsignatures", "[wire]\nup"])
def test_a_list_longer_than_any_needs_to_be_is_refused_unread(tmp_path, monkeypatch, place):
    file = tmp_path / "e.toml"
    file.write_text(f"{place} = {['a'] * 20_001}")
    monkeypatch.setattr(read, "read_from", lambda *args: pytest.fail("it was read"))
    with pytest.raises(ConfigError, match="found a list of 20,001 entries; allowed are 20,000"):
        read_experiment(file)
