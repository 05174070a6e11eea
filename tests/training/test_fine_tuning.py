"""Fine-tuning: the plan, which layers train, which stay frozen, and reproducibility."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn import metrics
from torch import nn

from tests.helpers.training.small_images import put_classes
from tests.helpers.training.tiny_training import BACKBONE, check_it_is_read_back, config, digest, put_colours
from tlcli import training
from tlcli.contract.errors import DeviceError, NotFoundError, SettingsError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training import RunResult, finetune, load_run
from tlcli.training.engine.head import StandardisedHead, train_head
from tlcli.training.engine.optimizer import layered_optimizer, rate_factor
from tlcli.training.engine.stage import Best
from tlcli.training.metrics.scores import EpochRow, score
from tlcli.training.models.network import NetworkConfig, build
from tlcli.training.models.weights import load_backbone
from tlcli.training.runtime.device import keep_to_usable_cores, torch_device
from tlcli.training.settings.plan import FULL_EPOCHS, HEAD_FIRST_EPOCHS, SCRATCH_LR, resolve_plan

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> Path:
    """Checkpoint of the tiny network, which the settings treat as pretrained weights."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    state = load_backbone(config(colours))[0].state_dict()
    for name, tensor in state.items():  # of batch norms that have seen images
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    safetensors.torch.save_file(state, path)
    return path


def checkpoint(result: RunResult) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(result.path / "checkpoint.safetensors")


def test_the_package_exports_every_name_in_all() -> None:
    assert [name for name in training.__all__ if getattr(training, name).__name__ != name] == []
    with pytest.raises(AttributeError, match=r"module 'tlcli\.training' has no attribute 'nonsense'"):
        training.nonsense  # noqa: B018


# ---- the plan


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_epochs": 2}, "--head-epochs needs --mode full"),
        ({"mode": "full", "augment": 2}, "--augment needs --mode feature-extraction"),
        ({"mode": "full", "head_epochs": 2}, "--head-epochs 2 cannot be combined with --weights none"),
        (
            {"mode": "full", "weights": "w", "epochs": 3, "head_epochs": 3},
            "--head-epochs 3 with --epochs 3 leaves no epochs to train all layers",
        ),
    ],
)
def test_contradicting_settings_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve_plan(config(Path("x"), **settings))


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"epochs": 7}, (7, 0)),
        ({"mode": "full", "weights": "w", "epochs": 9}, (3, 6)),
        ({"mode": "full", "weights": "w", "epochs": 1}, (0, 1)),
        ({"mode": "full", "weights": "w", "epochs": 9, "head_epochs": 0}, (0, 9)),
        ({"mode": "full", "weights": "w", "epochs": None}, (HEAD_FIRST_EPOCHS, FULL_EPOCHS)),
        ({"mode": "full", "weights": "w", "epochs": None, "head_epochs": 3}, (3, FULL_EPOCHS)),
        ({"mode": "full", "epochs": 9}, (0, 9)),
    ],
)
def test_epochs_are_divided_between_the_stages(settings: dict[str, Any], epochs: tuple[int, int]) -> None:
    plan = resolve_plan(config(Path("x"), **settings))
    assert (plan.head_epochs, plan.full_epochs) == epochs


def test_random_layers_all_train_at_one_rate() -> None:
    plan = resolve_plan(config(Path("x"), mode="full"))
    assert (plan.layer_decay, plan.full_lr) == (1.0, SCRATCH_LR["adamw"])


