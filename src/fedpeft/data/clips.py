"""Clips: from the values of a source to `pixel_values` [B, T, C, H, W].

    frames of a clip   0 1 2 3 4 5 6 7 8 9     divided into T equal segments
    T = 3              |---x--|--x--|--x--|    evaluation: the middle frame of each segment
                       |-x----|x----|x----|    training with a frame offset: one random place

A clip is an array [frames, H, W], [frames, H, W, C] or [frames, C, H, W] of values 0 to 255, or an
object that returns its frames (`ClipFile`). All frames of a clip are cropped and mirrored alike.
Only the frames that are needed stay in memory; where these exceed a limit, each clip is decoded
again for every batch. This is our own design: the paper has no video experiment.
Legend: B clips, T frames of the model, L frames of a clip, F frames of all clips, H height,
W width, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fedpeft.core import seeds
from fedpeft.core.errors import DataError
from fedpeft.data.images import MEMORY_LIMIT, Canvas, LazyPixels, Pixels, StoredPixels
from fedpeft.data.tables import Column
from fedpeft.data.transforms import View, apply_view
from fedpeft.models.tasks import Batch


@runtime_checkable
class Clip(Protocol):
    """A clip that is decoded on demand."""

    def frames(self) -> Sequence[object]:
        """Return its frames, as pictures or arrays [H, W] or [H, W, C]."""
        ...


@dataclass(frozen=True)
class StoredClips:
    """The decoded frames of all clips, one after the other.

    Attributes:
      pixels: all frames, uint8 [F, H, W, C].
      offsets: int64 [N + 1]; clip i has the frames from `offsets[i]` up to `offsets[i + 1]`.
      num_frames: number of frames that the model takes, T.
    """

    pixels: StoredPixels
    offsets: Tensor
    num_frames: int

    def read(self, rows_B: Tensor, places_B: Tensor) -> Tensor:
        """Return frames, uint8 [B, T, H, W, C].

        Args:
          rows_B: rows of the table, int64.
          places_B: position of the frame within its segment, in [0, 1).
        """
        start_B = self.offsets[rows_B]
        lengths_B = self.offsets[rows_B + 1] - start_B
        picked_BT = pick_frames(lengths_B, self.num_frames, places_B) + start_B[:, None]
        return self.pixels.tensor[picked_BT]


@dataclass(frozen=True)
class LazyClips:
    """Clips that are decoded each time they are read; otherwise like `StoredClips`."""

    column: Column
    canvas: Canvas
    num_frames: int

    @property
    def pixels(self) -> Pixels:
        """The first frame of each clip, for the pixel scale and for statistics of the pictures."""
        return LazyPixels(_FirstFrames(self.column), self.canvas, self.canvas.full_scale)

    def read(self, rows_B: Tensor, places_B: Tensor) -> Tensor:
        """Return uint8 [B, T, H, W, C]; see `StoredClips.read`."""
        found = [
            _decode(self.column[row], row, self.canvas, self.num_frames, places_B[i : i + 1])
            for i, row in enumerate(rows_B.tolist())
        ]
        return torch.stack(found)


Clips = StoredClips | LazyClips


@dataclass(frozen=True)
class ClipExamples:
    """Clips with classes; batches have `pixel_values` [B, T, C, H, W] and `labels` [B].

    Attributes:
      clips: the clips before cropping and normalising.
      labels: class of each clip, int64 [N].
      view: how frames are cropped, mirrored and normalised, all frames of a clip alike.
      frame_offset: whether training draws a random position within the segments for the frames.
    """

    clips: Clips
    labels: Tensor
    view: View
    frame_offset: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int], *, seed: int | None) -> Batch:
        """Collate; see `ExampleSet.batch`."""
        rows_B = torch.as_tensor(indices, dtype=torch.int64)
        places_B = torch.full(rows_B.shape, 0.5)
        if seed is not None and self.frame_offset:
            places_B = seeds.uniforms(rows_B + seeds.derive(seed, "frames"), 1)[:, 0]
        frames_BTHWC = self.clips.read(rows_B, places_B)
        num_frames = frames_BTHWC.shape[1]
        rows_F = rows_B.repeat_interleave(num_frames)
        values = apply_view(frames_BTHWC.flatten(0, 1), self.view, rows_F, seed=seed)
        return {
            "pixel_values": values.view(len(rows_B), num_frames, *values.shape[1:]),
            "labels": self.labels[rows_B],
        }


def pick_frames(lengths_B: Tensor, num_frames: int, places_B: Tensor) -> Tensor:
    """Return the indices of the frames to take, int64 [B, T]: one in each of T equal segments.

    From a clip of T frames all are taken, whatever the places.

    Args:
      lengths_B: number of frames of each clip, int64, >= `num_frames`.
      num_frames: number of frames to take from each clip, T.
      places_B: position of the frame within its segment, in [0, 1).
    """
    steps_BT = torch.arange(num_frames) + places_B[:, None].double()
    picked_BT = (steps_BT * lengths_B[:, None] / num_frames).floor().long()
    return torch.minimum(picked_BT, lengths_B[:, None] - 1)


def read_clips(
    column: Column,
    canvas: Canvas,
    num_frames: int,
    *,
    whole: bool,
    memory_limit: int = MEMORY_LIMIT,
) -> Clips:
    """Decode a column of clips, or return one that decodes on demand where memory would not do.

    Args:
      column: arrays or `Clip`s.
      canvas: size, channels and scale of a frame.
      num_frames: number of frames that the model takes, T.
      whole: whether every frame is needed, or only those that evaluation takes.
      memory_limit: most bytes of decoded frames to keep in memory.

    Raises:
      DataError: if the column is empty; or for the first value that is no clip, a clip that is too
        short, or one with frames of several sizes.
    """
    if not len(column):
        raise DataError("data.source: a split has no clips")
    frame_bytes = canvas.height * canvas.width * canvas.channels
    kept = num_frames
    if whole:
        kept = max(num_frames, len(_frames(column[0], 0, num_frames)))
    if len(column) * kept * frame_bytes > memory_limit:
        _decode(column[0], 0, canvas, num_frames, torch.tensor([0.5]))
        return LazyClips(column, canvas, num_frames)
    places = None if whole else torch.tensor([0.5])
    parts = [_decode(clip, row, canvas, num_frames, places) for row, clip in enumerate(column)]
    lengths = torch.tensor([len(part) for part in parts])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return StoredClips(StoredPixels(torch.cat(parts), canvas.full_scale), offsets, num_frames)


@dataclass(frozen=True)
class _FirstFrames:
    """The first frame of every clip, as a column."""

    column: Column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: int, /) -> object:
        return _frames(self.column[index], index, 1)[0]

    def __iter__(self) -> Iterator[object]:
        return (self[row] for row in range(len(self)))


def _decode(
    clip: object, row: int, canvas: Canvas, num_frames: int, places: Tensor | None
) -> Tensor:
    """Return the frames at some places, or all of them (None), uint8 [T or L, H, W, C]."""
    frames = _frames(clip, row, num_frames)
    picked = torch.arange(len(frames))
    if places is not None:
        picked = pick_frames(torch.tensor([len(frames)]), num_frames, places)[0]
    try:
        return LazyPixels(frames, canvas, canvas.full_scale).read(picked)
    except DataError as error:
        raise DataError(f"{_where(clip, row)}: a frame cannot be read: {error}") from error


def _frames(clip: object, row: int, least: int) -> Sequence[object]:
    """Return a clip's frames, after a check of their number and size.

    Raises:
      DataError: if the value is no clip, or has fewer than `least` frames or frames of mixed sizes.
    """
    where = _where(clip, row)
    if isinstance(clip, Clip):
        frames = list(clip.frames())
    else:
        array = np.asarray(clip)
        if array.dtype.kind not in "ui" or array.ndim not in (3, 4):
            raise DataError(
                f"{where} is an array of {array.dtype}{list(array.shape)}; allowed are whole "
                "numbers of 0 to 255, [frames, height, width], [frames, height, width, channels] "
                "or [frames, channels, height, width]"
            )
        frames = list(array)
    if len(frames) < least:
        raise DataError(
            f"{where} has {len(frames)} frames; the model takes {least}: give longer clips, or a "
            "model of fewer frames"
        )
    sizes = sorted({_size(frame) for frame in frames})
    if len(sizes) > 1:
        found = " and ".join(" x ".join(map(str, size)) for size in sizes[:2])
        raise DataError(f"{where} has frames of {found} pixels; all frames of a clip need one size")
    return frames


def _size(frame: object) -> tuple[int, ...]:
    """Return the shape of an array, or (height, width) of a picture."""
    if isinstance(frame, np.ndarray):
        return tuple(int(extent) for extent in frame.shape)
    width, height = getattr(frame, "size", (0, 0))
    return (height, width)


def _where(clip: object, row: int) -> str:
    name = getattr(clip, "path", None)
    return f"data.source: clip {name or row}"
