import html
import html.parser
import json
import re
from pathlib import Path

import finished_runs
import pytest
import tomli_w

from fedpeft.core.errors import ConfigError, RunFolderError
from fedpeft.core.metrics import ACCURACY, PERPLEXITY
from fedpeft.pictures.labels import Box, spread
from fedpeft.pictures.style import strokes
from fedpeft.report.figures import curve_of
from fedpeft.report.write import ReportOptions, write_report
from fedpeft.results.runs import Group, describe_partition, find_runs, panels_of, read_run
from fedpeft.results.table import Spread, bytes_text, metric_text, row_of

VOID = {"meta", "br", "img", "path", "use", "rect"}


def fake(folder: Path, method: str, *, seed=1, metric="accuracy", done=True, source="digits"):
    folder.mkdir(parents=True)
    table = {
        "name": "small",
        "seed": seed,
        "tuning": {"method": method},
        "data": {"source": source, "evaluate_on": "test"},
        "federation": {"rounds": 4},
    }
    (folder / "experiment.toml").write_text(tomli_w.dumps(table))
    finished_runs.write_records(folder, metric=metric, rounds=4 if done else 2, scale=seed)
    figures = {"trainable_parameters": 50, "total_parameters": 1000, "payload_bytes": 200}
    if done:
        (folder / "summary.json").write_text(json.dumps({**figures, "stopped": "rounds"}))
    partition = {"clients": ["a", "b"], "labels": ["x", "y"], "counts": [[3, 0], [1, 4]]}
    (folder / "partition.json").write_text(json.dumps(partition))
    return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    for method in ("bias", "lora"):
        for seed in (1, 2):
            fake(root / f"{method}-{seed}", method, seed=seed)
    fake(root / "head-1", "head", done=False)
    return root


@pytest.fixture(scope="module")
def report(sweep, tmp_path_factory):
    return write_report(
        [sweep], tmp_path_factory.mktemp("out") / "r.html", ReportOptions(target=0.3)
    )


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.used, self.ids = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.used.add(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.used.add(tag)
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_asks_for_nothing(report):
    text = report.read_text("utf-8")
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert not tags.used & {"link", "img", "iframe", "object"}
    assert len(tags.ids) == len(set(tags.ids))
    assert not re.search(r'(?:src|href)="(?!#|data:text/csv)', text)
    assert "fetch(" not in text and "import(" not in text
    assert not re.search(r"url\((?!#)", text) and "@import" not in text


def test_inlined_pictures_use_the_colours_of_the_page(report):
    text = report.read_text("utf-8")
    inlined = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--s0)" in inlined and "var(--ink)" in inlined
    assert "#0072b2" not in inlined.lower()


def test_every_reference_inside_a_picture_is_there(report):
    text = report.read_text("utf-8")
    wanted = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    assert wanted and wanted <= set(re.findall(r'id="([^"]+)"', text))


def test_every_figure_comes_as_svg_and_png(report):
    for what in ("bytes", "rounds", "table", "partition"):
        svg = (report.parent / f"r-{what}.svg").read_text()
        assert "<text" in svg
        assert (report.parent / f"r-{what}.png").read_bytes().startswith(b"\x89PNG")
    assert (report.parent / "r-table.csv").read_text().count("\n") == 4


def test_the_page_says_what_is_unfinished_and_who_reached_the_target(report):
    text = report.read_text("utf-8")
    assert "unfinished: 2 of 4 rounds" in text
    assert "Target reached by bias after 840 B, lora after 840 B. Not by head." in text


def test_the_same_runs_give_the_same_report(report, sweep, tmp_path):
    again = write_report([sweep], tmp_path / "r.html", ReportOptions(target=0.3))
    for file in report.parent.iterdir():
        assert (again.parent / file.name).read_bytes() == file.read_bytes()


def test_the_default_place_is_the_first_folder(tmp_path):
    run = fake(tmp_path / "run", "bias")
    assert write_report([run], None) == run / "report.html"


def test_perplexity_is_better_when_lower(tmp_path):
    run = fake(tmp_path / "run", "bias", metric="perplexity")
    text = write_report([run], None).read_text("utf-8")
    assert "Perplexity, test set (log scale, lower is better)" in text
    assert row_of(Group("bias", (read_run(run),))).best == Spread(0.1, None)


def test_runs_that_differ_in_the_seed_alone_are_one_group(sweep):
    (panel,) = panels_of(read_run(folder) for folder in find_runs([sweep]))
    assert [(group.label, len(group.runs)) for group in panel.groups] == [
        ("bias", 2),
        ("head", 1),
        ("lora", 2),
    ]
    row = row_of(panel.groups[0])
    assert row.last is not None and row.last.mean == pytest.approx(0.6)
    assert row.last.std == pytest.approx(0.4 / 2**0.5)
    assert (row.share, row.encoded_up, row.encoded_down) == (0.05, 100.0, 110.0)


def test_other_data_is_another_panel(tmp_path):
    runs = [fake(tmp_path / name, "bias", source=name) for name in ("digits", "cifar")]
    assert len(panels_of(map(read_run, runs))) == 2