def test_impossible_settings_are_rejected_before_an_image_is_read(tmp_path: Path, weights: Path) -> None:
    nowhere = tmp_path / "no data set"
    with pytest.raises(NotFoundError, match="no such file: --weights"):
        finetune(config(nowhere, weights="nowhere.pth"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(SettingsError, match=r"--output .*used already exists, and nothing is overwritten"):
        finetune(config(nowhere, tmp_path / "used"))
    with pytest.raises(SettingsError, match=r"--output .*file already exists"):
        finetune(config(nowhere, tmp_path / "used" / "file"))


def test_no_more_threads_than_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        monkeypatch.setattr("tlcli.training.runtime.device.usable_cores", lambda: 3)
        keep_to_usable_cores()
        assert torch.get_num_threads() == 3
        monkeypatch.setattr("tlcli.training.runtime.device.usable_cores", lambda: 64)
        keep_to_usable_cores()
        assert torch.get_num_threads() == 3, "a user's OMP_NUM_THREADS is kept"
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_device_is_an_error() -> None:
    with pytest.raises(DeviceError, match="--device cuda: PyTorch finds no CUDA device; use --device cpu"):
        torch_device("cuda")
    assert torch_device("auto") == torch.device("cpu")


# ---- the head


def linear_problem(seed: int, n: int = 60, d: int = 5) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(n, d)) * [1, 100, 0.01, 1, 0] + [0, 5000, 3, -2, 7]  # very different scales; one is constant
    labels = (((features[:, 1] - 5000) / 100 + (features[:, 2] - 3) / 0.01) > 0).astype(np.int64)
    return features.astype(np.float32), labels


@pytest.mark.parametrize(
    "classifier", [nn.Linear(5, 3), nn.Linear(5, 3, bias=False), nn.Conv2d(5, 3, 1), nn.Sequential(nn.Linear(5, 4), nn.ReLU())]
)
def test_folding_the_standardisation_is_exact(classifier: nn.Module) -> None:
    draw = torch.Generator().manual_seed(0)
    mean, spread = torch.randn(5, generator=draw).double(), torch.rand(5, generator=draw).double() + 0.1
    head = StandardisedHead(classifier, mean, spread).double().eval()
    embeddings = torch.randn(8, 5, generator=draw).double()
    expected = head(embeddings)
    head.fold()
    plain = classifier(embeddings[..., None, None]).flatten(1) if isinstance(classifier, nn.Conv2d) else classifier(embeddings)
    torch.testing.assert_close(plain, expected, rtol=1e-12, atol=1e-12)
    assert not [name for name in head.state_dict() if "mean" in name or "spread" in name]


def test_features_of_any_scale_are_learned() -> None:
    network = build(NetworkConfig(backbone=BACKBONE, head="linear", num_classes=2, preprocessing=Preprocessing(height=32, width=32)))
    network.backbone.fc = nn.Linear(5, 2)
    backbone = {name: value for name, value in digest(network).items() if "fc" not in name}
    features, labels = linear_problem(0)
    val, val_labels = linear_problem(1)
    plan = resolve_plan(config(Path("x"), epochs=30, lr=0.02))
    best = train_head(network, [features], labels, val, val_labels, plan, 0)
    assert best.kept.val_top1 > 0.93
    with torch.no_grad():
        figures = score(network.classify(torch.from_numpy(val)), torch.from_numpy(val_labels), ("a", "b"))
    assert figures.top1 == best.kept.val_top1  # of the plain, folded network, with the best epoch's weights
    assert figures.loss == pytest.approx(best.kept.val_loss, rel=1e-3)
    assert {name: value for name, value in digest(network).items() if "fc" not in name} == backbone


def test_each_epoch_sees_the_next_view() -> None:
    network = build(NetworkConfig(backbone=BACKBONE, head="linear", num_classes=2, preprocessing=Preprocessing(height=32, width=32)))
    network.backbone.fc = nn.Linear(5, 2)
    features, labels = linear_problem(0)
    asked: list[str] = []

    class Noted(np.ndarray):  # type: ignore[type-arg]
        def __getitem__(self, key: Any) -> Any:
            if isinstance(key, np.ndarray):
                asked.append(self.name)  # type: ignore[attr-defined]
            return np.asarray(self)[key]

    views = []
    for name in "abc":
        view = features.copy().view(Noted)
        view.name = name  # type: ignore[attr-defined]
        views.append(view)
    plan = resolve_plan(config(Path("x"), epochs=5, batch_size=100))
    train_head(network, views, labels, features, labels, plan, 0)
    assert "".join(asked) == "abcab"


# ---- learning rates


@pytest.mark.parametrize(
    ("backbone", "head"), [("resnet10t", "linear"), ("resnet10t", "mlp:8"), ("vgg11_bn", "linear"), ("test_resnet", "original")]
)
def test_layer_wise_rates_reach_the_optimizer(backbone: str, head: str) -> None:
    """Adam's first step moves a weight by its rate, whatever its gradient, so the movement shows the rate."""
    torch.manual_seed(0)
    network = build(NetworkConfig(backbone=backbone, head=head, num_classes=3, preprocessing=Preprocessing(height=64, width=64))).double()
    optimizer = layered_optimizer(network, lr=1e-3, weight_decay=0.0, layer_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name: float((before[name] - parameter.detach()).abs().max()) for name, parameter in network.named_parameters()}
    of_head = {id(parameter) for parameter in network.classifier.parameters()}
    head_names = [name for name, parameter in network.named_parameters() if id(parameter) in of_head]
    below = [float(f"{rate:.6g}") for name, rate in moved.items() if name not in head_names]
    np.testing.assert_allclose([moved[name] for name in head_names], 1e-3, rtol=1e-4)
    assert below == sorted(below)  # the deeper, the slower
    assert len(set(below)) >= 5
    assert below[0] >= 1e-5 * 0.999  # but every layer trains
    if network.head is not None:
        assert below[-1] == pytest.approx(0.5e-3)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(before)  # none is missing


def test_rates_warm_up_and_fall_along_a_cosine() -> None:
    factors = [rate_factor("cosine", step, 100, warm_up=0.1) for step in range(101)]
    np.testing.assert_allclose(factors[:11], np.arange(1, 12) / 11)
    np.testing.assert_allclose(factors[10:], 0.5 * (1 + np.cos(np.pi * np.arange(91) / 90)), atol=1e-15)
    assert [rate_factor("constant", step, 100, warm_up=0.02) for step in (0, 1, 2, 50, 99)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1])


