"""The exception tree. Every error that a user can cause or meet is one of these.

    FedpeftError
    ├── ConfigError            an experiment file, an option or an argument is wrong   (exit 2)
    │   ├── DataError          a data set, a column or a partition is not possible     (exit 2)
    │   ├── ModelError         a model is unknown, incomplete or does not fit          (exit 2)
    │   └── TuningError        a tuning method cannot be applied to this model         (exit 2)
    ├── RunFolderError         a run folder is corrupt, locked or of another run       (exit 2)
    ├── DeltaMismatchError     a delta does not fit the model that it meets            (exit 2)
    ├── PrivacyError           a privacy setting would not protect what it promises    (exit 2)
    ├── RoundError             too few clients answered                                (exit 3)
    └── EngineError            the place where clients run has failed                  (exit 4)

A message says where, what was found, what was allowed and what to do.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataError",
    "DeltaMismatchError",
    "EngineError",
    "FedpeftError",
    "ModelError",
    "PrivacyError",
    "RoundError",
    "RunFolderError",
    "TuningError",
]


class FedpeftError(Exception):
    """The root of all errors of this package."""

    exit_code = 2


class ConfigError(FedpeftError):
    """An experiment file, an option or an argument is wrong."""


class DataError(ConfigError):
    """A data set, a column or a partition is missing or not possible."""


class ModelError(ConfigError):
    """A model is unknown, cannot be reached, is incomplete or does not fit the data."""


class TuningError(ConfigError):
    """A tuning method cannot be applied to this model with these options."""


class RunFolderError(FedpeftError):
    """A run folder is corrupt, locked by another process, or holds another experiment."""


class DeltaMismatchError(FedpeftError):
    """A delta has other names, shapes or types than the model that it meets."""


class PrivacyError(FedpeftError):
    """A privacy setting would not protect what it promises."""


class RoundError(FedpeftError):
    """Too few clients answered in a round."""

    exit_code = 3


class EngineError(FedpeftError):
    """The engine, where clients live, has failed."""

    exit_code = 4
