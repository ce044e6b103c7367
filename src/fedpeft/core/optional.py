"""Optional packages, imported where they are used, with advice where they are missing."""

from __future__ import annotations

import importlib
import logging
import warnings
from types import ModuleType

from fedpeft.core.errors import ConfigError


def bitsandbytes(purpose: str) -> ModuleType:
    """Import bitsandbytes.

    Args:
      purpose: the setting that needs it, for the message.

    Raises:
      ConfigError: if it is not installed or cannot be loaded.
    """
    log = logging.getLogger("bitsandbytes")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            log.setLevel(logging.ERROR)  # it tells of kernels that we do not use
            return importlib.import_module("bitsandbytes")
        except (ImportError, RuntimeError, OSError) as error:
            raise ConfigError(
                f"{purpose} needs the package bitsandbytes: pip install 'fedpeft[quantized]' "
                f"({error})"
            ) from error
        finally:
            log.setLevel(level)
