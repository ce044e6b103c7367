from __future__ import annotations

from pathlib import Path

import pytest

from fedpeft.core.errors import ConfigError
from fedpeft.experiment.read import DIGITS, read_experiment
from fedpeft.plan.pictures import draw_layer, write_figures


def test_figures_tell_what_plan_and_modules_hold(tmp_path: Path) -> None:
    sets = ["model.name=preset:vit-base-patch16-224", "model.num_labels=100"]
    sets.append("data.source=uoft-cs/cifar100")  # elsewhere: no digits are drawn 224 pixels wide
    files = write_figures(read_experiment(DIGITS, sets), tmp_path)
    assert [file.name for file in files] == [
        "fig1-cost.svg", "fig1-cost.png", "fig2-layer.svg", "fig2-layer.png"
    ]  # fmt: skip
    assert "0.676 MB = 0.645 MiB" in files[0].read_text()
    layer = files[2].read_text()
    assert "102,912" in layer and "adapter, 96 wide" in layer and "10 prompts" in layer


def test_small_messages_are_told_in_kilobytes(tmp_path: Path) -> None:
    files = write_figures(read_experiment(DIGITS, []), tmp_path)
    assert "5.16 kB = 5.04 KiB,  618 times less" in files[0].read_text()
    assert "3.19 MB = 3.04 MiB" in files[0].read_text()


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama", "tiny-shufflenet"])
def test_other_families_are_refused(model: str, tmp_path: Path) -> None:
    sets = [f"model.name=preset:{model}", "model.num_labels=2"]
    with pytest.raises(ConfigError, match="figures need a vision transformer"):
        write_figures(read_experiment(DIGITS, sets), tmp_path)
    with pytest.raises(ConfigError, match="figures need a vision transformer"):
        draw_layer(read_experiment(DIGITS, sets))


def test_a_picture_of_the_user_is_not_replaced(tmp_path: Path) -> None:
    experiment = read_experiment(DIGITS, [])
    write_figures(experiment, tmp_path)
    for name in ("fig1-cost.svg", "fig1-cost.png"):  # the others are ours, and may be
        (tmp_path / name).write_bytes(b"mine")
        with pytest.raises(ConfigError, match="is no picture of fedpeft"):
            write_figures(experiment, tmp_path)
        assert (tmp_path / name).read_bytes() == b"mine"
        (tmp_path / name).unlink()
