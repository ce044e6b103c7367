"""How a result looks in a notebook and on a line."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from fedpeft.core.metrics import ACCURACY, METRICS
from fedpeft.launch.notebook import as_html, as_text
from fedpeft.runs.records import totals


def records_of(*values, metric="accuracy", **more):
    return [
        {
            "round": number,
            "metrics": {} if value is None else {"loss": 1.0, metric: value},
            "bytes_up": 1500,
            "bytes_down": 2_000_000,
            "seconds": 2.0,
            **more,
        }
        for number, value in enumerate(values, 1)
    ]


def totals_of(records):
    names = {name for record in records for name in record["metrics"]} - {"loss"}
    return totals(records, METRICS[names.pop()] if names else ACCURACY)


def html_of(*values, **more):
    records = records_of(*values, **more)
    return as_html(records, totals_of(records))


def points_of(html):
    tree = ET.fromstring(html)
    points = tree.find(".//polyline").get("points").split()
    return [tuple(map(float, point.split(","))) for point in points]


def test_one_line_says_the_headline_figures():
    records = records_of(0.2, 0.75, 0.5)
    line = (
        "Result(rounds=3, accuracy=50.0 %, best_accuracy=75.0 %, bytes_up=4.5 kB, bytes_down=6 MB, "
    )
    assert as_text(records, totals_of(records)) == line + "time=6.0 s)"
    private = records_of(0.2, privacy="simulation: not private")
    assert "privacy=simulation: not private)" in as_text(private, totals(private))


def test_the_curve_goes_through_the_evaluated_rounds():
    points = points_of(html_of(0.2, None, 0.6, 0.4))
    assert len(points) == 3
    (x1, y1), (x3, y3), (x4, y4) = points
    assert x3 - x1 == pytest.approx(2 * (x4 - x3), abs=0.2) and y3 < y4 < y1
    assert y1 - y4 == pytest.approx(y4 - y3, abs=0.2)


def test_the_picture_has_a_text_and_no_script():
    html = html_of(0.2, 0.6)
    svg = ET.fromstring(html).find(".//svg")
    said = "accuracy over rounds: 20.0 % after round 1, 60.0 % after round 2"
    assert svg.get("role") == "img" and svg.get("aria-label").startswith(said)
    assert svg.find("title").text == svg.get("aria-label") and "<script" not in html


def test_a_perplexity_is_no_percentage():
    assert "best perplexity</th>" in html_of(9.5, 12.25, metric="perplexity")
    assert "12.25" in html_of(9.5, 12.25, metric="perplexity")


def test_without_a_finite_value_there_is_no_curve():
    assert "<svg" not in html_of() and "<svg" not in html_of(None)
    assert "<svg" not in html_of(float("nan")) and "<svg" in html_of(0.5)
    assert len(points_of(html_of(0.5, 0.5))) == 2


def test_text_is_escaped():
    assert "<b>" not in html_of(0.5, privacy="<b>")
