"""The version of this package."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["VERSION"]

try:
    VERSION = version("fedpeft")
except PackageNotFoundError:  # run from a source tree that was not installed
    VERSION = "0.1.0"