# ---- the best epoch


def row(epoch: int, val_top1: float, val_loss: float) -> EpochRow:
    return EpochRow("head", epoch, 0.1, 0.0, 0.0, val_loss, val_top1, 0.0)


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    """On 100 images, the second epoch is far better, the third within noise with a lower loss, the fifth far worse."""
    module, best = nn.Linear(1, 1), Best({}, 100)
    for epoch, (top1, loss) in enumerate([(0.7, 0.5), (0.9, 0.7), (0.89, 0.6), (0.9, 0.6), (0.8, 0.1)], start=1):
        nn.init.constant_(module.weight, epoch)
        best.update(row(epoch, top1, loss), module)
    assert best.kept.epoch == 4
    assert best.state["weight"] == 4
    assert [noted.epoch for noted in best.rows] == [1, 2, 3, 4, 5]


def test_scores_of_a_part() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 1, 1, 1, 0])
    figures = score(torch.nn.functional.one_hot(predicted, 4).float() * 9, labels, ("a", "b", "c", "d"))
    assert figures.confusion == ((2, 1, 0, 0), (0, 2, 0, 0), (1, 0, 0, 0), (0, 0, 0, 0))
    assert figures.top1 == pytest.approx(4 / 6)
    assert [each.recall for each in figures.classes] == [pytest.approx(2 / 3), 1.0, 0.0, None]
    assert [each.f1 for each in figures.classes] == [pytest.approx(2 / 3), pytest.approx(4 / 5), 0.0, None]
    assert figures.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 3)
    assert figures.top5 is None
    assert [each.precision for each in figures.classes] == [pytest.approx(2 / 3), pytest.approx(2 / 3), None, None]


