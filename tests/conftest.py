"""Quiet, offline, one thread a process: set before torch is imported. Draws are fixed."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("COLUMNS", None)  # pytest imports readline, which sets both for child processes
os.environ.pop("LINES", None)

import pytest
import torch
from fixed_draws import pytest_configure, pytest_fixture_setup, pytest_runtest_setup
from hypothesis import HealthCheck, settings

__all__ = ["pytest_configure", "pytest_fixture_setup", "pytest_runtest_setup"]

torch.set_num_threads(1)
settings.register_profile(
    "fixed",
    derandomize=True,  # the examples follow from the test's code
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fixed")


def _made(name):
    def made(tmp_path_factory):
        import tried_runs  # late: few tests need it

        return getattr(tried_runs, name)(tmp_path_factory.mktemp(name))

    return pytest.fixture(scope="session", name=name)(made)


pictures_run, texts_run, language_run = map(_made, ("pictures_run", "texts_run", "language_run"))
