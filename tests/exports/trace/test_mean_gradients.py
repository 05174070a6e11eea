"""Means of gradients that are computed without the gradients, against autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tlcli.exports.trace.joint_trace import trace_joint
from tlcli.exports.trace.mean_gradients import append_mean_gradients
from tlcli.training.models.target_layers import Tap

CHANNELS, HEIGHT, WIDTH, PREFIX = 6, 3, 4, 2


class OneProjection(nn.Module):
    """Tokens behind prefix tokens, projected to queries, keys and values at once; the first prefix token is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, CHANNELS)).unbind(2)
        return functional.scaled_dot_product_attention(q, k, v)[:, 0]


class ThreeProjections(nn.Module):
    """The same with a projection each: the gradient is a sum of three products."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(CHANNELS, CHANNELS) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(self.q(tokens), self.k(tokens), self.v(tokens))[:, 0]


class OneProjectionAndSum(OneProjection):
    """With a skip connection, whose gradient is no product."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + tokens.square().sum(1)


def of_tokens(block: nn.Module, inputs: Tensor, tap: Tap) -> Tensor:
    tokens = inputs * 2
    maps = tap("layer", tokens[:, PREFIX:].transpose(1, 2).reshape(-1, CHANNELS, HEIGHT, WIDTH))
    result: Tensor = block(torch.cat([tokens[:, :PREFIX], maps.flatten(2).transpose(1, 2)], 1))
    return result


def of_tokens_between_others(block: nn.Module, inputs: Tensor, tap: Tap) -> Tensor:
    tokens = inputs * 2
    maps = tap("layer", tokens[:, 1:-1].transpose(1, 2).reshape(-1, CHANNELS, HEIGHT, WIDTH))
    result: Tensor = block(torch.cat([tokens[:, :1], maps.flatten(2).transpose(1, 2), tokens[:, -1:]], 1))
    return result


def of_channels_last(block: nn.Module, inputs: Tensor, tap: Tap) -> Tensor:
    maps = tap("layer", (inputs[:, PREFIX:].unflatten(1, (HEIGHT, WIDTH)) * 2).permute(0, 3, 1, 2))
    result: Tensor = block(maps.permute(0, 2, 3, 1)).square().sum((1, 2))
    return result


@pytest.mark.parametrize(
    ("function", "block", "direct"),
    [
        (of_tokens, OneProjection, True),
        (of_tokens, ThreeProjections, True),
        (of_tokens_between_others, OneProjection, True),
        (of_tokens, OneProjectionAndSum, False),
        (of_channels_last, lambda: nn.Linear(CHANNELS, 5), True),
        (of_channels_last, lambda: nn.Sequential(nn.Tanh(), nn.Linear(CHANNELS, 5)), False),
    ],
)
def test_the_mean_is_that_of_the_gradient(
    function: Callable[[nn.Module, Tensor, Tap], Tensor], block: Callable[[], nn.Module], direct: bool
) -> None:
    torch.manual_seed(0)
    module = block().double().eval().requires_grad_(False)

    def tail(inputs: Tensor, tap: Tap) -> Tensor:
        return function(module, inputs, tap)

    example = torch.randn(PREFIX + HEIGHT * WIDTH, CHANNELS, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        traced = trace_joint(tail, example, ["layer"], False, False)
    assert append_mean_gradients(traced, 1) == [direct]
    traced.graph.lint()
    traced.recompile()

    images = torch.randn(3, *example.shape, dtype=torch.float64)
    leaves: list[Tensor] = []

    def watch(_: str, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[0]

    z = tail(images, watch)
    cotangents = torch.randn_like(z)
    (expected,) = torch.autograd.grad((z * cotangents).sum(), leaves[0])
    results = traced(images, cotangents)
    gradient = results[-2 if direct else -1]
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    if direct:
        torch.testing.assert_close(results[-1], expected.mean((-2, -1)), rtol=1e-10, atol=1e-12)
