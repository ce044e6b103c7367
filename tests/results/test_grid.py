import html
import json
import re
import shlex
import statistics

import markupsafe
import pytest
import tomli_w

from fedpeft.cli import main
from fedpeft.core.errors import RunFolderError
from fedpeft.core.metrics import ACCURACY
from fedpeft.report.draw import budgets, curve_parts, forests, parts, varied
from fedpeft.report.sentences import claims_words
from fedpeft.report.write import ReportOptions, write_report
from fedpeft.results.claims import ABSENT, absent_words, check_claims
from fedpeft.results.grid import read_grids
from fedpeft.results.names import describe, distinguishing
from fedpeft.results.runs import find_runs, read_run
from fedpeft.results.table import Spread

TINY = """
seed = 1
[model]
name = "preset:tiny-vit"
[client]
lr = 0.05
epochs = 1
[data.partition]
clients = 8
[federation]
rounds = 1
clients_per_round = 2
[engine]
workers = 1
"""
EVIL = '<b>"&amp;'


def fake(root, method, seed, score, *, done=True, note=None, **settings):
    """Write a run of a sweep; `settings` are dotted keys with `__` for a dot."""
    told = {key.replace("__", "."): value for key, value in settings.items()}
    name = ",".join(f"{k.rpartition('.')[2]}={v}" for k, v in {"m": method, **told}.items())
    folder = root / f"{name},seed={seed}".replace("/", "-")
    folder.mkdir(parents=True)
    table = {"name": EVIL, "seed": seed, "federation": {"rounds": 2}, "data": {"source": "digits"}}
    for key, value in {"tuning.method": method, **told}.items():
        *path, last = key.split(".")
        inner = table
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    (folder / "experiment.toml").write_text(tomli_w.dumps(table))
    lines = [
        {
            "round": n,
            "cohort": ["a"],
            "failures": {},
            "bytes_up": 100 + seed,
            "bytes_down": 200,
            "seconds": 1.0,
            "metrics": {"accuracy": score * n / 2},
        }
        for n in (1, 2)
    ]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        summary = {"accuracy": score, "stopped": "rounds", "delta_digest": f"{seed}abc"}
        if note:
            summary |= {"epsilon": 4.0, "privacy": {"note": note}}
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def row_json(folder, **more):
    told = read_run(folder).settings
    overrides = {"tuning.method": told["tuning.method"], "seed": told["seed"]}
    start = {"row": folder.name, "overrides": overrides, "method": told["tuning.method"]}
    return {**start, "seed": told["seed"], "status": "finished", **more}


def text_of(folders, out, **options):
    return write_report(folders, out / "p.html", ReportOptions(**options)).read_text("utf-8")


def cells(text):
    return re.findall(r'<td data-value="([^"]*)">(.*?)</td>', text)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    root = tmp_path_factory.mktemp("grid")
    for method, scores in {"bias": (0.8, 0.9, 0.85), "full": (0.7, 0.75, 0.5)}.items():
        for seed, score in enumerate(scores, start=1):
            fake(root, method, seed, score)
    return root


@pytest.fixture(scope="module")
def page(grid, tmp_path_factory):
    return text_of([grid], tmp_path_factory.mktemp("page"))


def test_numbers_of_the_page_are_those_of_the_records(page, grid):
    scores = [read_run(f).summary["accuracy"] for f in find_runs([grid]) if "m=bias" in f.name]
    mean, std = 100 * statistics.fmean(scores), 100 * statistics.stdev(scores)
    assert f"<b>{mean:.1f} ± {std:.1f} %</b>" in page
    half = 4.302653 * std / 3**0.5
    assert f"{mean - half:.1f} to {min(100, mean + half):.1f} %" in page
    assert "80.0 to 90.0 %" in page
    for seed in (1, 2, 3):
        assert f"<td>{2 * (100 + seed)} B</td><td>400 B</td>" in page


def test_a_cell_sorts_by_the_figure_that_it_shows(page):
    shown = [(v, text) for v, text in cells(page) if text.removeprefix("<b>")[:1].isdigit()]
    assert len(shown) > 12
    for value, text in shown:
        first = float(re.match(r"(?:<b>)?([\d.,]+)", text)[1].replace(",", ""))
        factor = 100 if "%" in text.split("<")[0] + text.split("<b>")[-1].split("<")[0] else 1
        assert factor * float(value) == pytest.approx(first, abs=0.06), text


