"""Tables of examples as tensors: pictures, and texts as one flat tensor of tokens.

    tokens   |the cat sat|dogs bark|...        offsets 0, 3, 5 ...

Worker processes share one copy of a tensor, but not of a list of objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.data.images import Pixels
from fedpeft.data.transforms import View, apply_view
from fedpeft.models.tasks import Batch


@dataclass(frozen=True)
class ImageExamples:
    """Pictures with classes; batches have `pixel_values` [B, C, H, W] and `labels` [B].

    Attributes:
      pixels: the pictures, before cropping and normalising.
      labels: class of each picture, int64 [N].
      view: how pictures are cropped, mirrored and normalised.
    """

    pixels: Pixels
    labels: Tensor
    view: View

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Collate; see `ExampleSet.batch`."""
        rows_B = torch.as_tensor(indices, dtype=torch.int64)
        values = apply_view(self.pixels.read(rows_B), self.view, rows_B, seed=seed)
        return {"pixel_values": values, "labels": self.labels[rows_B]}


@dataclass(frozen=True)
class TextExamples:
    """Tokenised texts; batches have `input_ids`, `attention_mask` [B, T] and `labels`.

    Every batch is padded to its own longest text. With targets of their own, `labels` is [B] or
    [B, C]; for a language model, `labels` [B, T] are the tokens themselves, with -100 where nothing
    is learnt and on padding. Batches of packed texts also have `position_ids` [B, T], which begin
    again at 0 with every example of a row.

    Attributes:
      tokens: all texts one after the other, int32.
      offsets: int64 [N + 1]; text i is `tokens[offsets[i]:offsets[i + 1]]`.
      labels: target of each text, [N] or [N, C]; None for language models.
      pad_id: token used for padding; it is masked, so its value does not matter.
      learnt: whether each token is a target, bool; None: all are.
      positions: place of each token within its example, int32; None: a text is one example.
      tags: class of each token, int64, -100 where it has none; None where only texts have targets.
    """

    tokens: Tensor
    offsets: Tensor
    labels: Tensor | None
    pad_id: int
    learnt: Tensor | None = None
    positions: Tensor | None = None
    tags: Tensor | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Collate; see `ExampleSet.batch`. Nothing is random."""
        rows_B = torch.as_tensor(indices, dtype=torch.int64)
        start_B = self.offsets[rows_B]
        length_B = self.offsets[rows_B + 1] - start_B
        steps_T = torch.arange(int(length_B.max()) if len(rows_B) else 0)
        mask_BT = steps_T < length_B[:, None]
        places_BT = torch.where(mask_BT, start_B[:, None] + steps_T, 0)
        ids_BT = torch.where(mask_BT, self.tokens[places_BT].long(), self.pad_id)
        found = {"input_ids": ids_BT, "attention_mask": mask_BT.long()}
        if self.labels is not None:
            return {**found, "labels": self.labels[rows_B]}
        if self.tags is not None:
            return {**found, "labels": torch.where(mask_BT, self.tags[places_BT], -100)}
        target_BT = mask_BT if self.learnt is None else mask_BT & self.learnt[places_BT]
        if self.positions is not None:
            position_BT = torch.where(mask_BT, self.positions[places_BT].long(), 0)
            found["position_ids"] = position_BT
            target_BT = target_BT & (position_BT > 0)  # nothing before it in its own example
        return {**found, "labels": torch.where(target_BT, ids_BT, -100)}

    def lengths(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of tokens of each text."""
        rows_B = torch.from_numpy(indices)
        found: npt.NDArray[np.int64] = (self.offsets[rows_B + 1] - self.offsets[rows_B]).numpy()
        return found


@dataclass(frozen=True)
class TextPairs:
    """Texts that are read, each with one that is written.

    Batches have `input_ids` and `attention_mask` [B, T] of the first, and `labels` [B, S]: the
    tokens of the second, -100 on padding.

    Attributes:
      read: the first texts.
      written: the second texts, as many.
    """

    read: TextExamples
    written: TextExamples

    def __len__(self) -> int:
        return len(self.read)

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Collate; see `ExampleSet.batch`. Nothing is random."""
        read, written = (each.batch(indices, seed=seed) for each in (self.read, self.written))
        return {**read, "labels": written["labels"]}

    def lengths(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the number of tokens of each pair."""
        found: npt.NDArray[np.int64] = self.read.lengths(indices) + self.written.lengths(indices)
        return found


def flat_tokens(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return (tokens, offsets) of token lists, in the form of `TextExamples`."""
    lengths = torch.tensor([len(text) for text in texts], dtype=torch.int64)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    tokens = torch.tensor([token for text in texts for token in text], dtype=torch.int32)
    return tokens, offsets
