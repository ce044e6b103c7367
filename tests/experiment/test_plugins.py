"""Names of installed packages: looked up, listed, refused; never in the place of ours."""

from __future__ import annotations

import sys

import pytest

import fedpeft
from fedpeft.cli.listing import LISTS
from fedpeft.core.errors import ConfigError
from fedpeft.data.schemes import PARTITIONS
from fedpeft.experiment import tables
from fedpeft.experiment.plugins import Plugins, installed, origin_of
from fedpeft.experiment.read import validate
from fedpeft.results.runs import read_run
from fedpeft.server.algorithms import weighted_mean
from fedpeft.tuning.methods import METHODS

MODULE = '''
import dataclasses
from fedpeft.answers.scores import AnswerScore
from fedpeft.core.metrics import Metric
from fedpeft.data.schemes import PARTITIONS
from fedpeft.server.algorithms import fedavg
from fedpeft.server.sampling import fixed
from fedpeft.models.tasks import IMAGE_CLASSIFICATION
from fedpeft.tuning.methods import METHODS

def half(*, lr: float = 0.5):
    """Half a step."""
    return fedavg(lr=lr)

def first(*, lr: float = 1.0):
    """Whoever answers first."""
    return dataclasses.replace(fedavg(lr=lr), combine=lambda updates, context: next(updates))

def wrong():
    return 3

def mentions(*, whole: bool = True):
    """Whether the answer mentions the reference."""
    return AnswerScore(lambda answer, reference: float(reference in answer))

def share_wrong(loss, count, correct):
    return 1 - correct / count

even = PARTITIONS["iid"]
errors = Metric("wrong", "min", share_wrong)
signs = dataclasses.replace(IMAGE_CLASSIFICATION, name="signs", metric=errors)
slim = METHODS["head"]
later = fixed
raise_on = "import"
'''
ENTRIES = """[fedpeft.algorithms]
half = {module}:half
first = {module}:first
wrong = {module}:wrong
gone = {module}:gone
fedavg = {module}:wrong

[fedpeft.partitions]
even = {module}:even
odd = {module}:half

[fedpeft.methods]
slim = {module}:slim

[fedpeft.tasks]
signs = {module}:signs
wrong = {module}:half

[fedpeft.samplers]
later = {module}:later

[fedpeft.scores]
mentions = {module}:mentions
"""


def install(folder, monkeypatch, package, module):
    info = folder / f"{package}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(ENTRIES.format(module=module))
    (folder / f"{module}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))


@pytest.fixture
def package(tmp_path, monkeypatch):
    install(tmp_path / "one", monkeypatch, "own-rules", "own_rules_of_a_test")
    yield
    sys.modules.pop("own_rules_of_a_test", None)


def test_a_name_is_found_without_importing_its_package(package):
    found = installed().of("algorithms")["half"]
    assert (found.package, found.version) == ("own-rules", "1.2")
    assert "own_rules_of_a_test" not in sys.modules


def test_an_experiment_uses_names_of_a_package(package):
    table = {
        "tuning": {"method": "slim"},
        "federation": {"algorithm": "half", "sampling": "later", "options": {"lr": 0.25}},
        "data": {"partition": {"scheme": "even"}},
    }
    experiment = validate(table, "test")
    plugins = installed()
    made = tables.make_algorithm("half", experiment.federation.options, plugins)
    assert made.combine is tables.ALGORITHMS["fedavg"]().combine
    assert tables.algorithm_options("half", {}, plugins) == {"lr": 0.5}
    assert tables.partition_rule("even", plugins).needs == ""


def test_scores_of_a_package_stand_beside_ours(package):
    specs = [{"name": "mentions", "whole": False}, {"name": "exact_match"}]
    validate({"answers": {"scores": specs}}, "test")
    found = tables.make_scores(specs, installed())
    assert [each.score("it is 4", "4") for each in found.values()] == [1.0, 0.0]


def test_nothing_is_known_without_plugins(package):
    with pytest.raises(ConfigError, match="'half' is unknown"):
        validate({"federation": {"algorithm": "half"}}, "test", Plugins())
    with pytest.raises(ConfigError, match="'half' is unknown"):
        validate({"federation": {"algorithm": "half"}}, "test", installed().only(["even"]))
    validate({"federation": {"algorithm": "half"}}, "test", installed().only(["half"]))
    assert "own_rules_of_a_test" in sys.modules


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"federation": {"algorithm": "wrong"}},
            "returned int; a builder of this kind returns",
        ),
        (
            {"federation": {"algorithm": "gone"}},
            r"'gone' of own-rules 1.2 .* AttributeError",
        ),
        ({"federation": {"algorithm": "half", "options": {"mu": 1}}}, "half has no such option"),
        ({"federation": {"algorithm": "half", "options": {"lr": -1.0}}}, "options.lr: found -1.0"),
        (
            {
                "federation": {"algorithm": "first"},
                "privacy": {"mode": "local", "noise_multiplier": 1.0},
            },
            "algorithm: found 'first' with privacy.mode = 'local'; .* calibrated for their mean",
        ),
        ({"model": {"task": "wrong"}}, "'wrong' of fedpeft.tasks is a function; it must be a Task"),
        ({"model": {"task": "sign"}}, "model.task: 'sign' is unknown; did you mean 'signs'"),
        ({"data": {"partition": {"scheme": "odd"}}}, "'odd' of fedpeft.partitions is a function"),
    ],
)
def test_what_is_wrong_with_a_plug_in_is_said(package, settings, words):
    with pytest.raises(ConfigError, match=words):
        validate(settings, "test")