def test_sorting_goes_by_columns_that_are_there(page):
    head, body = re.search(
        r'<table class="compare sorts">.*?<tr>(.*?)</tr>.*?<tr>(.*?)</tr>', page, re.DOTALL
    ).groups()
    assert head.count("<th") == len(re.findall(r"<t[hd][ >]", body))
    assert head.count("data-first=") == head.count("<th")
    assert "aria-sort" not in head  # the script says so once it can sort
    assert 'setAttribute("aria-sort"' in page


def test_every_figure_has_a_title_and_a_description(page):
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) >= 6
    for picture in pictures:
        title, text = re.search(
            r"<title[^>]*>(.+?)</title><desc[^>]*>(.+?)</desc>", picture
        ).groups()
        assert title and text != title
        assert re.search(
            r'role="img" aria-labelledby="\S+-title" aria-describedby="\S+-desc"', picture
        )


def test_names_are_text_and_not_markup(page):
    assert str(markupsafe.escape(EVIL)) in page
    assert EVIL not in page


def test_links_inside_the_page_lead_somewhere(page):
    links = set(re.findall(r'<a href="#([^"]+)"', page))
    assert links and links <= set(re.findall(r' id="([^"]+)"', page))


def test_failed_and_missing_seeds_are_named_and_count_in_no_mean(tmp_path):
    good = [fake(tmp_path, "bias", seed, 0.5) for seed in (1, 2)]
    broken = fake(tmp_path, "bias", 3, 0.1, done=False)
    fake(tmp_path, "full", 1, 0.4)
    rows = [*map(row_json, good), row_json(broken, status="failed", error="too few <replies>\nx")]
    (tmp_path / "sweep.json").write_text(json.dumps(rows))
    page = text_of([tmp_path], tmp_path / "out")
    assert "seed 3: failed after 2 of 2 rounds: too few &lt;replies&gt;" in page
    assert "seed 2: no run" in page
    assert "50.0 ± 0.0 %" in page and "2 of 3" in page


def test_rows_that_never_began_are_listed(tmp_path):
    row = {
        "row": "a",
        "overrides": {"tuning.method": "lora", "seed": 7},
        "method": "lora",
        "seed": 7,
    }
    (tmp_path / "sweep.json").write_text(json.dumps([{**row, "error": "no such model"}]))
    (grid,) = read_grids([tmp_path])
    assert [(row.label, row.absent) for row in grid.missing] == [
        ("method lora", {7: "failed: no such model"})
    ]
    assert "Rows without any run" in text_of([tmp_path], tmp_path / "out")


def test_a_broken_list_of_rows_is_an_error(tmp_path):
    fake(tmp_path, "bias", 1, 0.5)
    (tmp_path / "sweep.json").write_text("[1]")
    with pytest.raises(RunFolderError, match="found no list of a sweep's rows"):
        read_grids([tmp_path])


def test_each_sweep_is_a_grid_and_single_runs_are_one(tmp_path):
    for table in ("one", "two"):
        fake(tmp_path / "all" / table, "bias", 1, 0.5)
    lone = [fake(tmp_path, "bias", 1, 0.5), fake(tmp_path, "full", 1, 0.5)]
    assert [grid.name for grid in read_grids([tmp_path / "all"])] == ["one", "two"]
    assert len(read_grids(lone)) == 1


def test_claims_of_the_page_are_those_of_the_command(page, grid):
    verdicts = check_claims(map(read_run, find_runs([grid])))
    section = page[page.index('<section id="claims">') : page.index('<section id="grid-0">')]
    shown = re.findall(r'<td class="verdict [^>]*><span[^>]*>.</span> ([^<]+)</td>', section)
    checked = [verdict for verdict in verdicts if verdict.verdict != ABSENT]
    assert shown == [verdict.verdict for verdict in checked] and len(verdicts) == 8
    assert all(
        (html.escape(verdict.claim) in section) == (verdict in checked) for verdict in verdicts
    )
    assert absent_words(verdicts) in section
    assert "8 claims" in claims_words(verdicts) or not claims_words(verdicts)


