"""The law of packing: a row's loss and gradient are the sums of those of its examples."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fedpeft.models.packed import packed_mask
from fedpeft.models.tasks import CAUSAL_LM

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 40}
LENGTHS = (9, 5, 7)


def model_of(kind: str, **more: object) -> torch.nn.Module:
    config = AutoConfig.for_model(kind, **(GPT2 if kind == "gpt2" else SIZES), **more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config).double().eval()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return made


def examples() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for length in LENGTHS:
        ids = torch.randint(1, 40, (1, length), generator=generator)
        labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) < 0.4, -100)
        labels[:, 0] = -100
        found.append({"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)})
    return found


def row(parts: list[dict[str, torch.Tensor]], *, padding: int = 3) -> dict[str, torch.Tensor]:
    fills = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    joined = {
        name: torch.cat([*(part[name] for part in parts), torch.full((1, padding), fill)], 1)
        for name, fill in fills.items()
    }
    places = [torch.arange(part["labels"].shape[1]) for part in parts]
    joined["position_ids"] = torch.cat([*places, torch.zeros(padding, dtype=torch.int64)])[None]
    return joined


def loss_and_gradient(model, *batches) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scores = [CAUSAL_LM.score(model, batch) for batch in batches]
    loss = sum(each.loss_B.sum() for each in scores)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    count = sum(each.count_B.sum() for each in scores)
    return loss.detach(), torch.cat([each.flatten() for each in gradients]), count


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_a_packed_row_has_the_loss_and_the_gradient_of_its_examples(kind, attention):
    model, parts = model_of(kind, attn_implementation=attention), examples()
    loss, gradient, count = loss_and_gradient(model, *parts)
    packed = loss_and_gradient(model, row(parts))
    near = 1e-6 if attention == "eager" else 1e-10  # its softmax is in single precision
    assert torch.allclose(packed[0], loss, rtol=near) and packed[2] == count
    assert torch.allclose(packed[1], gradient, rtol=near, atol=near)
    crossed = {name: value for name, value in row(parts).items() if name != "position_ids"}
    assert not torch.allclose(loss_and_gradient(model, crossed)[0], loss, rtol=1e-4)  # control


def test_positions_that_do_not_begin_again_would_show():
    model, parts = model_of("gpt2"), examples()  # learnt places: rotary ones see distances alone
    loss, _, _ = loss_and_gradient(model, *parts)
    packed = row(parts)
    packed["position_ids"][0, LENGTHS[0] + 1 : LENGTHS[0] + 3] += 20
    assert not torch.allclose(loss_and_gradient(model, packed)[0], loss, rtol=1e-3)


def test_the_mask_of_a_row_is_that_of_its_picture():
    mask = packed_mask(
        torch.tensor([[0, 1, 2, 0, 1, 0]]), torch.tensor([[1, 1, 1, 1, 1, 0]]), torch.float32
    )
    assert mask.shape == (1, 1, 6, 6)
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