def test_bytes_are_those_of_both_ways_so_far(sweep):
    run = read_run(sweep / "bias-1")
    assert [total for _, total, _ in run.curve()] == [420, 840, 1260, 1680]
    curve = curve_of(Group("bias", (run, read_run(sweep / "bias-2"))), "bytes")
    assert curve.x == (420, 840, 1260, 1680)
    assert (curve.low[0], curve.high[0]) == (0.1, 0.2)


def test_labels_are_moved_apart_no_more_than_needed():
    boxes = [Box(0, 10, 4, y) for y in (10.0, 11.0, 30.0)] + [Box(50, 10, 4, 10.5)]
    moved = spread(boxes, low=0, high=100)
    assert moved[1] - moved[0] == pytest.approx(4, abs=0.2)
    assert moved[2:] == [30.0, 10.5]


def test_a_method_has_one_colour_in_every_figure():
    alone, among = strokes(["lora"])[0], strokes(["full", "dora", "lora", "lora"])
    assert among[2] == alone
    assert among[3].slot == alone.slot and among[3].dash != alone.dash
    assert len({stroke.slot for stroke in among}) == 3


def test_numbers_are_written_with_their_units():
    assert bytes_text(2**20) == "1.05 MB · 1.00 MiB"
    assert metric_text(Spread(0.8512, 0.0123), ACCURACY) == "85.1 ± 1.2 %"
    assert metric_text(Spread(12.345, None), PERPLEXITY) == "12.35"


def test_the_partition_is_described(sweep):
    partition = read_run(sweep / "bias-1").partition
    assert partition is not None
    assert "2 clients hold 3 to 5 examples" in describe_partition(partition)


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        write_report([tmp_path], None)
    with pytest.raises(RunFolderError, match="no such folder"):
        write_report([tmp_path / "none"], None)
    with pytest.raises(ConfigError, match="no folder was named"):
        write_report([], None)


def test_a_page_needs_the_name_of_a_page(sweep, tmp_path):
    with pytest.raises(ConfigError, match=r"ends in \.html"):
        write_report([sweep], tmp_path / "report.pdf")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("experiment.toml", None, "experiment.toml is missing"),
        ("experiment.toml", "a = ", "not valid TOML"),
        ("summary.json", "{", "not valid JSON"),
        ("summary.json", "[]", "expected an object"),
        ("rounds.jsonl", None, "rounds.jsonl is missing"),
        ("rounds.jsonl", "{}\n", "line 1: it is not one whole JSON object"),
        ("partition.json", '{"labels": ["x"]}', "partition.json"),
    ],
)
def test_a_corrupt_folder_names_what_is_wrong(name, content, match, tmp_path):
    run = fake(tmp_path / "run", "bias")
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(RunFolderError, match=match):
        write_report([run], None)


def test_a_torn_last_line_of_an_unfinished_run_is_left_out(tmp_path):
    run = fake(tmp_path / "run", "bias", done=False)
    with (run / "rounds.jsonl").open("a") as opened:
        opened.write('{"round": 3, "coh')
    assert len(read_run(run).rounds) == 2


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (
            {"client_metrics": {"a": 0.5, "b": 1.0, "c": 0.75, "d": None}},
            "on the clients' own test rows: 4 clients from 50.0 % (a) to 100.0 % (b), "
            "median 75.0 %, 1 without a figure.",
        ),
        (
            {"client_metrics_by_class": {"a": None, "b": None}},
            "estimated from the clients' classes: 2 clients, none with a figure.",
        ),
        ({}, None),
    ],
)
def test_figures_of_clients_are_shown(tmp_path, figures, words):
    folder = fake(tmp_path / "r", "bias")
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    lines[1] |= figures
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = html.unescape(write_report([folder], tmp_path / "r.html").read_text("utf-8"))
    assert ("Client by client: accuracy" in text) == (words is not None)
    assert words is None or f"seed 1: round 2, {words}" in text


@pytest.mark.parametrize("name", [None, "thesis.html"])
def test_a_page_of_the_user_is_not_replaced(tmp_path, name):
    run = fake(tmp_path / "run", "bias")
    page = tmp_path / name if name else run / "report.html"
    page.write_text("<html>mine</html>")
    with pytest.raises(ConfigError, match=r"not a page of `fedpeft report`.*Choose another name"):
        write_report([run], tmp_path / name if name else None)
    assert page.read_text() == "<html>mine</html>"
    assert not list(page.parent.glob(f"{page.stem}-*"))


def test_an_earlier_report_is_replaced(tmp_path):
    run = fake(tmp_path / "run", "bias")
    write_report([run], None, ReportOptions(title="First"))
    assert "Second" in write_report([run], None, ReportOptions(title="Second")).read_text("utf-8")


def test_a_table_of_the_user_is_not_replaced(tmp_path):
    run = fake(tmp_path / "run", "bias")
    (tmp_path / "mine-table.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match=r"mine-table\.csv, which exists without a page"):
        write_report([run], tmp_path / "mine.html")
    assert (tmp_path / "mine-table.csv").read_text() == "a,b\n"