def test_scores_match_scikit_learn() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(400, 8), torch.randint(0, 8, (400,))
    figures = score(logits, labels, tuple("abcdefgh"))
    truth, predicted = labels.numpy(), logits.argmax(1).numpy()
    precision, recall, f1, count = metrics.precision_recall_fscore_support(truth, predicted)
    np.testing.assert_allclose([one.precision for one in figures.classes], precision)
    np.testing.assert_allclose([one.recall for one in figures.classes], recall)
    np.testing.assert_allclose([one.f1 for one in figures.classes], f1)
    assert [one.count for one in figures.classes] == count.tolist()
    assert figures.macro_f1 == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))
    assert figures.top5 == pytest.approx(metrics.top_k_accuracy_score(truth, logits.numpy(), k=5))
    assert figures.loss == pytest.approx(metrics.log_loss(truth, logits.softmax(1).numpy()), rel=1e-5)


# ---- whole runs


@pytest.mark.parametrize("head", ["linear", "mlp:16"])
def test_feature_extraction_trains_the_head_and_nothing_else(colours: Path, weights: Path, tmp_path: Path, head: str) -> None:
    settings = config(colours, tmp_path / "run", weights=str(weights), head=head, epochs=8, lr=0.01)
    before = digest(load_backbone(settings)[0])
    result = finetune(settings)
    assert result.metrics["test_top1"] > 0.9
    after = digest(load_run(result.path).network.backbone)
    assert {name: after[name] for name in after if not name.startswith("fc.")} == {
        name: before[name] for name in before if not name.startswith("fc.")
    }


def test_full_trains_the_head_first_and_then_all_layers(colours: Path, weights: Path, tmp_path: Path) -> None:
    logged: list[str] = []
    settings = config(colours, tmp_path / "run", mode="full", weights=str(weights), epochs=6, head_epochs=2, lr=2e-3)
    before = load_backbone(settings)[0].state_dict()
    result = finetune(settings, log=logged.append)
    lines = (result.path / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["head", "1"], ["head", "2"], *(["full", str(epoch)] for epoch in range(3, 7))]
    after = {name.removeprefix("backbone."): value for name, value in checkpoint(result).items()}
    changed = {name for name in before if not name.startswith("fc.") and not torch.equal(before[name], after[name])}
    epoch, stage = result.results.best_epoch, result.results.best_stage
    assert stage == ("full" if epoch > 2 else "head")
    assert len(changed) == (
        len([name for name in before if not name.startswith("fc.")]) if stage == "full" else 0
    )  # statistics of norms too
    words = {"full": "of the stage that trains all layers", "head": "of the stage that trains the head alone"}[stage]
    assert any(line.startswith(f"kept: the network of epoch {epoch} {words}") for line in logged)
    assert result.metrics["val_top1"] > 0.9
    assert any(line.startswith("head: best of 2 epochs") for line in logged)


def test_batch_norms_folded_into_the_weights_stay_frozen(colours: Path, tmp_path: Path) -> None:
    """Their statistics are 0 and 1: training with batch statistics would change the network."""
    state = load_backbone(config(colours))[0].state_dict()
    for name, tensor in state.items():
        if name.endswith("running_var"):
            tensor.fill_(1 - 1e-5)  # as the published file has it: 1 with the norm's epsilon
    safetensors.torch.save_file(state, tmp_path / "folded.safetensors")
    folded = config(colours, tmp_path / "run", mode="full", weights=str(tmp_path / "folded.safetensors"), epochs=3, head_epochs=0, lr=1e-3)
    after = {name.removeprefix("backbone."): value for name, value in checkpoint(finetune(folded)).items()}
    statistics = [name for name in state if "running_" in name]
    assert len(statistics) > 10
    assert all(torch.equal(after[name], state[name]) for name in statistics)
    assert not torch.equal(after["bn1.bias"], state["bn1.bias"])  # what there is to learn is learned


def test_training_from_scratch_learns_and_is_logged(colours: Path, tmp_path: Path) -> None:
    logged: list[str] = []
    result = finetune(config(colours, tmp_path / "run", mode="full", epochs=8, lr=4e-3), log=logged.append)
    assert result.metrics["test_top1"] > 0.9
    assert "random weights: nothing is pretrained (--weights none)" in logged[0]
    assert json.loads((result.path / "results.json").read_text())["stopped"] is None


