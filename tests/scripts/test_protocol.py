"""The protocol's data, and its search of rates."""

from __future__ import annotations

import tomllib

import pytest

from fedpeft.data.texts import load_tokenizer, tokenize
from fedpeft.experiment.read import apply_overrides, validate
from fedpeft.experiment.resolve import resolve
from fedpeft.experiment.sweep_rows import read_rows
from fedpeft.models.loaded import ImageInput, TextInput
from fedpeft.models.source import ModelRequest, sketch_model
from fedpeft.results.beds import read_gaps
from pilots import spread_of
from protocol import (
    BEDS,
    EXPERIMENTS,
    GAP_SETS,
    RATES,
    Row,
    pairs_of,
    read_rates,
    settings_of,
    toml_of,
)
from search_rates import FIRST, OTHERS, best_of, chosen_pairs, next_runs


def searched(accuracy):
    """Run a search to its end where the accuracy is a function of the rate; return its runs."""
    search, runs = {}, []
    while asked := next_runs(search):
        runs += asked
        for rate, seed in asked:
            assert seed not in search.get(rate, {}), "no run is repeated"
            search.setdefault(rate, {})[seed] = accuracy(rate, seed)
    return best_of(search), runs


@pytest.mark.parametrize("best", [0.000625, 0.0025, 0.005, 0.02, 0.08, 0.64])
def test_a_search_finds_the_best_rate_also_past_the_edges(best):
    found, runs = searched(lambda rate, seed: -abs(rate - best))
    assert found == pytest.approx(best)
    assert {seed for _, seed in runs} == {FIRST, *OTHERS}


def test_a_search_inside_the_grid_costs_nine_runs():
    assert len(searched(lambda rate, seed: -abs(rate - 0.02))[1]) == 9


def test_a_rate_that_wins_on_the_first_seed_alone_does_not_win():
    def accuracy(rate, seed):
        return {0.02: 0.9 if seed == FIRST else 0.1, 0.04: 0.5}.get(rate, 0.2)

    assert searched(accuracy)[0] == 0.04


def test_a_search_ends_where_larger_is_always_better():
    assert searched(lambda rate, seed: rate)[0] > RATES[-1]


@pytest.mark.parametrize("bed", BEDS.values(), ids=list(BEDS))
def test_every_row_has_a_search_and_is_an_experiment(bed):
    for rows in bed.tables.values():
        for row in rows:
            assert (row.kind, row.method) in pairs_of(bed)
            assert set(bed.kinds[row.kind]) | set(bed.base) | set(row.changes) | {
                "tuning.method"
            } == set(settings_of(bed, row))


@pytest.mark.parametrize("bed", BEDS.values(), ids=list(BEDS))
def test_the_experiment_files_are_those_that_the_script_writes(bed):
    rates = read_rates().get(bed.name, {})
    for table, rows in bed.tables.items():
        file = EXPERIMENTS / bed.name / f"{table}.toml"
        if all(row.method in rates.get(row.kind, {}) for row in rows):
            assert file.read_text("utf-8") == toml_of(bed, table, rates)
        else:
            assert not file.exists(), "a table has a file once all its rates are searched"


def test_the_built_in_experiment_is_the_usual_class_of_the_characters_with_its_rates():
    bed = BEDS["characters"]
    rows = read_rows(None)
    assert len(rows) == 7
    for row in rows:
        method = row.experiment.tuning.method
        rate = read_rates()["characters"]["usual"][method]
        own = {
            "client.lr": rate,
            "federation.eval_every": 1,
            "name": row.experiment.name,
            "seed": 1,
        }
        asked = apply_overrides({}, {**settings_of(bed, Row("usual", method)), **own}.items())
        there, here = resolve(validate(asked, "bed")), resolve(row.experiment)
        assert here.experiment.changed(engine={"workers": 1}) == there.experiment


def test_naming_classes_and_methods_searches_every_pair_of_them():
    bed = BEDS["characters"]
    assert chosen_pairs(bed, [], []) == pairs_of(bed)
    assert set(chosen_pairs(bed, ["few"], [])) == {("few", "full")}
    assert set(chosen_pairs(bed, [], ["scratch"])) == {("16-of-16", "scratch")}
    assert ("usual", "scratch") not in pairs_of(bed)
    assert chosen_pairs(bed, ["usual"], ["scratch"]) == [("usual", "scratch")]


def test_a_file_has_a_row_for_each_of_its_table():
    bed = BEDS["characters"]
    rates = {
        kind: dict.fromkeys((m for k, m in pairs_of(bed) if k == kind), 0.01) for kind in bed.kinds
    }
    for table, rows in bed.tables.items():
        text = tomllib.loads(toml_of(bed, table, rates))
        assert len(text["sweep"]) == len(rows)
        assert all(each["client.lr"] == 0.01 for each in text["sweep"])


def test_what_both_methods_share_in_a_seed_is_no_spread():
    luck = {7001: 0.3, 7002: 0.5, 7003: 0.1}
    scores = {"bias": {s: v + 0.1 for s, v in luck.items()}, "full": luck}
    assert spread_of(scores) == pytest.approx(0)
    assert spread_of({**scores, "full": dict.fromkeys(luck, 0.2)}) == pytest.approx(0.2)
    assert spread_of({"bias": luck}) is None


def by_steps(gaps, num):
    """Choose sets by gap alone: the nearest, the farthest, and those nearest to even steps."""
    low, high = min(gaps.values()), max(gaps.values())
    steps = [low + (high - low) * step / (num - 1) for step in range(num)]
    return {min(gaps, key=lambda name: abs(gaps[name] - step)) for step in steps}


def test_the_gap_series_is_chosen_by_measured_gap():
    gaps = dict(read_gaps(EXPERIMENTS / "results" / "gap-vit-glyphs-28.json").distances)
    assert gaps.pop("glyphs-28") == 0, "the reference"
    assert by_steps(gaps, 5) == {*GAP_SETS, "characters"}
    assert by_steps(gaps, 4) != {*GAP_SETS, "characters"}  # the negative control


SMALL = [bed for bed in BEDS.values() if "small" in bed.kinds]


@pytest.mark.parametrize("bed", SMALL, ids=lambda bed: bed.name)
def test_the_small_network_reads_what_its_bed_has(bed):
    small = settings_of(bed, Row("small", "full"))
    backbone = settings_of(bed, Row("usual", "full"))
    assert small["model.name"] != backbone["model.name"]
    inputs = sketch_model(ModelRequest(str(small["model.name"]))).inputs
    if isinstance(inputs, TextInput):
        tokenizer = load_tokenizer(inputs, int(str(small["data.max_length"])))
        assert tokenize(["Who is it ?"], tokenizer)
    else:
        assert isinstance(inputs, ImageInput)


def test_a_folder_of_data_counts_from_the_files():
    bed = BEDS["text"]
    rates = {
        kind: dict.fromkeys((m for k, m in pairs_of(bed) if k == kind), 0.01) for kind in bed.kinds
    }
    text = tomllib.loads(toml_of(bed, "table1", rates))
    folder = EXPERIMENTS / bed.name / text["data"]["source"]
    assert folder.resolve() == EXPERIMENTS.parent / str(bed.base["data.source"])
