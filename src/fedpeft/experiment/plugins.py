"""Plug-ins: names that installed packages add to those that an experiment may use.

    [project.entry-points."fedpeft.algorithms"]        a package's own pyproject.toml
    coordinate_median = "my_package.rules:coordinate_median"

Names are only looked up here; a package is imported when an experiment uses its name. No package
can replace a name of ours.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TypeGuard

from fedpeft.core.errors import ConfigError

GROUPS = (
    *("algorithms", "callbacks", "methods", "partitions", "samplers", "scores", "stages", "tasks"),
)
"""Groups that packages may add to; the entry points of a group are under `fedpeft.GROUP`."""


@dataclass(frozen=True)
class Origin:
    """The origin of an object that an experiment used.

    Attributes:
      name: `package.module:name`; "" where it has none, such as a function inside a function.
      sha256: of its module's source file, hex; "" without one.
    """

    name: str
    sha256: str = ""


@dataclass(frozen=True)
class Plugin:
    """One name that an installed package adds.

    Attributes:
      group: a word of `GROUPS`.
      name: as experiments write it.
      package: name of the installed package.
      version: of the package.
      entry: the entry point, which is imported by `load`.
    """

    group: str
    name: str
    package: str
    version: str
    entry: EntryPoint = field(repr=False)

    def load(self) -> object:
        """Import the package and return the object that the name stands for.

        Raises:
          ConfigError: if that fails.
        """
        try:
            return self.entry.load()
        except Exception as error:  # a foreign module may raise anything
            raise ConfigError(
                f"plug-in {self.name!r} of {self.package} {self.version} ({self.entry.value}) "
                f"cannot be imported: {type(error).__name__}: {error}"
            ) from error


@dataclass(frozen=True)
class Plugins:
    """The plug-ins that an experiment may use.

    Attributes:
      found: group -> name -> plug-in.
    """

    found: Mapping[str, Mapping[str, Plugin]] = field(default_factory=dict)

    def of(self, group: str) -> Mapping[str, Plugin]:
        """Return the plug-ins of a group by name."""
        return self.found.get(group, {})

    def only(self, names: Collection[str]) -> Plugins:
        """Return the plug-ins with these names; a site keeps those that its operator allows."""
        return Plugins(
            {
                group: {name: plugin for name, plugin in rows.items() if name in names}
                for group, rows in self.found.items()
            }
        )


def installed() -> Plugins:
    """Return the plug-ins of all installed packages; imports none of them.

    Raises:
      ConfigError: if two packages add one name to one group.
    """
    return _installed(tuple(sys.path))


@functools.lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> Plugins:
    """Read the entry points of the packages on a path; a look at all of them costs 30 ms."""
    found: dict[str, dict[str, Plugin]] = {group: {} for group in GROUPS}
    everything = entry_points()
    for group, rows in found.items():
        for entry in everything.select(group=f"fedpeft.{group}"):
            package = entry.dist.name if entry.dist else "?"
            version = entry.dist.version if entry.dist else ""
            other = rows.get(entry.name)
            if other is not None and other.package != package:
                raise ConfigError(
                    f"plug-ins: {other.package} and {package} both add {entry.name!r} to "
                    f"fedpeft.{group}; uninstall one of the two"
                )
            rows[entry.name] = Plugin(group, entry.name, package, version, entry)
    return Plugins(found)


def origin_of(*parts: object) -> Origin:
    """Return where an object comes from, for the record of a run.

    Args:
      parts: the object itself, or the functions that it is made of: the first one from outside
        this package counts. A function made inside another has the name of the outer one.
    """
    described = [part if _is_code(part) else type(part) for part in parts]
    foreign = [code for code in described if not code.__module__.startswith("fedpeft.")]
    code = (foreign or described)[0]
    module, name = code.__module__, code.__qualname__.split(".<locals>")[0]
    named = module != "__main__" and hasattr(sys.modules.get(module), name.split(".")[0])
    try:
        source = Path(inspect.getsourcefile(inspect.unwrap(code)) or "")
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
    except (OSError, TypeError):
        digest = ""
    return Origin(f"{module}:{name}" if named else "", digest)


def _is_code(part: object) -> TypeGuard[Callable[..., object]]:
    return inspect.isfunction(part) or inspect.isclass(part)
