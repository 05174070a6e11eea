"""Head search: each trial equals training with its settings, and the best in validation is kept."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from tests.helpers.training.tiny_training import BACKBONE, config, digest
from tlcli.contract.errors import SettingsError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.engine.head import classify_embeddings, train_head
from tlcli.training.engine.head_search import STRENGTHS, Features, HeadSearch, Trial, search_head, search_size, with_head, write_search
from tlcli.training.metrics.scores import loss_and_top1
from tlcli.training.models.network import Network, NetworkConfig, build
from tlcli.training.settings.plan import Plan, resolve_plan

SIZE = Preprocessing(height=64, width=64)


def network_with(head: str, backbone: str = BACKBONE) -> Network:
    torch.manual_seed(0)
    return build(NetworkConfig(backbone=backbone, head=head, num_classes=3, preprocessing=SIZE))


def width(network: Network) -> int:
    with torch.no_grad():
        return network.embed(network.features(torch.zeros(1, 3, 64, 64))).shape[1]


def problem(seed: int, d: int, n: int = 90) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Overlapping classes."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 3, n)
    centres = 0.4 * np.random.default_rng(99).normal(size=(3, d))
    return (5 + 3 * (draw.normal(size=(n, d)) + centres[labels])).astype(np.float32), labels


def plan(**settings: Any) -> Plan:
    return resolve_plan(config(Path("x"), **{"epochs": 4, "lr": 3e-3, **settings}))


def features(network: Network) -> Features:
    return Features([problem(0, width(network))[0]], problem(1, width(network))[0])


LABELS, VAL_LABELS = problem(0, 1)[1], problem(1, 1)[1]


def search(network: Network, heads: tuple[str, ...] = ("linear",), **settings: Any) -> HeadSearch:
    return search_head(network, heads, features, LABELS, VAL_LABELS, plan(**settings), seed=3)


def figures(network: Network) -> tuple[float, float]:
    """Validation top-1 and loss."""
    loss, top1 = loss_and_top1(classify_embeddings(network, features(network).val), torch.from_numpy(VAL_LABELS))
    return top1, loss


@pytest.mark.parametrize("head", ["linear", "mlp:8"])
def test_each_trial_equals_training_with_its_settings(head: str) -> None:
    found = search(network_with(head), (head,))
    trained = [one for one in found.trials if one.method == "adamw"]
    assert len(trained) > 5
    for one in trained:
        alone = network_with(head)
        setting = plan(lr=one.lr, weight_decay=one.weight_decay)
        row = train_head(alone, [features(alone).views[0]], LABELS, features(alone).val, VAL_LABELS, setting, 3).kept
        assert (one.epoch, one.val_top1, one.val_loss) == (row.epoch, row.val_top1, row.val_loss)


def test_the_best_head_in_validation_is_kept() -> None:
    for head in ("linear", "mlp:8"):
        found = search(network_with(head), (head,))
        best = max(one.val_top1 for one in found.trials)
        noise = np.sqrt(best * (1 - best) / len(VAL_LABELS))
        near = [one for one in found.trials if one.val_top1 >= best - noise]
        assert found.chosen.val_loss == min(one.val_loss for one in near)
        top1, loss = figures(found.network)
        assert top1 == found.chosen.val_top1
        assert loss == pytest.approx(found.chosen.val_loss, rel=1e-4)
        assert (found.best.kept.val_top1, found.best.kept.epoch) == (found.chosen.val_top1, found.chosen.epoch)
        assert not found.network.training


def test_logistic_regression_matches_scikit_learn() -> None:
    network = network_with("linear")
    (train,), val = features(network)
    scaler = StandardScaler().fit(train.astype(np.float64))
    fitted = {one.l2: one for one in search(network).trials if one.method == "lbfgs"}
    assert tuple(fitted) == tuple(sorted(STRENGTHS, reverse=True))
    for l2, one in fitted.items():
        reference = LogisticRegression(C=1 / (len(LABELS) * l2), tol=1e-10, max_iter=10_000).fit(scaler.transform(train), LABELS)
        logits = torch.from_numpy(reference.decision_function(scaler.transform(val)))
        loss, top1 = loss_and_top1(logits, torch.from_numpy(VAL_LABELS))
        assert one.val_top1 == pytest.approx(top1)
        assert one.val_loss == pytest.approx(loss, rel=1e-3)


def test_the_network_has_the_head_that_wins() -> None:
    network = network_with("linear")
    found = search(network, epochs=1, lr=1e-8)  # which trains nothing
    assert found.chosen.method == "lbfgs"
    assert found.network is network
    assert figures(network)[0] == found.chosen.val_top1
    assert figures(network)[1] == pytest.approx(found.chosen.val_loss, rel=1e-6)
    assert [row.epoch for row in found.best.rows] == [found.chosen.epoch] == [1]


@pytest.mark.parametrize("bias", [True, False])
def test_a_classifier_may_be_a_convolution_and_may_have_no_bias(bias: bool) -> None:
    network = network_with("linear")
    network.backbone.fc = nn.Conv2d(width(network), 3, 1, bias=bias)
    found = search(network, epochs=1, lr=1e-8)
    assert found.chosen.method == "lbfgs"
    assert figures(found.network)[1] == pytest.approx(found.chosen.val_loss, rel=1e-6)


def test_several_heads_compete_and_no_backbone_changes() -> None:
    network = network_with("linear")
    before = {name: value for name, value in digest(network.backbone).items() if not name.startswith("fc.")}
    found = search(network, ("linear", "mlp:8", "mlp:4"))
    assert {one.head for one in found.trials} == {"linear", "mlp:8", "mlp:4"}
    assert len(found.trials) == search_size(("linear", "mlp:8", "mlp:4"), plan())
    assert found.network.config.head == found.chosen.head
    assert figures(found.network)[0] == found.chosen.val_top1
    for one in (network, found.network):
        assert {name: value for name, value in digest(one.backbone).items() if not name.startswith("fc.")} == before


def test_identical_searches_are_bitwise_identical() -> None:
    first, second = (search(network_with("linear"), ("linear", "mlp:8")) for _ in range(2))
    assert first.trials == second.trials
    assert digest(first.network) == digest(second.network)


def test_ties_keep_the_plans_own_settings() -> None:
    """A different number of random draws before it would give a different network."""
    network = network_with("linear")
    blank = Features([np.zeros((90, width(network)), np.float32)], np.zeros((90, width(network)), np.float32))
    found = search_head(network, ["linear"], lambda _: blank, LABELS, LABELS, plan(weight_decay=0.2), seed=0)
    assert found.trials[0].weight_decay == 0.2
    assert found.trials[0].lr == 3e-3


def test_diverging_settings_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlcli.training.engine.head_search.LR_FACTORS", (1.0, 1e-38))
    found = search(network_with("mlp:8"), ("mlp:8",), lr=1e36)
    assert {one.lr for one in found.trials} == {1e36 * 1e-38}
    assert all(np.isfinite(one.val_loss) for one in found.trials)


@pytest.mark.parametrize("head", ["linear", "mlp:8"])
def test_a_search_in_which_everything_diverges_is_an_error(head: str) -> None:
    def nonsense(network: Network) -> Features:
        return Features([np.full((90, width(network)), np.nan, np.float32)], features(network).val)

    with pytest.raises(SettingsError, match="the loss of every head became NaN or infinite: use a smaller --lr"):
        search_head(network_with(head), [head], nonsense, LABELS, VAL_LABELS, plan(), seed=0)


@pytest.mark.parametrize("backbone", [BACKBONE, "vgg11", "convnext_atto"])
def test_another_head_uses_the_same_features(backbone: str) -> None:
    network = network_with("linear", backbone)
    other = with_head(network, "mlp:8", seed=0)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(other.features(images), network.features(images), rtol=0, atol=0)
        assert other(images).shape == (2, 3)
    assert other.config == network.config.model_copy(update={"head": "mlp:8"})
    assert digest(build(other.config)).keys() == digest(other).keys()  # as it will be loaded
    assert digest(with_head(network, "mlp:8", seed=0)) == digest(other)
    assert with_head(network, "linear", seed=0) is network
    if backbone != "convnext_atto":  # whose own head has a norm
        assert with_head(other, "linear", seed=0).config == network.config


@pytest.mark.parametrize(("backbone", "has", "wanted"), [("vgg11", "linear", "original"), ("convnext_atto", "mlp:8", "linear")])
def test_missing_layers_are_not_replaced_by_random_ones(backbone: str, has: str, wanted: str) -> None:
    with pytest.raises(
        SettingsError, match=f"{backbone} with --head {has} lacks layers that the head '{wanted}' needs: start with --head {wanted}"
    ):
        with_head(network_with(has, backbone), wanted, seed=0)


def test_the_table_has_every_trial(tmp_path: Path) -> None:
    tried = (Trial("linear", "adamw", 3e-4, 0.05, None, 7, 0.95, 0.125), Trial("linear", "lbfgs", None, None, 0.1, 1, 0.96, 0.25))
    write_search(tmp_path / "head_search.csv", tried)
    with (tmp_path / "head_search.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "head": "linear",
        "method": "adamw",
        "lr": "0.0003",
        "weight_decay": "0.05",
        "l2": "",
        "epoch": "7",
        "val_top1": "0.95",
        "val_loss": "0.125",
    }
    assert (second["method"], second["l2"], second["lr"]) == ("lbfgs", "0.1", "")
    assert str(tried[0]) == "linear, adamw, lr 0.0003, weight decay 0.05: validation top-1 95.00%, loss 0.1250"
    assert str(tried[1]) == "linear, lbfgs, L2 0.1: validation top-1 96.00%, loss 0.2500"
