"""Custom modules."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

from fedpeft.core.errors import ModelError
from fedpeft.models.families import FAMILIES, PLAIN
from fedpeft.models.quiet import zero_dropout
from fedpeft.models.tasks import IMAGE_CLASSIFICATION, classification_task
from fedpeft.models.wrap import wrap_module

TASK = classification_task(lambda model, batch: model(batch["x"]))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.3)
        self.memory = nn.LSTM(4, 4, num_layers=2, dropout=0.2)
        self.num_dropout_layers = 3
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x))


def test_the_callers_module_stays_as_it_is():
    net = Net().double().train()
    loaded = wrap_module(net, task=TASK, head=["head"], name="net")
    with torch.no_grad():
        loaded.module.head.weight.zero_()
    assert net.training
    assert net.head.weight.dtype == torch.float64
    assert net.body[1].p == 0.5
    assert net.head.weight.abs().max() > 0


def test_a_wrapped_module_is_ready():
    loaded = wrap_module(Net(), task=TASK, head=["head"], name="net")
    assert (loaded.family, loaded.head, loaded.source) == (PLAIN, ("head",), "net")
    assert loaded.fresh == frozenset()
    assert loaded.module.head.weight.dtype == torch.float32
    x = torch.randn(4, 3)
    assert torch.equal(loaded.module.train()(x), loaded.module.eval()(x))


def test_dropout_is_off_wherever_a_module_keeps_it():
    module = wrap_module(Net(), task=TASK).module
    assert (module.body[1].p, module.attention.dropout, module.memory.dropout) == (0.0, 0.0, 0.0)


def test_numbers_that_are_no_probabilities_stay():
    net = Net()
    net.num_drops = 3
    zero_dropout(net)
    assert net.num_drops == 3


def test_a_module_of_the_library_gets_its_family(tiny_vit):
    loaded = wrap_module(tiny_vit, task=IMAGE_CLASSIFICATION, head=["classifier"])
    assert loaded.family is FAMILIES["vit"]
    assert tiny_vit.config.hidden_dropout_prob == 0.1


def test_a_misspelt_head_lists_the_nearest():
    with pytest.raises(ModelError, match=r"head 'haed' is not one of its modules; .* head"):
        wrap_module(Net(), task=TASK, head=["haed"])


def test_a_head_without_parameters_is_an_error():
    with pytest.raises(ModelError, match=r"head 'body\.1' has no parameters"):
        wrap_module(Net(), task=TASK, head=["body.1"])


def test_a_model_with_an_adapter_is_sent_to_from_peft():
    wrapped = peft.get_peft_model(Net(), peft.LoraConfig(target_modules=["body.0"]))
    with pytest.raises(ModelError, match=r"wrapped with peft already.*fedpeft\.from_peft\(model\)"):
        wrap_module(wrapped, task=TASK, head=["head"], name="net")
    assert wrap_module(wrapped.unload(), task=TASK, head=["head"], name="net").head == ("head",)