@pytest.fixture(scope="module")
def factors(tmp_path_factory):
    root = tmp_path_factory.mktemp("factors")
    for method in ("bias", "full"):
        for clients in (16, 64):
            for scheme in ("iid", "dirichlet"):
                kind = {"data__partition__clients": clients, "data__partition__scheme": scheme}
                fake(root / "table2", method, 1, 0.5, client__lr=len(method), **kind)
        for budget in (400, 800):
            fake(root / "table4", method, 1, 0.5, data__budget=budget)
        for mode, note in (("none", None), ("central", "simulation: not private"), ("paper", "x")):
            fake(root / "table3", method, 1, 0.5, note=note, privacy__mode=mode)
    for cohort, method in ((8, "bias"), (8, "full"), (4, "full"), (2, "full"), (1, "full")):
        fake(root / "table1", method, 1, 0.5, federation__clients_per_round=cohort)
    return root


def panel_of(root, table):
    (grid,) = read_grids([root / table])
    return grid.panels[0]


def test_what_varies_chooses_the_figures(factors):
    two = panel_of(factors, "table2")
    assert varied(two) == ["data.partition.scheme", "data.partition.clients"]
    assert [next(iter(f.sections)) for f in forests(two)] == ["16 clients", "16 clients"]
    assert len(parts(two)) == 4
    assert budgets(panel_of(factors, "table4")) and not budgets(two)
    assert varied(panel_of(factors, "table1")) == []


def test_synchronous_and_buffered_curves_share_a_picture(tmp_path):
    for method in ("bias", "full"):
        for mode in ("synchronous", "buffered"):
            fake(tmp_path / "g", method, 1, 0.5, federation__mode=mode)
    split = curve_parts(panel_of(tmp_path, "g"))
    assert [(name, len(part.groups)) for name, part in split] == [("bias", 2), ("full", 2)]


def test_epsilon_never_stands_alone(factors, tmp_path):
    page = text_of([factors / "table3"], tmp_path)
    for shown in re.findall(r'<td data-value="4">4(.*?)</td>', page):
        assert "simulation: not private" in shown or "guarantees nothing" in shown
    assert "privacy central (simulation: not private)" in page
    assert "privacy paper (x; guarantees nothing)" in page


def test_diagnostics_are_shown_on_request_alone(tmp_path):
    run = fake(tmp_path, "bias", 1, 0.5, note="central, client level")
    lines = [{"note": "not private: true figures"}, {"round": 1, "clip_fraction": 0.25}]
    file = run / "diagnostics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "clip fraction" not in text_of([run], tmp_path / "out")
    page = text_of([run], tmp_path / "out", diagnostics=True)
    assert "clip fraction 0.25" in page and "not private: true figures" in page
    file.write_text('{"note": "figures"}\n')
    with pytest.raises(RunFolderError, match="does not say that it is not private"):
        text_of([run], tmp_path / "out", diagnostics=True)


def test_the_interval_is_that_of_students_t():
    low, high = Spread.of([0.5, 0.6, 0.7]).interval(ACCURACY)
    assert (low, high) == pytest.approx((0.6 - 0.248414, 0.6 + 0.248414), abs=1e-5)
    assert Spread.of([0.1, 0.9]).interval(ACCURACY) == (0.0, 1.0)
    assert Spread.of([0.5]).interval(ACCURACY) is None


def test_the_fewest_settings_tell_rows_apart():
    rows = [{"privacy.mode": "none", "x": 1}, {"privacy.mode": "paper", "x": 2}]
    assert distinguishing(["x", "privacy.mode"], rows) == ["privacy.mode"]
    assert describe(["privacy.mode", "data.budget"], rows[0]) == "no privacy, all examples"


def test_the_command_of_a_row_repeats_it(tmp_path, capsys):
    file = tmp_path / "tiny.toml"
    file.write_text(TINY)
    for seed in (1, 2):
        with pytest.raises(SystemExit) as end:
            out = ["--out", str(tmp_path / "s" / str(seed))]
            main(["run", str(file), "--set", f"seed={seed}", *out, "--json"])
        assert not end.value.code
    page = text_of([tmp_path / "s"], tmp_path / "out")
    shown = html.unescape(re.search(r"<h4>To repeat</h4><pre>(.*?)</pre>", page, re.DOTALL)[1])
    first, second = map(shlex.split, shown.splitlines())
    assert first[-1].endswith("experiment.toml") and second[-2:] == ["--set", "seed=2"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*second[1:], "--out", str(tmp_path / "again"), "--json"])
    digest = json.loads(capsys.readouterr().out)["delta_digest"]
    there = [read_run(f).summary["delta_digest"] for f in find_runs([tmp_path / "s"])]
    assert digest in there and digest in page and len(set(there)) == 2
