"""The frozen prefix of a run: whether its output is kept, where, and its size.

    auto      in memory if all of it fits into client.prefix_memory, else on disk
    memory    what fits into client.prefix_memory; the rest is computed every time
    disk      what fits into client.prefix_disk, in a folder that later runs use too
    off       every pass starts from the examples

The test set is kept first, then client after client. Features on disk are named by a digest of
everything that they depend on: frozen weights, configuration, examples with their transforms, order
of computation, device, precision and versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedpeft.client.frozen.feature_file import (
    FeatureFile,
    file_in_folder,
    memory_file,
    private_file,
)
from fedpeft.client.frozen.prefix import (
    CHUNK,
    Kept,
    Layout,
    PrefixExamples,
    PrefixViews,
    lay_out,
    prefix_of,
    token_counts,
)
from fedpeft.client.private import stand_in
from fedpeft.client.settings import LocalSettings
from fedpeft.core import seeds
from fedpeft.core.errors import FedpeftError
from fedpeft.core.text import byte_words
from fedpeft.data.clips import LazyClips
from fedpeft.data.drawn import DrawnClients
from fedpeft.data.examples import ExampleSet, Federated
from fedpeft.data.images import LazyPixels
from fedpeft.experiment.experiment import Experiment
from fedpeft.experiment.privacy import PRIVACY_MODES
from fedpeft.models.families import block_of, canonical, canonical_names
from fedpeft.models.fingerprint import fingerprint
from fedpeft.models.loaded import TextInput
from fedpeft.models.pooling import pooling_of
from fedpeft.tuning.prefix import (
    NoPrefix,
    Split,
    find_split,
    probe_batch,
    rest_equals_whole,
    rest_of,
)
from fedpeft.tuning.tuned import TunedModel

IntArray = npt.NDArray[np.int64]

_MIB = 2**20
_FORMAT = "fedpeft-prefix-1"
_PADDED = (
    "no frozen prefix: texts are padded at their beginning, so that features depend on batches"
)
_FORKS = sys.platform == "linux"
"""Whether workers are forked, and share a table that was opened before."""


@dataclass(frozen=True)
class PrefixNote:
    """The decision on a frozen prefix, for plans and summaries.

    Attributes:
      words: one line of text.
      num_bytes: size of the kept features; 0 without a prefix, None where the data is not here.
    """

    words: str
    num_bytes: int | None = 0

    def as_json(self) -> dict[str, object]:
        """Return the keys of `plan --json` and `summary.json`."""
        return {"prefix": self.words, "prefix_cache_bytes": self.num_bytes}


@dataclass(frozen=True)
class Prefixed:
    """The model that trains and its examples: what follows the prefix, where there is one.

    Attributes:
      tuned: the rest of the model, or the whole one.
      data: its examples: kept features where there is a prefix.
      note: the decision.
    """

    tuned: TunedModel
    data: Federated
    note: PrefixNote


@dataclass(frozen=True)
class _Layouts:
    test: Layout
    train: Layout
    num_views: int
    in_memory: bool

    def num_bytes(self, width: int) -> int:
        return self.test.bytes(width) + self.num_views * self.train.bytes(width)


def with_prefix(
    experiment: Experiment, tuned: TunedModel, data: Federated, settings: LocalSettings
) -> Prefixed:
    """Cut the frozen prefix off a run's model where there is one, and keep its output.

    Args:
      experiment: resolved; its `client.prefix_*` keys and its seed are read.
      tuned: the model, on the CPU.
      data: of all clients.
      settings: device and precision of the prefix.
    """
    if reason := _switched_off(experiment, augmented=data.augmented):
        return Prefixed(tuned, data, PrefixNote(reason))
    private = PRIVACY_MODES[experiment.privacy.mode].unit is not None
    split = _checked_split(tuned, data, private=private)
    if isinstance(split, NoPrefix):
        return Prefixed(tuned, data, PrefixNote(f"no frozen prefix: {split.reason}"))
    layouts = _layouts(experiment, split, data)
    if layouts is None:
        return Prefixed(tuned, data, PrefixNote(_PADDED))
    open_table = _opener(experiment, tuned, split, layouts)
    prefix = prefix_of(tuned, split, settings)

    def stored(examples: ExampleSet, layout: Layout, seed: int | None) -> PrefixExamples:
        table = open_table(examples, layout, seed)
        return PrefixExamples(examples, split, prefix, Kept(layout, table), seed)

    test = stored(data.test, layouts.test, None)
    views = [stored(data.train, layouts.train, seed) for seed in _view_seeds(experiment, data)]
    train = PrefixViews(views) if len(views) > 1 else views[0]
    note = PrefixNote(_words(split, layouts, data), layouts.num_bytes(split.width))
    return Prefixed(rest_of(tuned, split), replace(data, train=train, test=test), note)


def planned_prefix(experiment: Experiment, tuned: TunedModel, data: Federated | None) -> PrefixNote:
    """Predict the decision of `with_prefix` from shapes.

    Args:
      experiment: resolved.
      tuned: on the `meta` device.
      data: of all clients; None where it is not on this machine.
    """
    transforms = experiment.data.transforms
    drawn = bool(transforms.random_crop is not None or transforms.flip or transforms.frame_offset)
    if reason := _switched_off(experiment, augmented=data.augmented if data else drawn):
        return PrefixNote(reason)
    batch = probe_batch(tuned)
    split = find_split(tuned, batch) if batch is not None else NoPrefix("its inputs are not known")
    if isinstance(split, NoPrefix):
        return PrefixNote(f"no frozen prefix: {split.reason}")
    if data is not None:
        layouts = _layouts(experiment, split, data)
        if layouts is None:
            return PrefixNote(_PADDED)
        return PrefixNote(_words(split, layouts, data), layouts.num_bytes(split.width))
    inputs = tuned.loaded.inputs
    longest = inputs.max_length if isinstance(inputs, TextInput) else 1
    tokens = (experiment.data.max_length or longest) if split.text else split.length
    each = f"at most {byte_words(4 * tokens * split.width)} each"
    return PrefixNote(f"{split.words}, once an example: {each}", None)


def cache_folder() -> Path:
    """Return the folder of features on disk: `$FEDPEFT_CACHE/prefix`, or in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FEDPEFT_CACHE") or Path(home) / "fedpeft") / "prefix"


