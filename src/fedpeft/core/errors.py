"""The exception tree: every error that a user can cause or encounter.

    FedpeftError
    ├── ConfigError            an experiment file, an option or an argument is wrong   (exit 2)
    │   ├── DataError          a data set, a column or a partition is not possible     (exit 2)
    │   ├── ModelError         a model is unknown, incomplete or unsuitable            (exit 2)
    │   └── TuningError        a tuning method cannot be applied to this model         (exit 2)
    ├── RunFolderError         a run folder is corrupt, locked or of another run       (exit 2)
    ├── DeltaMismatchError     a delta does not fit the model                          (exit 2)
    ├── PrivacyError           a privacy setting would not protect what it promises    (exit 2)
    ├── RoundError             too few clients answered                                (exit 3)
    ├── EngineError            the engine that runs the clients has failed             (exit 4)
    └── NotFiniteError         the server made numbers that are not finite             (exit 4)

A message states where the error is, what was found, what is allowed, and what to do.
"""

from __future__ import annotations


class FedpeftError(Exception):
    """The base class of all errors of this package.

    Attributes:
      exit_code: exit code of the command line for this error.

    Example:
      >>> import fedpeft
      >>> try:
      ...     fedpeft.load_model(fedpeft.ModelRequest("preset:tiny-vti"))
      ... except fedpeft.FedpeftError as error:
      ...     print(type(error).__name__, error.exit_code)
      ModelError 2
    """

    exit_code = 2


class ConfigError(FedpeftError):
    """An experiment file, an option or an argument is wrong."""


class DataError(ConfigError):
    """A data set, a column or a partition is missing or not possible."""


class ModelError(ConfigError):
    """A model is unknown, out of reach, incomplete or unsuitable for the data."""


class TuningError(ConfigError):
    """A tuning method cannot be applied to this model with these options."""


class RunFolderError(FedpeftError):
    """A run folder is corrupt, locked by another process, or holds another experiment."""


class DeltaMismatchError(FedpeftError):
    """A delta has other names, shapes or types than the model."""


class PrivacyError(FedpeftError):
    """A privacy setting would not protect what it promises."""


class RoundError(FedpeftError):
    """Too few clients answered in a round."""

    exit_code = 3


class EngineError(FedpeftError):
    """The engine, which runs the clients, has failed."""

    exit_code = 4


class StorageError(FedpeftError):
    """A run that is under way cannot write its folder; its last state is kept."""

    exit_code = 4


class NotFiniteError(FedpeftError):
    """A round's combined update or new state is not finite; nothing of the round was kept."""

    exit_code = 4
