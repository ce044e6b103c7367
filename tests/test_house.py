"""Rooms: imports point left, no file imports itself through others, no string names a module."""

from __future__ import annotations

import pytest

import house

HOUSE = house.read_house()
WHERE = {module: str(file.relative_to(house.PACKAGE)) for module, file in HOUSE.files.items()}


def test_imports_point_left():
    assert house.arrows_up(HOUSE) == []


def test_no_file_imports_itself_through_others():
    assert house.circles(HOUSE) == []


def test_no_module_is_named_in_a_string():
    hidden = {
        module: house.hidden_imports(file.read_text("utf-8"))
        for module, file in HOUSE.files.items()
    }
    assert {module: found for module, found in hidden.items() if found} == {}


@pytest.mark.parametrize("library", house.CONFINED)
def test_a_library_stays_in_its_rooms(library):
    wrong = [
        WHERE[module]
        for module, file in HOUSE.files.items()
        if library in house.unconfined(WHERE[module], file.read_text("utf-8"))
    ]
    assert wrong == []


def test_every_file_lies_in_a_room_that_is_not_too_big():
    lines = house.count_lines()
    rooms = {where.split("/")[0] for where in lines if "/" in where}
    assert rooms == set(house.ROOMS)
    total = sum(lines.values())
    for room in rooms:
        assert sum(n for where, n in lines.items() if where.startswith(room + "/")) < 0.15 * total


def test_wrong_imports_are_seen(tmp_path):
    root = tmp_path / "fedpeft"
    for where, text in {
        "__init__.py": "",
        "core/a.py": "from fedpeft.models import b",
        "models/b.py": "def late():\n    from fedpeft.core.a import x",
    }.items():
        (root / where).parent.mkdir(parents=True, exist_ok=True)
        (root / where).write_text(text)
    found = house.read_house(root)
    assert house.arrows_up(found) == ["fedpeft.core.a -> fedpeft.models.b"]
    assert house.circles(found) == ["fedpeft.core.a", "fedpeft.models.b"]


@pytest.mark.parametrize(
    "text",
    ["x = 'fedpeft.core.errors'", "X = '''\nfrom fedpeft.runs import loop\n'''"],
)
def test_a_module_in_a_string_is_seen(text):
    assert house.hidden_imports(text)
    assert not house.hidden_imports(f'"""{text}"""')  # prose names what it likes


def test_an_unconfined_library_is_seen():
    assert house.unconfined("models/x.py", "import peft.tuners") == ["peft"]
    assert house.unconfined("tuning/x.py", "import peft") == []


def test_lines_of_code_leave_prose_out():
    assert house.lines_of('"""A.\n\nB.\n"""\n\n# c\nx = (\n    1,\n)  # d\n"""What x is."""\n') == 3
