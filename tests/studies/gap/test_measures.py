"""The domain gap: known distances of Gaussians, closed forms, and controls that must differ."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fedpeft.cli import main
from fedpeft.core.errors import ConfigError, DataError
from fedpeft.studies.gap.analysis import matching
from fedpeft.studies.gap.features import GapRequest, read_features
from fedpeft.studies.gap.measures import (
    Gap,
    balance,
    frechet,
    linear_mmd,
    measure_gap,
    plane_of,
    sliced_wasserstein,
)

CENTRES = np.array([[0.0, 0, 0], [4, 0, 0], [0, 7, 0], [0, 0, 12]])
NAMES = ("zero", "four", "seven", "twelve")


def gaussians(size: int = 4000, spread: float = 1.0, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.hstack([CENTRES, np.zeros((4, 2))])
    return {
        n: c * spread + spread * rng.normal(size=(size, 5))
        for n, c in zip(NAMES, centres, strict=True)
    }


@pytest.fixture(scope="module")
def gap():
    return measure_gap(gaussians(), "zero")


@pytest.mark.parametrize(("name", "wanted"), [("four", 4.0), ("seven", 7.0), ("twelve", 12.0)])
def test_known_distances_are_recovered(gap, name, wanted):
    for measure in ("raw", "lda3"):
        assert gap.distances[measure][name] == pytest.approx(wanted, rel=0.03)
    for measure in ("frechet", "mmd"):
        assert gap.distances[measure][name] == pytest.approx(wanted**2, rel=0.05)
    assert all(row["zero"] == 0 for row in gap.distances.values())


def test_lda_measures_in_deviations_within_a_set_and_raw_space_does_not(gap):
    wide = measure_gap(gaussians(spread=10.0), "zero")
    assert wide.distances["lda3"]["seven"] == pytest.approx(gap.distances["lda3"]["seven"])
    assert wide.distances["raw"]["seven"] == pytest.approx(10 * gap.distances["raw"]["seven"])


def test_the_plane_of_three_sets_holds_their_distances():
    chosen = {n: rows for n, rows in gaussians().items() if n != "seven"}
    found = measure_gap(chosen, "zero")
    assert found.distances["lda2"]["twelve"] == pytest.approx(12.0, rel=0.03)
    assert "lda3" not in found.distances
    assert found.plane["zero"].mean(0) == pytest.approx([0, 0], abs=1e-9)
    assert found.plane["twelve"].mean(0)[1] == pytest.approx(0, abs=1e-9)
    assert found.plane["four"].mean(0)[1] > 0


def test_sliced_distance_of_a_shift_is_two_over_pi():
    points = np.random.default_rng(1).normal(size=(300, 2))
    moved = points + np.array([3.0, 4.0])
    assert sliced_wasserstein(points, moved) == pytest.approx(10 / np.pi, rel=1e-4)
    assert sliced_wasserstein(points, points * [1, 3]) != pytest.approx(0, abs=0.1)


def test_frechet_is_the_formula_with_a_root_of_a_matrix():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(2)
    one, two = rng.normal(size=(50, 4)), rng.normal(size=(70, 4)) @ rng.normal(size=(4, 4)) + 1
    covs = [np.cov(rows.T) for rows in (one, two)]
    root = np.real(sqrtm(covs[0] @ covs[1]))
    wanted = ((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(covs[0] + covs[1] - 2 * root)
    assert frechet(one, two) == pytest.approx(wanted) and frechet(one, one) < 1e-9


def test_mmd_is_the_mean_over_pairs_of_different_examples():
    rng = np.random.default_rng(3)
    one, two = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)) + 1
    within = [
        np.mean([a[i] @ a[j] for i in range(len(a)) for j in range(len(a)) if i != j])
        for a in (one, two)
    ]
    assert linear_mmd(one, two) == pytest.approx(sum(within) - 2 * (one @ two.T).mean())


def test_sets_of_one_distribution_have_no_gap_and_shifted_ones_do():
    rng = np.random.default_rng(4)
    same = {name: rng.normal(size=(3000, 5)) for name in "abc"}
    found = measure_gap(same, "a").distances
    assert all(value < 0.15 for row in found.values() for value in row.values())
    same["c"] = same["c"] + 5.0
    assert measure_gap(same, "a").distances["lda2"]["c"] > 5


def test_alignment_undoes_a_turn_and_a_mirror():
    points = np.array([[0.0, 0], [3, 1], [-1, 2], [5, 5]])
    turn = np.array([[0.6, -0.8], [-0.8, -0.6]])
    straight, turned = (
        Gap("a", {n: p[None] for n, p in zip("abcd", rows, strict=True)}, {}, 2)
        for rows in (points, points @ turn)
    )
    assert np.concatenate([*plane_of(turned, straight).values()]) == pytest.approx(points)
    assert not np.allclose(points @ turn, points)


def test_balancing_takes_the_smallest_size_and_hardly_moves_distances(gap):
    features = gaussians()
    features["four"] = features["four"][:500]
    drawn = balance(features, seed=1)
    assert {len(rows) for rows in drawn.values()} == {500}
    assert all(np.array_equal(balance(features, seed=1)[n], drawn[n]) for n in drawn)
    assert not np.array_equal(balance(features, seed=2)["zero"], drawn["zero"])
    found = measure_gap(drawn, "zero")
    assert found.distances["lda3"]["seven"] == pytest.approx(7, rel=0.08)
    near = plane_of(found, gap)
    assert near["twelve"].mean(0) == pytest.approx(gap.plane["twelve"].mean(0), abs=1.0)


def test_matching_names_measures_within_five_percent(gap):
    assert "raw" in matching(gap, {"four": 4.1, "seven": 6.9})
    assert matching(gap, {"four": 4.1, "seven": 9.0}) == []


@pytest.mark.parametrize(("change", "message"), [
    (lambda f: f.pop("zero"), "no set 'zero'; found are four"),
    (lambda f: [f.pop("four"), f.pop("seven")], "found 2 sets.*at least 3"),
    (lambda f: f.update(four=f["four"][:1]), "'four' has fewer than 2"),
])  # fmt: skip
def test_wrong_sets_are_refused(change, message):
    features = gaussians(10)
    change(features)
    with pytest.raises(DataError, match=message):
        measure_gap(features, "zero")


def test_features_are_the_final_norm_cls_token():
    import torch

    from fedpeft.data.bundled import read_set
    from fedpeft.models.source import ModelRequest, load_model

    found = read_features(GapRequest("vit-glyphs-8", {"d": "digits"}, sample=5, seed=3))["d"]
    all_rows = read_features(GapRequest("vit-glyphs-8", {"d": "digits"}))["d"]
    model = load_model(ModelRequest("vit-glyphs-8")).module
    pixels = torch.from_numpy(
        read_set("digits").tables["test"].columns["image"][:1].astype(np.float32)
    )
    hidden = model.vit((pixels / 16 - 0.5)[:, None] / 0.5).last_hidden_state[0, 0]
    assert all_rows[0] == pytest.approx(hidden.detach().double().numpy(), abs=1e-4)
    assert found.shape == (5, 128) and len(all_rows) == 359


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match=r"--split: found 'dev'; allowed are test, train"):
        read_features(GapRequest("vit-glyphs-8", {"d": "digits"}, split="dev"))


def test_the_command_writes_figures_and_json(tmp_path, capsys):
    args = "gap --reference digits --data inv=digits-inverted --data digits-blurred --sample 60"
    with pytest.raises(SystemExit) as end:
        main([*args.split(), "--expect", "inv=1", "--out", str(tmp_path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert not end.value.code and found == json.loads((tmp_path / "gap.json").read_text())
    assert found["balanced"]["examples"] == {"digits": 60, "inv": 60, "digits-blurred": 60}
    assert found["unbalanced"]["distances"]["raw"]["inv"] > 0
    assert "<svg" in (tmp_path / "gap.svg").read_text() and (tmp_path / "gap.png").stat().st_size


@pytest.mark.parametrize(("args", "message"), [
    (["--data", "digits"], "'digits' is named twice"),
    (["--data", "=x"], "found '=x'; allowed are SOURCE and NAME=SOURCE"),
    (["--data", "a=digits", "--expect", "a=far"], "allowed is NAME=NUMBER"),
    (["--data", "a=digits", "--expect", "b=1"], "no set 'b'; found are digits, a"),
])  # fmt: skip
def test_wrong_options_are_explained(args, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["gap", "--reference", "digits", *args])
    assert end.value.code == 2 and message in capsys.readouterr().err
