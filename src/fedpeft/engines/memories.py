"""The memories of clients that an engine stores: before and after the last turn.

    committed 3  ->  { 3: memory before, 4: memory after }

With the next job, the server says which of the two counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedpeft.client.turns import Memory


class Memories:
    """The memories of clients, by client and by the number of the turn that stored them."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[int, Memory]] = {}

    def get(self, client: str, committed: int) -> Memory:
        """Return the memory that a client had after a turn; {} before its first turn."""
        return self._kept.get(client, {}).get(committed, {})

    def keep(self, client: str, memory: Memory, *, committed: int, turn: int) -> None:
        """Store the memory after a turn, and drop all but this and the committed one."""
        before = self._kept.get(client, {}).get(committed)
        kept = {committed: before} if before is not None else {}
        self._kept[client] = {**kept, turn: memory}

    def dump(self, committed: Mapping[str, int]) -> dict[str, Tensor]:
        """Return all committed memories as named tensors, for a checkpoint."""
        return {
            f"{client}\n{key}": tensor
            for client in self._kept
            for key, tensor in self.get(client, committed.get(client, 0)).items()
        }

    def load(self, memories: Mapping[str, Tensor], committed: Mapping[str, int]) -> None:
        """Restore the memories that `dump` returned."""
        self._kept = {}
        for name, tensor in memories.items():
            client, key = name.split("\n", 1)
            kept = self.get(client, committed[client])
            self._kept[client] = {committed[client]: {**kept, key: tensor}}