@pytest.mark.parametrize("settings", [{"head": "mlp:8"}, {"augment": 2}, {"mode": "full"}], ids=["features", "augmented", "full"])
def test_identical_runs_are_bitwise_identical(
    colours: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for name in ("a", "b"):
        monkeypatch.setenv("TLCLI_CACHE", str(tmp_path / name / "cache"))  # features are computed again
        results.append(finetune(config(colours, tmp_path / name / "run", epochs=2, seed=7, **settings)))
    first, second = map(checkpoint, results)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = checkpoint(finetune(config(colours, tmp_path / "c", epochs=2, seed=8, **settings)))
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_nan_loss_in_the_first_epoch_stops_the_run(colours: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the loss became NaN or infinite in epoch 1: use an --lr below 1e"):
        finetune(config(colours, tmp_path / "run", mode="full", lr=1e30))


def test_a_nan_loss_in_a_later_epoch_keeps_the_last_good_weights(colours: Path, weights: Path, tmp_path: Path) -> None:
    """The head's stage succeeds; then the rate is far too high for all layers."""
    logged: list[str] = []
    settings = config(colours, tmp_path / "a", mode="full", weights=str(weights), epochs=3, head_epochs=2, lr=1e18, weight_decay=0)
    result = finetune(settings, log=logged.append)
    assert result.results.stopped is not None
    assert "the loss became NaN or infinite in epoch 3" in result.results.stopped
    assert any("the weights of epoch" in line for line in logged)
    network = load_run(result.path).network
    assert all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())


def test_small_images_are_enlarged_and_the_test_part_is_optional(tmp_path: Path) -> None:
    for part in ("train", "val"):
        put_classes(tmp_path / "data" / part, cats=4, dogs=4)  # 8x6 pixels each
    result = finetune(config(tmp_path / "data", tmp_path / "run", epochs=1))
    assert result.results.images == {"train": 8, "val": 8}
    assert result.results.test is None
    assert result.metrics.keys() == {"val_top1", "val_loss"}


@pytest.mark.parametrize("head", ["linear", "mlp:8"])
def test_a_head_search_keeps_the_best_and_lists_all(colours: Path, weights: Path, tmp_path: Path, head: str) -> None:
    logged: list[str] = []
    settings = config(colours, tmp_path / "run", weights=str(weights), head=head, epochs=4, lr=0.01, head_search=True)
    result = finetune(settings, log=logged.append)
    rows = list(csv.DictReader((result.path / "head_search.csv").open()))
    best = max((float(row["val_top1"]), -float(row["val_loss"])) for row in rows)
    assert best == pytest.approx((result.metrics["val_top1"], -result.metrics["val_loss"]), abs=1e-5)
    assert {row["head"] for row in rows} == ({"linear"} if head == "linear" else {"mlp:8", "mlp:256", "mlp:512"})
    assert any(line.startswith(f"head: best of {len(rows)} settings is ") for line in logged)
    check_it_is_read_back(result)
    plain = finetune(settings.model_copy(update={"output": tmp_path / "plain", "head_search": False}))
    assert result.metrics["val_top1"] >= plain.metrics["val_top1"]


def test_an_interrupted_head_search_is_repeated(colours: Path, weights: Path, tmp_path: Path) -> None:
    """This holds even if the search chose another head than the configured one and wrote it into the run's config."""
    settings = config(colours, tmp_path / "run", weights=str(weights), head="mlp:8", epochs=4, lr=0.01, head_search=True)
    result = finetune(settings)
    before = (result.path / "checkpoint.safetensors").read_bytes()
    (result.path / "results.json").unlink()
    assert training.resume(result.path).metrics == result.metrics
    assert (result.path / "checkpoint.safetensors").read_bytes() == before
