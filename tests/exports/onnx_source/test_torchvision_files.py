"""torchvision's networks, written by both of PyTorch's exporters, against float64 autograd on the network itself."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from tests.helpers.exports.onnx_autograd import OnnxReference
from tests.helpers.exports.onnx_files import explain
from tests.helpers.exports.small_networks import blobs
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.exports.onnx_source.image_input import ImageInput

SIZE = 96
IMAGE = ImageInput(Preprocessing(height=SIZE, width=SIZE), channels_last=False)


def network_of(name: str) -> nn.Module:
    """Return a network with random weights, batch norms of any scale, and five classes."""
    torch.manual_seed(0)
    options = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    network: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=5, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.7, 1.4)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


def write(
    network: nn.Module,
    path: Path,
    dynamo: bool,
    opset: int | None = None,
    batch: int = 2,
    size: tuple[int, int] = (SIZE, SIZE),
    fixed: bool = False,
) -> Path:
    images = torch.zeros(batch, 3, *size)
    free: dict[str, object] = {}
    fixed = fixed or batch == 1
    if not fixed and dynamo:
        free = {"dynamic_shapes": ({0: torch.export.Dim.AUTO},)}
    elif not fixed:
        free = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (images,), str(path), dynamo=dynamo, opset_version=opset, verbose=False, external_data=False, **free)  # type: ignore[arg-type]
    return path


def distances(network: nn.Module, path: Path, layers: tuple[str, ...] = ()) -> dict[str, float]:
    _, model = explain(path, path.with_name("model.onnx"), layers, image=IMAGE)
    result = OnnxReference(network, model).distances(blobs(3, SIZE, SIZE))
    assert result.pop("logits") < 1e-4
    assert set(result) >= {"gradcam", "gradcam_plus_plus", "xgradcam", "hirescam", "gradcam_elementwise", "layercam", "fem"}
    return result


def test_maps_of_a_file_by_the_newer_exporter(tmp_path: Path) -> None:
    network = network_of("resnet18")
    assert max(distances(network, write(network, tmp_path / "x.onnx", dynamo=True)).values()) < 1e-4


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "squeezenet1_1",
        "mnasnet0_5",
        "efficientnet_b0",
        "regnet_y_400mf",
        "googlenet",
        "mobilenet_v2",
    ],
)
def test_maps_are_those_of_autograd(name: str, tmp_path: Path) -> None:
    network = network_of(name)
    assert max(distances(network, write(network, tmp_path / "x.onnx", dynamo=False)).values()) < 1e-4


class Small(nn.Module):
    """Convolutions of different kinds, a residual connection, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 7, 4, 3), nn.BatchNorm2d(12), nn.SiLU(), nn.MaxPool2d(3, 2, 1))
        self.block = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.GroupNorm(3, 12), nn.GELU(), nn.Conv2d(12, 12, 1))
        self.head = nn.Sequential(nn.Linear(12 * 9, 16), nn.Hardtanh(), nn.Linear(16, 5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        x = nn.functional.adaptive_avg_pool2d(x + self.block(x), 3)
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 20])
def test_opsets_of_the_older_exporter(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Small().eval()
    path = write(network, tmp_path / "x.onnx", dynamo=False, opset=opset, batch=1 if opset == 13 else 2)
    assert max(distances(network, path).values()) < 1e-4


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_opsets_of_the_newer_exporter(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Small().eval()
    assert max(distances(network, write(network, tmp_path / "x.onnx", dynamo=True, opset=opset)).values()) < 1e-4


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "/layer3/layer3.0/relu/Relu_output_0"),  # inside of a residual block
        ("mobilenet_v3_small", "/features/features.7/block/block.1/block.1.2/HardSwish_output_0"),
    ],
)
def test_layers_in_the_middle(name: str, layer: str, tmp_path: Path) -> None:
    """A ReLU that is on its edge in float32 may be on the other side in float64: half of the maps must agree, see parity."""
    network = network_of(name)
    path = write(network, tmp_path / "x.onnx", dynamo=False)
    _, model = explain(path, path.with_name("model.onnx"), [layer], image=IMAGE)
    reference = OnnxReference(network, model)
    by_image = [max(reference.distances(blobs(4, SIZE, SIZE)[row : row + 1], [-1]).values()) for row in range(4)]
    assert sorted(by_image)[1] < 1e-4
