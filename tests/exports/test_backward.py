"""A traced head's gradient is autograd's, for every kind of layer that heads are made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exports.backward import TracedHead

CHANNELS, CLASSES = 8, 5


class Squeeze(nn.Module):
    """Squeeze-and-excitation, then pooling: products of two paths from the activations."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.last = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CLASSES)

    def forward(self, a: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(a.mean((-2, -1))))
        result: Tensor = self.last((a * gate[..., None, None]).mean((-2, -1)))
        return result


class ChannelsLastNorm(nn.Module):
    """ConvNeXt's head: pool, layer norm over channels, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, CLASSES)

    def forward(self, a: Tensor) -> Tensor:
        result: Tensor = self.last(self.norm(a.permute(0, 2, 3, 1)).mean((1, 2)))
        return result


class InPlace(nn.Module):
    """Changes its input where it stands, as many networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(CHANNELS, CLASSES)

    def forward(self, a: Tensor) -> Tensor:
        result: Tensor = self.last(functional.hardswish(functional.relu(a * 1, inplace=True) - 0.3).mean((-2, -1)))
        return result


def head(name: str, height: int, width: int) -> nn.Module:
    flat = CHANNELS * height * width
    heads: dict[str, list[nn.Module]] = {
        "pooled linear": [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES)],
        "hidden units": [nn.Flatten(), nn.Linear(flat, 16), nn.ReLU(), nn.Linear(16, CLASSES)],
        "convolutions": [
            nn.Conv2d(CHANNELS, 12, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(12, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ],
        "grouped": [nn.Conv2d(CHANNELS, 16, 2, groups=4, dilation=2), nn.GELU(), nn.Flatten(), nn.LazyLinear(CLASSES)],
        "uneven pooling": [nn.AdaptiveAvgPool2d((3, 2)), nn.Flatten(), nn.Linear(CHANNELS * 6, CLASSES)],
        "enlarging pooling": [nn.AdaptiveAvgPool2d((7, 9)), nn.Conv2d(CHANNELS, 4, 7), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES)],
        "batch norm": [nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES)],
        "group norm": [nn.GroupNorm(2, CHANNELS), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES)],
        "squeeze": [Squeeze()],
        "channels-last norm": [ChannelsLastNorm()],
        "in place": [InPlace()],
    }  # fmt: skip
    return nn.Sequential(*heads[name])


NAMES = [
    "pooled linear", "hidden units", "convolutions", "grouped", "uneven pooling", "enlarging pooling",
    "batch norm", "group norm", "squeeze", "channels-last norm", "in place",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(5, 4), (3, 3)])
def test_logits_and_gradients_are_those_of_autograd(name: str, height: int, width: int) -> None:
    torch.manual_seed(0)
    module = head(name, height, width).eval()
    with torch.no_grad():
        module(torch.randn(1, CHANNELS, height, width))  # settles what is lazy
    module.requires_grad_(False)
    traced = TracedHead(module, torch.randn(CHANNELS, height, width))
    for pictures, explained in ((1, 1), (2, 3), (6, 2)):  # none is the number that it was traced with
        activations = torch.randn(pictures, CHANNELS, height, width)
        cotangents = torch.randn(pictures, explained, CLASSES)
        logits, remembered = traced(activations)
        gradients = traced.pull_back(cotangents, remembered)

        leaf = activations.clone().requires_grad_(True)
        expected = module(leaf)
        torch.testing.assert_close(logits, expected.detach())
        for k in range(explained):
            (one,) = torch.autograd.grad((expected * cotangents[:, k]).sum(), leaf, retain_graph=True)
            torch.testing.assert_close(gradients[:, k], one, rtol=1e-4, atol=1e-5)


def test_activations_in_another_memory_order_are_traced_alike() -> None:
    module = head("channels-last norm", 3, 3).eval().requires_grad_(False)
    example = torch.randn(1, CHANNELS, 3, 3).to(memory_format=torch.channels_last)[0]
    traced = TracedHead(module, example)
    for graph in (traced.forward_graph, traced.backward_graph):
        assert not [node for node in graph.graph.nodes if "strided" in str(node.target)]
