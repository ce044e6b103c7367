"""Wire names of the parameters that `peft` adds.

    vit.layers.3.attention.q_proj . lora_A.default.weight   in memory
    blocks.3.attn.q               . lora_a.weight           on the wire
    canonical name of the module  . the library's own part

`default` (the library's adapter name) and `base_layer` (its name of the wrapped layer) are left
out. A parameter that several layers share has the name of the first.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedpeft.models.families import canonical
from fedpeft.models.loaded import LoadedModel

_HIDDEN = frozenset({"base_layer", "default"})


@dataclass(frozen=True)
class PeftNames:
    """Names of a model's parameters after `peft` has changed it.

    Attributes:
      loaded: the model, whose family gives the canonical names.
      modules: module paths of the model before the change.
      parameters: parameter paths of the model before the change.
      prefix: prefix of the backbone's paths inside the wrapper; empty without one.
    """

    loaded: LoadedModel
    modules: frozenset[str]
    parameters: frozenset[str]
    prefix: str = ""

    def original(self, path: str) -> str:
        """Return the path that a parameter would have had before the change."""
        place, part = self._split(path)
        return ".".join([*place, *part])

    def wire(self, path: str) -> str:
        """Return the wire name of a parameter of the changed model."""
        place, part = self._split(path)
        family = self.loaded.family
        if self.original(path) in self.parameters:
            return canonical(family, self.original(path))
        where = canonical(family, ".".join([*place, ""]))
        if family.block:
            where = where.replace(".self_attn.", ".attn.")
        return (where if place else "") + ".".join(part).lower()

    def place(self, path: str) -> str:
        """Return the path of the original module that a parameter belongs to."""
        return ".".join(self._split(path)[0])

    def _split(self, path: str) -> tuple[list[str], list[str]]:
        """Split a path into the longest path of an original module, and the rest."""
        steps = path.removeprefix(self.prefix).split(".")
        size = len(steps)
        while size and ".".join(steps[:size]) not in self.modules:
            size -= 1
        return steps[:size], [step for step in steps[size:] if step not in _HIDDEN]
