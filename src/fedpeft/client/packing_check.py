"""Packed examples: refused for a model that would not read each as if it stood alone.

    loss(a) + loss(b)  =  loss(row of a and b)         a model that mixes them gives another number

What a model does with positions and masks follows from its code, which is the library's: some
ignore them (Mamba, ALiBi), some put learnt tokens in front (prompt tuning), some have windows that
a given mask replaces. So the equation is tried, on made-up tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedpeft.core.errors import DataError
from fedpeft.data.examples import ExampleSet
from fedpeft.data.tensors import TextExamples
from fedpeft.models.tasks import Batch
from fedpeft.tuning.tuned import TunedModel

_SAME = {torch.float32: 1e-5, torch.float64: 1e-9}
_ROUGHLY = 3e-2
_LENGTHS = (7, 4, 5)
_WINDOWS = ("sliding_window", "attention_window", "attention_chunk_size", "window_size")
_ADVICE = "set data.packing = false"


def check_packed(tuned: TunedModel, examples: ExampleSet) -> None:
    """Check that a model reads packed examples one by one; any other examples are fine.

    Args:
      tuned: the model that trains on them.
      examples: the training examples.

    Raises:
      DataError: if it does not.
    """
    if not isinstance(examples, TextExamples) or examples.positions is None:
        return
    config = getattr(tuned.loaded.module, "config", None)
    longest = 1 + int(examples.positions.max()) if len(examples.positions) else 0
    for key in _WINDOWS:
        window = getattr(config, key, None)
        if isinstance(window, int) and 0 < window < longest:
            raise DataError(
                f"data.packing: found true, but the model attends to {window} tokens at most "
                f"({key}) and an example has {longest}: its window would be lost; {_ADVICE}, or "
                f"data.max_length = {window}"
            )
    texts = _texts(tuned)
    try:
        alone, packed = _loss(tuned, _padded(texts)), _loss(tuned, _packed(texts))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"data.packing: found true, but {_name(tuned)} cannot be run on packed examples "
            f"({type(error).__name__}); {_ADVICE}"
        ) from error
    allowed = _SAME.get(next(tuned.model.parameters()).dtype, _ROUGHLY)
    if not abs(alone - packed) <= allowed * abs(alone):
        raise DataError(
            f"data.packing: found true, but {_name(tuned)} does not read packed examples as it "
            f"reads each alone (losses {packed:.6g} and {alone:.6g}); {_ADVICE}"
        )


def _name(tuned: TunedModel) -> str:
    return f"{type(tuned.loaded.module).__name__} with tuning.method = {tuned.method!r}"


def _texts(tuned: TunedModel) -> list[Tensor]:
    """Draw a few short texts from the model's vocabulary."""
    embedding = tuned.loaded.module.get_input_embeddings()  # type: ignore[operator]  # of the library
    generator = torch.Generator().manual_seed(0)
    high = int(getattr(embedding, "num_embeddings", 2))
    device = next(tuned.model.parameters()).device
    return [torch.randint(0, high, (n,), generator=generator).to(device) for n in _LENGTHS]


def _padded(texts: list[Tensor]) -> Batch:
    pad = torch.nn.utils.rnn.pad_sequence
    ids_BT = pad(texts, batch_first=True)
    mask_BT = pad([torch.ones_like(text) for text in texts], batch_first=True)
    labels_BT = ids_BT.masked_fill(mask_BT == 0, -100)
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}


def _packed(texts: list[Tensor]) -> Batch:
    ids_1T = torch.cat(texts)[None]
    position_1T = torch.cat([torch.arange(len(text), device=ids_1T.device) for text in texts])[None]
    return {
        "input_ids": ids_1T,
        "attention_mask": torch.ones_like(ids_1T),
        "position_ids": position_1T,
        "labels": ids_1T.masked_fill(position_1T == 0, -100),
    }


def _loss(tuned: TunedModel, batch: Batch) -> float:
    with torch.no_grad():
        return float(tuned.loaded.task.score(tuned.model, batch).loss_B.double().sum())
