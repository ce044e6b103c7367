"""The pages of docs/reference/ that are made from the code are those of today's code."""

from __future__ import annotations

import pytest

import fedpeft
import write_reference as made

PAGES = {
    made.PAGE: made.reference,
    made.SITE_PAGE: made.site_reference,
    made.COMMANDS_PAGE: made.commands_reference,
    made.PYTHON_PAGE: made.python_reference,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_made_from_the_code_is_current(page):
    assert page.read_text("utf-8") == PAGES[page](), "run `make docs`"


def test_every_public_name_stands_on_the_python_page_once():
    words = made.python_reference().split()
    assert all(words.count(f"fedpeft.{name}") == 1 for name in fedpeft.__all__)


def test_an_unknown_room_is_listed_as_an_extension():
    assert made._group(fedpeft.run) == "Run experiments"
    assert made._group(len) == made.EXTENSIONS
