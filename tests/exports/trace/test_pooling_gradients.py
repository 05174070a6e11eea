"""Derivatives of pooling and upsampling equal autograd's, in PyTorch and written as ONNX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tlcli.exports.trace.vjp import TracedTail

POOLS: dict[str, nn.Module] = {
    "max, overlapping": nn.MaxPool2d(3, 2, 1),
    "max, apart": nn.MaxPool2d(2),
    "max, ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "max, dilated": nn.MaxPool2d(2, 1, dilation=2),
    "average, overlapping": nn.AvgPool2d(3, 1, 1),
    "average, without padding": nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average, ceil": nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    "average, ceil and padding": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "average, leftover": nn.AvgPool2d((2, 3), (2, 3)),
    "adaptive average": nn.AdaptiveAvgPool2d((3, 2)),
    "adaptive average, enlarging": nn.AdaptiveAvgPool2d((9, 11)),
    "adaptive max": nn.AdaptiveMaxPool2d(1),
    "nearest": nn.Upsample(scale_factor=2, mode="nearest"),
    "nearest, uneven": nn.Upsample(size=(9, 11), mode="nearest"),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear, to corners": nn.Upsample(size=(9, 10), mode="bilinear", align_corners=True),
    "bilinear, reducing": nn.Upsample(size=(3, 4), mode="bilinear"),
    "reflection": nn.ReflectionPad2d(2),
    "zero padding, and cropping": nn.ZeroPad2d((1, -1, 0, 2)),
}


def tail_module(pool: nn.Module, height: int, width: int) -> nn.Module:
    """Return the tail behind a layer of 4 channels: the pool, then operators that give each position another gradient."""
    torch.manual_seed(0)
    channels, *size = pool(torch.zeros(1, 4, height, width)).shape[1:]
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(channels * size[0] * size[1], 5), nn.Tanh()).requires_grad_(False)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(("height", "width"), [(7, 6), (5, 5)])
def test_the_gradient_is_autograds(name: str, height: int, width: int, tmp_path: Path) -> None:
    module = tail_module(POOLS[name], height, width)
    tail = TracedTail(lambda a, tap: module(tap("layer", a)), torch.randn(4, height, width), ["layer"])
    activations = torch.randn(2, 4, height, width).round(decimals=1)  # equal maxima are common
    activations[0, 0] = 0.0
    cotangents = torch.randn(2, 3, 5)

    leaf = activations.clone().requires_grad_(True)
    expected = module(leaf)
    gradients = [torch.autograd.grad((expected * cotangents[:, k]).sum(), leaf, retain_graph=True)[0] for k in range(3)]

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tail = tail

        def forward(self, activations: Tensor, cotangents: Tensor) -> tuple[Tensor, Tensor]:
            z, _, residuals = self.tail(activations)
            return z, self.tail.pull_back(cotangents, residuals)[0][0]

    z, pulled = Both()(activations, cotangents)
    torch.testing.assert_close(z, expected.detach())
    torch.testing.assert_close(pulled, torch.stack(gradients, 1), rtol=1e-4, atol=1e-6)

    if height == width:
        return  # once is enough for the slow part
    path = tmp_path / "tail.onnx"
    auto = torch.export.Dim.AUTO
    torch.onnx.export(
        Both(), (torch.randn(3, 4, height, width), torch.randn(3, 2, 5)), str(path), dynamo=True, verbose=False, opset_version=20,
        dynamic_shapes=({0: auto}, {0: auto, 1: auto}), external_data=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    z, pulled = session.run(None, dict(zip(names, (activations.numpy(), cotangents.numpy()), strict=True)))
    np.testing.assert_allclose(z, expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pulled, torch.stack(gradients, 1).numpy(), rtol=1e-4, atol=1e-6)


def test_a_maximum_that_is_there_twice_gets_the_gradient_once() -> None:
    tail = TracedTail(lambda a, tap: functional.max_pool2d(tap("layer", a), 2).flatten(1), torch.randn(1, 4, 6), ["layer"])
    z, _, residuals = tail(torch.ones(1, 1, 4, 6))
    (gradient,), _ = tail.pull_back(torch.ones_like(z)[:, None], residuals)
    expected = torch.zeros(4, 6)
    expected[::2, ::2] = 1.0
    torch.testing.assert_close(gradient[0, 0, 0], expected)
