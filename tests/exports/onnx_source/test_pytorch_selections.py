"""Selections, replacements and orders, as PyTorch's exporters write them, against float64 autograd on the network itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.exports.onnx_source.test_torchvision_files import write
from tests.helpers.exports.onnx_autograd import OnnxReference
from tests.helpers.exports.onnx_files import explain
from tests.helpers.exports.small_networks import blobs
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.exports.onnx_source.image_input import ImageInput

SIZE = 16
IMAGE = ImageInput(Preprocessing(height=SIZE, width=SIZE), channels_last=False)


class Selecting(nn.Module):
    """A convolution, a function that selects, and a fully connected layer on all numbers."""

    def __init__(self, function: Callable[[Tensor], Tensor], size: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.function = function
        self.head = nn.Linear(size, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer(images)
        logits: Tensor = self.head(self.function(torch.sin(x)).flatten(1))
        return logits


def replaced(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1] = x[:, 0] * x[:, 2]
    y[:, :, 2:4] = torch.tanh(x[:, :, 4:6])
    return y


def largest_tokens(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    best = tokens.sum(2).topk(5, dim=1).indices
    return tokens.gather(1, best[..., None].expand(-1, -1, 6))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "two axes": (lambda x: x[:, torch.tensor([0, 5, 0]), torch.tensor([1, 7, 1])], 24),
    "replaced": (replaced, 384),
    "sorted": (lambda x: x.sort(dim=1).values, 384),
    "largest": (lambda x: x.flatten(2).topk(7, dim=2).values, 42),
    "largest tokens": (largest_tokens, 30),
    "cumulative": (lambda x: x.cumsum(2), 384),
    "triangle": (lambda x: x.tril(1), 384),
    "masked": (lambda x: torch.where(x.mean((2, 3), keepdim=True) > 0, x, x.amax((1, 2, 3), keepdim=True)), 384),
    "einsum": (lambda x: torch.einsum("nchw,ncij,nciw->nhj", x, torch.tanh(x), x), 64),
    "norm": (lambda x: nn.functional.lp_pool2d(x + 2, 3, 2), 96),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dynamo", [False, True])
def test_maps_are_those_of_autograd(name: str, dynamo: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Selecting(*FUNCTIONS[name]).eval()
    path = write(network, tmp_path / "x.onnx", dynamo=dynamo, size=(SIZE, SIZE), opset=18)
    layer = "/layer/Conv_output_0" if not dynamo else "conv2d"
    _, model = explain(path, tmp_path / "model.onnx", [layer], image=IMAGE)
    assert max(OnnxReference(network, model).distances(blobs(3, SIZE, SIZE)).values()) < 1e-4
