"""Learning rate finder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.helpers.training.tiny_training import config, put_colours
from tlcli.contract.errors import SettingsError
from tlcli.training import find_lr
from tlcli.training.engine.lr_finder import steepest, try_rates
from tlcli.training.engine.stage import Batch, Batches, Stage
from tlcli.training.runtime.progress import silent


def test_the_rate_at_which_the_loss_falls_fastest_is_suggested() -> None:
    """The loss falls as a logistic curve over the logarithm of the rate, steepest at 1e-3, and rises from 1e-1."""
    rates = np.logspace(-7, 1, 81)
    losses = 2 / (1 + (rates / 1e-3) ** 0.9) + (rates / 0.3) ** 2
    assert steepest(rates.tolist(), losses.tolist()) == pytest.approx(1e-3, rel=0.3)


def test_a_loss_that_only_rises_is_an_error() -> None:
    with pytest.raises(SettingsError, match="the loss does not decrease at any of the learning rates"):
        steepest([1e-3, 1e-2, 1e-1], [1.0, 2.0, 3.0])


def test_the_test_ends_when_the_loss_diverges_and_restores_the_network() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def batches(epoch: int) -> Batches:
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(5):
            inputs = torch.randn(32, 4, generator=generator)
            yield Batch(inputs, inputs[:, :3].argmax(1))

    def evaluate() -> tuple[float, float]:
        raise AssertionError("nothing is validated")

    groups = [{"params": [model.weight], "lr": 1.0}, {"params": [model.bias], "lr": 0.1}]
    stage = Stage("full", model, torch.optim.SGD(groups, lr=1.0), batches, 5, evaluate, epochs=1, warm_up=0.0)
    curve = try_rates(stage, silent, steps=60)
    assert 1e-3 < curve.suggestion < 10
    assert list(curve.rates) == sorted(curve.rates)
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed) <= 60
    assert stage.optimizer.param_groups[1]["lr"] == pytest.approx(0.1 * stage.optimizer.param_groups[0]["lr"])

    def same(tensor: Tensor, name: str) -> bool:
        return torch.equal(tensor, before[name])

    assert all(same(tensor, name) for name, tensor in model.state_dict().items())


def test_find_lr_draws_a_plot_and_starts_no_run(tmp_path: Path) -> None:
    data, logged = put_colours(tmp_path / "data"), list[str]()
    curve = find_lr(config(data, mode="full"), tmp_path / "lr.png", log=logged.append)
    assert Image.open(tmp_path / "lr.png").size[0] > 500
    assert 1e-4 < curve.suggestion < 0.1
    assert f"--lr {curve.suggestion:.1e}" in logged[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "lr.png"]  # no run is begun


def test_find_lr_refers_to_the_head_search_in_feature_extraction(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--find-lr needs --mode full: for a head on cached features, use --head-search"):
        find_lr(config(tmp_path), tmp_path / "lr.png")