def test_a_run_has_the_task_and_the_metric_of_a_package(package, tmp_path):
    table = {
        "data": {"partition": {"clients": 8}},
        "federation": {"rounds": 1, "clients_per_round": 2},
        "client": {"epochs": 1},
        "engine": {"workers": 1},
    }
    usual = fedpeft.run(table, out=tmp_path / "usual")
    own = fedpeft.run({**table, "model": {"task": "signs"}}, out=tmp_path / "own")
    assert own["best_wrong"] == own["wrong"] == pytest.approx(1 - usual["accuracy"])
    assert own["delta_digest"] == usual["delta_digest"] and "accuracy" not in own
    assert read_run(tmp_path / "own").metric.better == "min"


def test_a_package_does_not_replace_a_name_of_ours(package):
    made = tables.make_algorithm("fedavg", {}, installed())
    assert made.combine is weighted_mean
    rows = {(row["name"], row["package"]): row["what"] for row in LISTS["algorithms"]()}
    assert "not usable" in rows["fedavg", "own-rules"]
    assert "cannot be imported" in rows["gone", "own-rules"]
    assert rows["half", "own-rules"] == "Half a step"


def test_every_list_has_the_names_of_packages(package):
    rows = {
        group: {row["name"]: row for row in LISTS[group]() if row["package"] == "own-rules"}
        for group in ("methods", "partitions", "samplers", "tasks")
    }
    assert rows["methods"]["slim"]["what"] == METHODS["head"].summary
    assert rows["methods"]["slim"]["vit"] == "yes"
    assert rows["partitions"]["even"]["what"] == PARTITIONS["iid"].summary
    assert "it must be a Partition" in rows["partitions"]["odd"]["what"]
    assert "later" in rows["samplers"]
    assert (rows["tasks"]["signs"]["metric"], rows["tasks"]["signs"]["better"]) == ("wrong", "min")
    assert "it must be a Task" in rows["tasks"]["wrong"]["what"]


def test_a_builder_that_is_no_function_is_refused(package):
    settings = {"federation": {"sampling": "later"}}
    validate(settings, "test")
    sys.modules["own_rules_of_a_test"].later = 3
    with pytest.raises(ConfigError, match=r"'later' of .* is a int; it must be a function"):
        validate(settings, "test")


def test_two_packages_with_one_name_are_refused(package, tmp_path, monkeypatch):
    install(tmp_path / "two", monkeypatch, "other-rules", "other_rules_of_a_test")
    with pytest.raises(ConfigError, match="both add 'half' to fedpeft"):
        installed()


def test_the_origin_of_an_object_is_its_name_and_source(package):
    plugin = installed().of("algorithms")["half"]
    origin = origin_of(plugin.load())
    assert origin.name == "own_rules_of_a_test:half" and plugin.version == "1.2"
    assert len(origin.sha256) == 64


def test_what_stands_in_no_module_has_no_name():
    def mine():
        return 0

    assert origin_of(mine).name.endswith("test_what_stands_in_no_module_has_no_name")
    mine.__module__ = "__main__"
    assert origin_of(mine).name == ""


def test_a_sampler_that_follows_replies_is_refused_under_privacy(package):
    table = {
        "federation": {"sampling": "later"},
        "privacy": {"mode": "central", "epsilon": 5.0},
    }
    with pytest.raises(ConfigError, match="allowed are 'fixed' and 'poisson'"):
        validate(table, "test")
