"""Conformance suites: the laws of a stage, an algorithm, a method ..., as functions for pytest.

    from fedpeft import testing

    def test_my_stage():
        testing.check_stage(my_stage(fraction=0.1))

Each function raises an `AssertionError` that names the broken law. `fedpeft` runs the same suites
over its own parts.
"""

from fedpeft.testing.algorithms import check_algorithm
from fedpeft.testing.engines import check_engine
from fedpeft.testing.methods import check_method
from fedpeft.testing.partitions import check_partition
from fedpeft.testing.samplers import check_sampler
from fedpeft.testing.stages import check_stage

__all__ = [
    "check_algorithm",
    "check_engine",
    "check_method",
    "check_partition",
    "check_sampler",
    "check_stage",
]
