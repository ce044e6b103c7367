"""A peft delta on disk: the unmodified library reproduces the tuned model's outputs."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from fedpeft.core.errors import TuningError
from fedpeft.tuning.methods import TuningRequest, tune
from fedpeft.tuning.peft_export import save_peft
from fedpeft.tuning.tuned import read_delta, write_delta
from model_zoo import KINDS, batch_of, make_kind

CASES = [
    ("lora", "vit"),
    ("dora", "plain"),
    ("ia3", "bert"),
    ("vera", "llama"),
    ("ln_tuning", "vit"),
    ("prompt_tuning", "bert"),
    ("prefix_tuning", "llama"),
    ("p_tuning", "bert"),
]


@pytest.fixture
def saved(request, make, tmp_path):
    method, kind = request.param
    options = {"target_modules": ["second"]} if kind == "plain" else {}
    tuned = tune(make(kind), TuningRequest(method, options, seed=1))
    noise = torch.randn(tuned.spec.num_params, generator=torch.Generator().manual_seed(3))
    write_delta(tuned, read_delta(tuned) + 0.05 * noise)
    save_peft(tuned, tmp_path, base="some/base")
    return tuned, kind, tmp_path


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("saved", CASES, ids="-".join, indirect=True)
def test_stock_library_gives_equal_outputs(saved, make, batch_for):
    from peft import PeftModel

    tuned, kind, folder = saved
    stock = PeftModel.from_pretrained(make(kind).module, folder).eval()
    inputs = {name: v for name, v in batch_for(kind).items() if name != "labels"}
    expected = tuned.model(**inputs).logits
    torch.testing.assert_close(stock(**inputs).logits, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(make(kind).module(**inputs).logits, expected, atol=1e-3)


@pytest.mark.parametrize("saved", [("lora", "vit")], ids="-".join, indirect=True)
def test_config_names_the_base_and_the_head(saved):
    config = json.loads((saved[2] / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/base"
    assert config["modules_to_save"] == ["classifier"]


def test_methods_of_ours_are_not_the_librarys(make, tmp_path):
    with pytest.raises(TuningError, match="does not have method adapter"):
        save_peft(tune(make("vit"), TuningRequest("adapter")), tmp_path, base="x")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("model_type", ["distilbert", "levit", "resnet", "electra"])
def test_stock_library_loads_models_with_unusual_heads_and_layers(model_type, tmp_path):
    from peft import PeftModel

    kind = next(kind for kind in KINDS if kind.model_type == model_type)
    (tmp_path / "base").mkdir()
    loaded = make_kind(kind, tmp_path / "base")
    base, batch = copy.deepcopy(loaded.module), batch_of(loaded)
    tuned = tune(loaded, TuningRequest("lora", {"r": 2}, seed=1))
    write_delta(tuned, read_delta(tuned) + 0.05)
    save_peft(tuned, tmp_path, base="some/base")
    stock = PeftModel.from_pretrained(base, tmp_path).eval()
    inputs = {name: v for name, v in batch.items() if name != "labels"}
    torch.testing.assert_close(stock(**inputs).logits, tuned.model(**inputs).logits)


@pytest.mark.parametrize(("method", "works"), [("lora", False), ("ln_tuning", True)])
def test_a_model_that_stock_peft_cannot_run_is_exported_merged_only(method, works, tmp_path):
    kind = next(kind for kind in KINDS if kind.model_type == "mobilenet_v2")
    tuned = tune(make_kind(kind, tmp_path), TuningRequest(method, seed=1))
    if works:
        save_peft(tuned, tmp_path, base="some/base")
        assert (tmp_path / "adapter_model.safetensors").is_file()
    else:
        with pytest.raises(TuningError, match=r"strides .* `--as merged`"):
            save_peft(tuned, tmp_path, base="some/base")
