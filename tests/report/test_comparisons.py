"""The picture of comparisons: every line with its verdict, one seed and item intervals included."""

from __future__ import annotations

import pytest

from fedpeft.report.comparisons import draw_comparisons
from fedpeft.results.paired import Comparison

GOOD = Comparison("", (0.10, 0.11, 0.12), item_interval=(0.05, 0.2))
BAD = Comparison("", (-0.10, -0.11, -0.12), tolerance=0.02)
ONE = Comparison("", (0.01,))


def test_a_picture_tells_what_its_lines_are() -> None:
    lines = [("bias against full", GOOD), ("prompt against head", BAD), ("one seed", ONE)]
    picture = draw_comparisons("Claim 1", lines, "accuracy")
    for label, found in lines:
        assert label in picture.svg and f"{found.margin:+.3f} {found.verdict}" in picture.svg
    assert picture.title == "Claim 1"
    assert "bias against full: +0.110, +0.093 to +0.127, 3 seeds, pass" in picture.text
    assert "one seed: +0.010, 1 seeds, undecided" in picture.text


def test_equal_content_is_an_equal_file() -> None:
    first, again, other = (
        draw_comparisons("t", [("a", found)], "accuracy").svg for found in (GOOD, GOOD, BAD)
    )
    assert first == again != other


@pytest.mark.parametrize("found", [ONE, Comparison("", (0.0, 0.0))])
def test_what_has_no_width_is_drawn(found: Comparison) -> None:
    assert "undecided" in draw_comparisons("t", [("a", found)], "accuracy").svg
