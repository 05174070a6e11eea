"""An optimizer step: micro-batches, class weights and averaging, compared with plain PyTorch, scikit-learn and timm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional

from tlcli.contract.errors import SettingsError
from tlcli.training.engine.ema import EMA
from tlcli.training.engine.loss import Objective, balanced_weights
from tlcli.training.engine.mixup import mixing
from tlcli.training.engine.optimizer import make_optimizer
from tlcli.training.engine.step import StepOptions, Stepper, StepResult
from tlcli.training.engine.unfreezing import GradualUnfreezing, frozen_norms

CLASSES = 3


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()


def batch(images: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, 3, 2, 2, generator=generator, dtype=torch.float64), torch.arange(images) % CLASSES


def stepped(options: StepOptions, model: nn.Module) -> StepResult:
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=0.1), options)
    stepper.begin()
    return stepper.step(0, *batch())


@pytest.mark.parametrize("micro_batch_size", [None, 10, 5, 4, 2, 1])
def test_micro_batches_add_up_to_their_batch(micro_batch_size: int | None) -> None:
    model, plain = network(), network()
    objective = Objective(0.1, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64))
    done = stepped(StepOptions(objective=objective, micro_batch_size=micro_batch_size), model)
    inputs, labels = batch()
    functional.cross_entropy(plain(inputs), labels, weight=objective.class_weights, label_smoothing=0.1).backward()
    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)
        torch.testing.assert_close(parameter.detach(), expected.detach() - 0.1 * expected.grad)
    logits = network()(inputs).detach()
    assert done.count == 10
    assert done.loss == pytest.approx(float(functional.cross_entropy(logits, labels, reduction="sum")), rel=1e-6)
    assert done.right == int((logits.argmax(1) == labels).sum())


@pytest.mark.parametrize("micro_batch_size", [None, 4, 1])
@pytest.mark.parametrize("class_weights", [None, torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)], ids=["plain", "classes"])
def test_a_weight_of_two_counts_an_image_twice(micro_batch_size: int | None, class_weights: Tensor | None) -> None:
    """The step is that of the weighted mean: the same as on a batch in which images occur as often as they weigh."""
    model, plain = network(), network()
    inputs, labels = batch()
    weights = torch.tensor([1, 2, 3, 1, 1, 2, 1, 1, 4, 1])
    options = StepOptions(objective=Objective(0.1, class_weights), micro_batch_size=micro_batch_size)
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=0.1), options)
    stepper.begin()
    done = stepper.step(0, inputs, labels, weights.double())
    repeated = labels.repeat_interleave(weights)
    logits = plain(inputs.repeat_interleave(weights, dim=0))
    functional.cross_entropy(logits, repeated, weight=class_weights, label_smoothing=0.1).backward()
    for parameter, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)
    assert done.loss == pytest.approx(float(functional.cross_entropy(network()(inputs).detach(), labels, reduction="sum")), rel=1e-6)


def test_balanced_weights_match_scikit_learn() -> None:
    labels = np.array([0] * 7 + [1] * 2 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 3).numpy(), expected, rtol=1e-6)


def test_the_moving_average_matches_timm() -> None:
    """At the same decay, after the warm-up, which has another formula in timm."""
    model = network()
    theirs, ours = ModelEmaV3(model, decay=0.5), EMA(model, 0.5)
    for step in range(20, 24):  # (1 + n) / (10 + n) is above 0.5
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, dtype=torch.float64))
        theirs.update(model, step=step)
        ours.update(model, step)
    for name, tensor in theirs.module.state_dict().items():
        torch.testing.assert_close(ours.state[name], tensor)


def test_the_moving_average_forgets_the_initial_weights_quickly() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = EMA(model, 0.999)
    nn.init.ones_(model.weight)
    average.update(model, 0)
    assert float(average.state["weight"]) == pytest.approx(0.9)
    with average.applied_to(model):
        assert model.weight.item() == pytest.approx(0.9)
    assert model.weight.item() == 1.0


def test_a_resumed_average_does_not_change_the_state_it_resumes_from() -> None:
    """The same tensors may also be the best network so far."""
    model = network()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in kept.items()}
    average = EMA(model, 0.5, kept)
    for parameter in model.parameters():
        parameter.data.add_(1)
    average.update(model, 100)
    assert all(torch.equal(kept[name], before[name]) for name in before)
    assert not torch.equal(average.state["1.weight"], before["1.weight"])


class Narrow(nn.Module):
    """Network with memory for a limited number of images at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner = network()
        self.most = most
        self.seen: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.seen.append(len(inputs))
        return self.inner(inputs)  # type: ignore[no-any-return]


