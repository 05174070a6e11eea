"""Traced tails: outputs equal those of the module itself, and gradients those of autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tlcli.exports.trace.joint_trace import TailFunction
from tlcli.exports.trace.vjp import TracedTail
from tlcli.training.models.target_layers import Tap

CHANNELS, WIDTH = 8, 5


class Squeeze(nn.Module):
    """Squeeze-and-excitation, then pooling: products of two paths from the activations."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.last = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, WIDTH)

    def forward(self, a: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(a.mean((-2, -1))))
        result: Tensor = self.last((a * gate[..., None, None]).mean((-2, -1)))
        return result


class ChannelsLastNorm(nn.Module):
    """ConvNeXt's head: pool, layer norm over channels, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, WIDTH)

    def forward(self, a: Tensor) -> Tensor:
        result: Tensor = self.last(self.norm(a.permute(0, 2, 3, 1)).mean((1, 2)))
        return result


class InPlace(nn.Module):
    """Operations in place on the input, as in many networks."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(CHANNELS, WIDTH)

    def forward(self, a: Tensor) -> Tensor:
        result: Tensor = self.last(functional.hardswish(functional.relu(a, inplace=True) - 0.3, inplace=True).mean((-2, -1)))
        return result


class WritesIntoSlices(nn.Module):
    """Writes into slices of the input, by index and by view."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(CHANNELS, WIDTH)

    def forward(self, a: Tensor) -> Tensor:
        a[:, ::2] *= 3
        a[:, 1].mul_(-2)
        a.flatten(2)[..., 0].zero_()
        result: Tensor = self.last(torch.tanh(a).mean((-2, -1)))
        return result


class Attention(nn.Module):
    """Attention between positions by PyTorch's fused operator, with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.last = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, WIDTH)

    def forward(self, a: Tensor) -> Tensor:
        q, k, v = self.qkv(a.flatten(2).transpose(1, 2)).unflatten(-1, (3, 2, CHANNELS // 2)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        result: Tensor = self.last(mixed.mean(1))
        return result


class Residual(nn.Module):
    """Skip connection around the layers behind the explained one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.last = nn.Linear(2 * CHANNELS, WIDTH)

    def forward(self, a: Tensor) -> Tensor:
        mixed = a + self.second(functional.relu(self.first(a)))
        mixed = mixed * torch.sigmoid(a)
        result: Tensor = self.last(torch.cat([mixed, a.square()], 1).mean((-2, -1)))
        return result


def module_named(name: str, height: int, width: int) -> nn.Module:
    flat = CHANNELS * height * width
    modules: dict[str, list[nn.Module]] = {
        "pooled linear": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, WIDTH)],
        "nothing but the mean": [nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        "hidden units": [nn.Flatten(), nn.Linear(flat, 16), nn.ReLU(), nn.Linear(16, WIDTH)],
        "convolutions": [
            nn.Conv2d(CHANNELS, 12, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(12, WIDTH, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ],
        "transposed": [nn.ConvTranspose2d(CHANNELS, 6, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.LazyLinear(WIDTH)],
        "grouped": [nn.Conv2d(CHANNELS, 16, 2, groups=4, dilation=2), nn.GELU(), nn.Flatten(), nn.LazyLinear(WIDTH)],
        "depthwise": [nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1, groups=CHANNELS), nn.ReLU6(), nn.Flatten(), nn.LazyLinear(WIDTH)],
        "uneven pooling": [nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(CHANNELS * 6, WIDTH)],
        "enlarging pooling": [nn.AdaptiveAvgPool2d((7, 9)), nn.Conv2d(CHANNELS, 4, 7), nn.ReLU(), nn.Flatten(), nn.LazyLinear(WIDTH)],
        "batch norm": [nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, WIDTH)],
        "group norm": [nn.GroupNorm(2, CHANNELS), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, WIDTH)],
        "squeeze": [Squeeze()],
        "channels-last norm": [ChannelsLastNorm()],
        "in place": [InPlace()],
        "attention": [Attention()],
        "skip connections": [Residual()],
    }  # fmt: skip
    torch.manual_seed(0)
    module = nn.Sequential(*modules[name]).eval()
    with torch.no_grad():
        module(torch.randn(1, CHANNELS, height, width))  # settles what is lazy
    return module.requires_grad_(False)


NAMES = [
    "pooled linear", "nothing but the mean", "hidden units", "convolutions", "transposed", "grouped", "depthwise", "uneven pooling",
    "enlarging pooling", "batch norm", "group norm", "squeeze", "channels-last norm", "in place", "attention",
    "skip connections",
]  # fmt: skip


def trace(function: TailFunction, example: Tensor, layers: Sequence[str]) -> TracedTail:
    with sdpa_kernel(SDPBackend.MATH):  # as the explainer does
        return TracedTail(function, example, layers)


def by_autograd(
    function: TailFunction, inputs: Tensor, layers: Sequence[str], cotangents: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return z, activations and gradients `[N, K, c, h, w]` for each layer; zeros for a layer that does not reach z."""
    leaves: dict[str, Tensor] = {}
    seen: dict[str, Tensor] = {}

    def watch(name: str, output: Tensor) -> Tensor:
        seen[name] = output.detach().clone()
        leaves[name] = output + torch.zeros_like(output).requires_grad_()
        return leaves[name] * 1  # what follows may work in place

    z = function(inputs.clone(), watch) + 0 * sum(leaf.sum() for leaf in leaves.values())  # every layer must reach z
    gradients = []
    for name in layers:
        rows = [
            torch.autograd.grad((z * cotangents[:, k]).sum(), leaves[name], retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for k in range(cotangents.shape[1])
        ]
        gradients.append(torch.stack(rows, 1))
    return z.detach(), [seen[name] for name in layers], gradients


def check(function: TailFunction, inputs: Callable[[int], Tensor], layers: Sequence[str]) -> TracedTail:
    """Compare a traced tail with autograd for several numbers of images and classes, none of which it was traced with."""
    tail = trace(function, inputs(1)[0], layers)
    for images, explained in ((1, 1), (2, 3), (6, 2)):
        batch = inputs(images)
        cotangents = torch.randn(images, explained, function(batch.clone(), lambda _, output: output).shape[1])
        expected_z, expected_activations, expected_gradients = by_autograd(function, batch, layers, cotangents)
        before = batch.clone()
        z, activations, residuals = tail(batch)
        gradients, means = tail.pull_back(cotangents, residuals)
        torch.testing.assert_close(z, expected_z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(list(activations), expected_activations, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(list(gradients), expected_gradients, rtol=1e-4, atol=1e-5)
        expected_means = [gradient.mean((-2, -1)) for gradient in expected_gradients]
        torch.testing.assert_close(list(means), expected_means, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch, before, rtol=0, atol=0)

        # Two changed copies of the last image's activations, one of the first's.
        of = torch.tensor([images - 1, 0, images - 1])
        for number, name in enumerate(layers):
            changed = activations[number][of] * torch.rand(3, activations[number].shape[1], 1, 1).round()
            torch.testing.assert_close(
                tail.from_activations(number, changed, of, residuals), replaced(function, batch[of], name, changed), rtol=1e-4, atol=1e-5
            )
    return tail


def replaced(function: TailFunction, inputs: Tensor, layer: str, changed: Tensor) -> Tensor:
    """Return z with a layer's output replaced."""
    return function(inputs.clone(), lambda name, output: changed.clone() if name == layer else output)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(5, 4), (3, 3)])
def test_what_follows_and_its_gradient(name: str, height: int, width: int) -> None:
    module = module_named(name, height, width)
    torch.manual_seed(1)
    check(lambda a, tap: module(tap("layer", a)), lambda images: torch.randn(images, CHANNELS, height, width), ["layer"])


@pytest.mark.parametrize("rows", [4, 5, 6, 7])
def test_equal_sizes_are_not_taken_for_one_symbol(rows: int) -> None:
    """Channels, height, width or z's width may equal the batch size of the trace."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(rows, rows, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(rows**3, rows)).requires_grad_(False)
    check(lambda a, tap: module(tap("layer", a)), lambda images: torch.randn(images, rows, rows, rows), ["layer"])
    check(lambda a, tap: module[:2](tap("layer", a)).mean((-2, -1)), lambda images: torch.randn(images, rows, 4, 5), ["layer"])


class Stages(nn.Module):
    """Three layers, one with a skip connection, each followed by an operation in place, and a branch that does not reach the output."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.three, self.last = nn.Conv2d(CHANNELS, 6, 3, 2, 1), nn.Linear(6, WIDTH)
        self.aside = nn.Conv2d(3, 2, 3)

    def forward(self, inputs: Tensor, tap: Tap) -> Tensor:
        tap("aside", self.aside(inputs))
        one = functional.relu(tap("one", self.one(inputs)), inplace=True)
        two = tap("two", self.two(one))
        two += one
        two = functional.relu(two, inplace=True)
        three = tap("three", self.three(functional.max_pool2d(two, 2)))
        three.sub_(0.1).relu_()
        result: Tensor = self.last(three.mean((-2, -1)))
        return torch.tanh(result)


@pytest.fixture(scope="module")
def stages() -> Stages:
    torch.manual_seed(0)
    return Stages().eval().requires_grad_(False)


@pytest.mark.parametrize("layers", [("one", "two", "three"), ("three", "one"), ("two",), ("one", "aside"), ("aside",)], ids="+".join)
def test_several_layers_at_once(stages: Stages, layers: tuple[str, ...]) -> None:
    torch.manual_seed(1)

    def function(inputs: Tensor, tap: Tap) -> Tensor:
        return stages(inputs, lambda name, output: tap(name, output) if name in layers else output)

    tail = check(function, lambda images: torch.randn(images, 3, 9, 8), layers)
    assert tail.layers == layers


def test_a_layer_that_does_not_reach_the_output_has_zeros_for_gradients(stages: Stages) -> None:
    tail = trace(lambda inputs, tap: stages(inputs, lambda name, output: tap(name, output) if name == "aside" else output),
                 torch.randn(3, 9, 8), ["aside"])  # fmt: skip
    z, (aside,), residuals = tail(torch.randn(2, 3, 9, 8))
    assert aside.abs().max() > 0
    (gradients,), _ = tail.pull_back(torch.ones(2, 4, WIDTH), residuals)
    assert gradients.shape == (2, 4, *aside.shape[1:])
    assert not gradients.any()
    assert z.shape == (2, WIDTH)


def test_activations_are_the_layers_output_before_operations_in_place(stages: Stages) -> None:
    """The operation in place behind the layer removes all values below zero."""
    tail = trace(lambda inputs, tap: stages(inputs, lambda name, output: tap(name, output) if name == "one" else output),
                 torch.randn(3, 9, 8), ["one"])  # fmt: skip
    inputs = torch.randn(2, 3, 9, 8)
    _, (one,), residuals = tail(inputs)
    torch.testing.assert_close(one, stages.one(inputs))
    assert one.min() < 0
    (gradients,), _ = tail.pull_back(torch.ones(2, 1, WIDTH), residuals)
    assert not gradients[:, 0][one < 0].any()


def test_from_activations_depends_on_its_own_image_only(stages: Stages) -> None:
    """Skip connections around the layer carry the image's own values, not another image's."""
    tail = trace(lambda inputs, tap: stages(inputs, lambda name, output: tap(name, output) if name == "two" else output),
                 torch.randn(3, 9, 8), ["two"])  # fmt: skip
    inputs = torch.randn(3, 3, 9, 8)
    z, (two,), residuals = tail(inputs)
    for order in ([0, 1, 2], [2, 0], [1, 1, 1, 1, 0]):
        torch.testing.assert_close(tail.from_activations(0, two[order], torch.tensor(order), residuals), z[order], rtol=1e-4, atol=1e-5)
    assert (tail.from_activations(0, two[[0]], torch.tensor([1]), residuals) - z[0]).abs().max() > 1e-3


def test_activations_in_another_memory_order_are_traced_alike() -> None:
    module = module_named("channels-last norm", 3, 3)
    example = torch.randn(1, CHANNELS, 3, 3).to(memory_format=torch.channels_last)[0]
    tail = trace(lambda a, tap: module(tap("layer", a)), example, ["layer"])
    for graph in (tail.forward_graph, tail.backward_graph, *tail.from_activations_graphs):
        assert not [node for node in graph.graph.nodes if "strided" in str(node.target)]
    activations = torch.randn(2, CHANNELS, 3, 3).to(memory_format=torch.channels_last)
    torch.testing.assert_close(tail(activations)[0], module(activations))


def test_operators_without_exported_gradient_are_named() -> None:
    with pytest.raises(NotImplementedError, match="adaptive max pooling to more than 1x1"):
        trace(lambda a, tap: functional.adaptive_max_pool2d(tap("layer", a), 2).flatten(1), torch.randn(2, 6, 6), ["layer"])
    with pytest.raises(NotImplementedError, match="custom divisor"):
        trace(lambda a, tap: functional.avg_pool2d(tap("layer", a), 2, divisor_override=3).flatten(1), torch.randn(2, 6, 6), ["layer"])


@pytest.mark.parametrize("before", [lambda a: a, lambda a: a * 2], ids=["the layer's input", "another tensor"])
def test_writing_into_a_part_of_the_layers_output(before: Callable[[Tensor], Tensor]) -> None:
    module = WritesIntoSlices().requires_grad_(False)
    check(lambda a, tap: module(tap("layer", before(a))), lambda images: torch.randn(images, CHANNELS, 5, 4), ["layer"])


def test_images_that_depend_on_one_another_are_refused() -> None:
    """A residual of the batch as a whole has no rows for each image."""
    with pytest.raises((NotImplementedError, RuntimeError)):
        trace(lambda a, tap: (tap("layer", a).flatten(1) @ a.flatten(1).t()).tanh().sum(1, keepdim=True), torch.randn(2, 3, 3), ["layer"])


def test_writing_into_parts_of_a_tensor() -> None:
    """By in-place arithmetic with and without a final assignment, with another tensor's values and with a number."""

    def function(inputs: Tensor, tap: Tap) -> Tensor:
        output = tap("layer", inputs)
        output[:, ::2] *= 3
        part = output[:, 1:, 1:]
        part += 2 * output[:, :-1, :-1].clone().sin()
        output[..., 0] = output[..., 1].clone() ** 2
        output[:, :, -1] = 0.5
        return torch.tanh(output).mean((-2, -1))

    check(function, lambda images: torch.randn(images, CHANNELS, 5, 4), ["layer"])


def test_means_are_those_of_the_gradients() -> None:
    """Also where they are computed as products with the matrix's means."""
    for name in ("hidden units", "convolutions", "pooled linear"):
        module = module_named(name, 5, 4)
        tail = trace(lambda a, tap, module=module: module(tap("layer", a)), torch.randn(CHANNELS, 5, 4), ["layer"])
        _, _, residuals = tail(torch.randn(3, CHANNELS, 5, 4))
        gradients, means = tail.pull_back(torch.randn(3, 2, WIDTH), residuals)
        torch.testing.assert_close(means[0], gradients[0].mean((-2, -1)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [None, "numbers", "flags", "causal"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_with_and_without_a_mask(masked: str | None, scale: float | None) -> None:
    """Without a mask, no score is compared with minus infinity."""
    torch.manual_seed(0)
    flags = torch.rand(20, 20) > 0.3
    flags[:, 0] = True
    mask = {"numbers": torch.randn(20, 20), "flags": flags}.get(masked or "")

    def function(inputs: Tensor, tap: Tap) -> Tensor:
        tokens = tap("layer", inputs).flatten(2).transpose(1, 2)[:, None]
        mixed = functional.scaled_dot_product_attention(
            tokens, tokens.sin(), tokens.cos(), attn_mask=mask, is_causal=masked == "causal", scale=scale
        )
        return mixed.mean((1, 2))

    check(function, lambda images: torch.randn(images, CHANNELS, 5, 4), ["layer"])
    tail = trace(function, torch.randn(CHANNELS, 5, 4), ["layer"])
    compared = [node for node in tail.forward_graph.graph.nodes if "safe_softmax" in str(node.target)]
    assert bool(compared) == (masked is not None)