def prefix_digest(tuned: TunedModel, split: Split) -> str:
    """Return the SHA-256 (hex) of the frozen weights before the cut and the configuration."""
    family, config = tuned.loaded.family, getattr(tuned.loaded.module, "config", None)
    last = max((block_of(canonical(family, f"{path}.")) or 0 for path in split.skipped), default=0)
    tensors = tuned.model.state_dict(keep_vars=True)
    exclude = {
        name
        for name, path in canonical_names(tuned.model, family).items()
        if tensors[path].requires_grad or (block_of(name) or 0) > last
    }
    to_dict = getattr(config, "to_dict", None)
    described = to_dict() if to_dict is not None else repr(config)
    parts = [
        fingerprint(tuned.model, family, exclude=exclude),
        type(tuned.model).__qualname__,
        described,
        [split.sites, split.widths, split.last_token],
        pooling_of(tuned.loaded.module),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def content_digest(content: object) -> str | None:
    """Return the SHA-256 (hex) of examples and their transforms; None where there is none.

    Dataclasses of tensors, arrays, texts and numbers have one; a data set of the user's own has
    none, nor has one that is decoded on demand, from files that may change.
    """
    digest = hashlib.sha256()
    return digest.hexdigest() if _add(digest, content) else None


def _add(digest: hashlib._Hash, content: object) -> bool:
    digest.update(f"\0{type(content).__qualname__}\0".encode())
    if isinstance(content, Tensor):
        content = content.detach().cpu().numpy()
    if isinstance(content, np.ndarray) and content.dtype.kind != "O":
        digest.update(f"{content.dtype}{content.shape}".encode())
        digest.update(np.ascontiguousarray(content).data)
        return True
    if isinstance(content, LazyPixels | LazyClips):
        return False
    if is_dataclass(content):
        return all(_add(digest, getattr(content, field.name)) for field in fields(content))
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        return all(_add(digest, item) for item in content)
    if isinstance(content, str | int | float | None):
        digest.update(repr(content).encode())
        return True
    return False


def _switched_off(experiment: Experiment, *, augmented: bool) -> str:
    client = experiment.client
    if client.prefix_cache == "off":
        return "off: client.prefix_cache"
    if not _FORKS and (experiment.engine.workers or 1) > 1:
        return "off: several workers share features on Linux only; with engine.workers = 1 it is on"
    if augmented and client.prefix_views is None:
        return "off: training examples are augmented; client.prefix_views keeps a number of views"
    return ""


def _checked_split(tuned: TunedModel, data: Federated, *, private: bool) -> Split | NoPrefix:
    """Cut the model, and compare losses and gradients with and without the cut on two examples.

    The server of a deployment has no training examples, and uses two of the test set. Under privacy
    two made-up examples of their shapes are used: outputs name the decision.
    """
    examples, rows = data.train, next((list(r[:2]) for r in data.clients.values() if len(r)), [])
    if not rows:
        examples, rows = data.test, list(range(min(2, len(data.test))))
    if not rows:
        return NoPrefix("there are no examples here")
    try:
        batch = examples.batch(rows, seed=None)
        batch = stand_in(batch) if private else batch
        split = find_split(tuned, batch)
        if isinstance(split, NoPrefix) or rest_equals_whole(tuned, split, batch):
            return split
    except (FedpeftError, ValueError, RuntimeError, OSError) as error:  # no reason to end the run
        return NoPrefix(f"the first two examples could not be run: {error}")
    return NoPrefix("starting from its features gave other numbers than the whole model")


def _view_seeds(experiment: Experiment, data: Federated) -> list[int | None]:
    if not data.augmented:
        return [None]
    views = range(experiment.client.prefix_views or 1)
    return [seeds.derive(experiment.seed, "prefix view", view) for view in views]


def _layouts(experiment: Experiment, split: Split, data: Federated) -> _Layouts | None:
    """Decide what is kept and where; None if features depend on the padding of texts."""
    client, width = experiment.client, split.width
    groups = _groups(data)
    none_N = np.ones(len(data.train), np.int64)  # for a server whose sites have the examples
    train_N = token_counts(data.train, split) if any(map(len, groups)) else none_N
    test_N = token_counts(data.test, split)
    if train_N is None or test_N is None:
        return None
    num_views = len(_view_seeds(experiment, data))

    def fit(budget: int) -> _Layouts:
        test = lay_out(test_N, _chunks(len(test_N)), width=width, budget=budget)
        left = (budget - test.bytes(width)) // num_views
        train = lay_out(train_N, groups, width=width, budget=left)
        return _Layouts(test, train, num_views, budget == memory)

    memory, disk = client.prefix_memory * _MIB, client.prefix_disk * _MIB
    if client.prefix_cache == "disk":
        return replace(fit(disk), in_memory=False)
    found = fit(memory)
    if client.prefix_cache == "memory" or disk <= memory or _kept(found) == _all(data):
        return found
    return fit(disk)


def _groups(data: Federated) -> Sequence[IntArray]:
    """Return the rows that belong together: each client's, or neighbours in a shared table."""
    if isinstance(data.clients, DrawnClients):
        return _chunks(len(data.train))
    return list(data.clients.values())


def _chunks(num_rows: int) -> Sequence[IntArray]:
    return [np.arange(i, min(i + CHUNK, num_rows)) for i in range(0, num_rows, CHUNK)]


def _kept(layouts: _Layouts) -> int:
    return len(layouts.train.rows) + len(layouts.test.rows)


def _all(data: Federated) -> int:
    return sum(map(len, _groups(data))) + len(data.test)


def _opener(
    experiment: Experiment, tuned: TunedModel, split: Split, layouts: _Layouts
) -> Callable[[ExampleSet, Layout, int | None], FeatureFile]:
    """Return a function that opens the table of some examples, in memory or in the cache."""
    width, limit = split.width, experiment.client.prefix_disk * _MIB
    common: dict[str, object] = {}
    if not layouts.in_memory:
        common = {
            "format": _FORMAT,
            "prefix": prefix_digest(tuned, split),
            "device": experiment.engine.device.partition(":")[0],
            "precision": experiment.engine.precision,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        }

    def mapped(examples: ExampleSet, layout: Layout, seed: int | None) -> npt.NDArray[np.uint8]:
        size = layout.bytes(width)
        if layouts.in_memory:
            return memory_file(size)
        if (content := content_digest(examples)) is None:
            return private_file(cache_folder(), size)
        key = _key({**common, "examples": content, "view": seed, "order": content_digest(layout)})
        return file_in_folder(cache_folder(), key, size, limit)

    return lambda examples, layout, seed: FeatureFile(
        mapped(examples, layout, seed), layout.starts, width
    )


def _key(parts: Mapping[str, object]) -> str:
    text = json.dumps(parts, sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()} {text}"


def _words(split: Split, layouts: _Layouts, data: Federated) -> str:
    place = "in memory" if layouts.in_memory else f"in {cache_folder()}"
    kept, every = _kept(layouts), _all(data)
    share = f"{every:,} examples" if kept == every else f"{kept:,} of {every:,} examples"
    views = f", {layouts.num_views} views" if layouts.num_views > 1 else ""
    size = byte_words(layouts.num_bytes(split.width))
    return f"{split.words}, once for each of {share}{views}: {size} {place}"