def test_out_of_memory_halves_the_micro_batch_until_it_fits_without_changing_the_step() -> None:
    logged: list[str] = []
    model, plain = Narrow(3), network()
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(), logged.append)
    stepper.begin()
    stepper.step(0, *batch())
    stepped(StepOptions(), plain)
    for parameter, expected in zip(model.inner.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)
    assert model.seen == [3, 3, 2, 2]
    stepper.step(1, *batch())
    assert model.seen == [3, 3, 2, 2] * 2  # and stays so
    assert [line.partition(":")[0] for line in logged] == ["out of memory"] * 2
    assert "in 4 micro-batches" in logged[-1]


def test_an_image_that_does_not_fit_is_reported_with_a_remedy() -> None:
    with pytest.raises(SettingsError, match=r"out of memory \(CUDA out of memory.*use a smaller --batch-size, --image-size"):
        stepped(StepOptions(), Narrow(0))


def test_other_errors_are_not_mistaken_for_out_of_memory() -> None:
    model = network()
    stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=0.1), StepOptions())
    stepper.begin()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        stepper.step(0, torch.zeros(2, 5, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))


def test_random_numbers_of_a_step_depend_on_its_number_alone() -> None:
    def gradient(number: int, draws_before: int) -> Tensor:
        model = nn.Sequential(network(), nn.Dropout(0.5))
        torch.rand(draws_before)
        stepper = Stepper(model, torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(seed=3))
        stepper.begin()
        stepper.step(number, *batch())
        first = next(model.parameters()).grad
        assert first is not None
        return first

    assert torch.equal(gradient(4, 0), gradient(4, 100))
    assert not torch.equal(gradient(4, 0), gradient(5, 0))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixed_labels_are_the_shares_of_the_images(mixup: float, cutmix: float) -> None:
    """Each image has a single value, so the mean of a mixed image shows the share of each."""
    mix = mixing(mixup, cutmix, CLASSES)
    assert mix is not None
    values = torch.tensor([0.0, 1.0, 100.0])
    labels = torch.arange(9) % CLASSES
    for seed in range(10):
        torch.manual_seed(seed)
        images, shares = mix(values[labels].view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone(), labels)
        np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-6)
        np.testing.assert_allclose(images.mean((1, 2, 3)), shares @ values, rtol=1e-4, atol=1e-4)
    assert mixing(0.0, 0.0, CLASSES) is None


def test_optimizers_match_their_names() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    groups = [{"params": [parameter], "lr": 0.1, "weight_decay": 0.0}]
    kinds = {name: type(make_optimizer(name, groups, 0.1)) for name in ("adamw", "adam", "rmsprop", "sgd")}  # type: ignore[arg-type]
    assert kinds == {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop, "sgd": torch.optim.SGD}


def test_layers_unfreeze_from_the_head_down_and_frozen_norms_keep_their_statistics() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
    rates = {0: 0.1, 1: 0.1, 2: 0.2, 3: 0.3}
    groups = [{"params": list(model[index].parameters()), "lr": rate} for index, rate in rates.items()]
    unfreezing = GradualUnfreezing(torch.optim.SGD(groups, lr=0.1), epochs=6)

    def learning(epoch: int) -> list[bool]:
        unfreezing.begin(epoch)
        return [layer.weight.requires_grad for layer in model]  # type: ignore[misc]

    assert learning(0) == [False, False, False, True]
    assert frozen_norms(model) == [model[1]]
    assert learning(1) == [False, False, True, True]
    assert [learning(epoch) for epoch in (2, 3, 5)] == [[True] * 4] * 3
    assert frozen_norms(model) == []
    learning(0)
    unfreezing.finish()
    assert all(parameter.requires_grad for parameter in model.parameters())
