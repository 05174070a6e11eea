"""Maps of `tlcli export --onnx` for files of other exporters, against float64: a table of files and distances.

    python benchmarks/onnx_files.py                      # torchvision's networks, written by both of PyTorch's exporters
    python benchmarks/onnx_files.py --layers             # layers in the middle of three networks
    python benchmarks/onnx_files.py classifier.onnx ...  # files of any exporter, such as tf2onnx

torchvision's networks have random weights, and their maps are compared with float64 autograd on the network. In addition, the distance of
float32 autograd is shown: a ReLU that is on its edge may be on the other side in float64, in any implementation. A file without a PyTorch
network is compared as the export compares it: gradients with finite differences in float64, maps with formulas in float64.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import nn

from tests.helpers.exports.onnx_autograd import OnnxReference
from tests.helpers.exports.onnx_files import explain
from tlcli.contract.errors import TlcliError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.exports.onnx_export import export_onnx
from tlcli.exports.onnx_source.image_input import ImageInput
from tlcli.exports.onnx_source.input_settings import InputSettings
from tlcli.training.data.drawing.draw_shape import draw

NETWORKS = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "vgg11",
)
MIDDLE = (
    ("resnet18", "/layer2/layer2.1/relu_1/Relu_output_0"),
    ("resnet18", "/layer3/layer3.0/relu/Relu_output_0"),
    ("mobilenet_v3_small", "/features/features.4/block/block.3/block.3.0/Conv_output_0"),
    ("mobilenet_v3_small", "/features/features.7/block/block.1/block.1.2/HardSwish_output_0"),
    ("densenet121", "/features/transition2/pool/AveragePool_output_0"),
    ("densenet121", "/features/denseblock3/denselayer12/relu2/Relu_output_0"),
)
SIZE = 224
IMAGE = ImageInput(Preprocessing(height=SIZE, width=SIZE), channels_last=False)
IMAGES = 4
COLUMNS = ("file", "layer", "channels", "height", "logits", "median", "largest", "map", "float32", "export_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="ONNX files to export instead of torchvision's")
    parser.add_argument("--layers", action="store_true", help="layers in the middle")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="torchvision networks, with commas")
    arguments = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder), arguments.files, arguments.layers, arguments.networks.split(",")):
            print("| " + " | ".join(map(str, row)) + " |", flush=True)


def rows(folder: Path, files: Sequence[Path], layers: bool, networks: Sequence[str]) -> Iterator[tuple[object, ...]]:
    if files:
        for path in files:
            yield of_file(path, folder)
    elif layers:
        for name, layer in MIDDLE:
            network = network_of(name)
            yield of_network(name, network, write(network, folder / f"{name}-script.onnx", dynamo=False), (layer,))
    else:
        for name in networks:
            network = network_of(name)
            for exporter in ("dynamo", "script"):
                yield of_network(name, network, write(network, folder / f"{name}-{exporter}.onnx", exporter == "dynamo"), ())


def network_of(name: str) -> nn.Module:
    """Return a network with random weights, and batch norms of any scale."""
    torch.manual_seed(0)
    options = {"init_weights": True, "aux_logits": False} if name == "googlenet" else {}
    network: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=100, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.7, 1.4)
            nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


def write(network: nn.Module, path: Path, dynamo: bool) -> Path:
    images = torch.zeros(2, 3, SIZE, SIZE)
    free = {"dynamic_shapes": ({0: torch.export.Dim.AUTO},)} if dynamo else {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (images,), str(path), dynamo=dynamo, verbose=False, external_data=False, **free)  # type: ignore[arg-type]
    return path


def images() -> npt.NDArray[np.uint8]:
    return np.stack([np.asarray(draw(number, 0, size=SIZE).image.resize((SIZE, SIZE))) for number in range(IMAGES)])


def of_network(name: str, network: nn.Module, path: Path, layers: Sequence[str]) -> tuple[object, ...]:
    begin = time.perf_counter()
    try:
        explained, model = explain(path, path.with_name("model.onnx"), layers, image=IMAGE)
    except TlcliError as error:
        return (path.stem, layers or "-", *["-"] * 5, str(error), "-", "-")
    took = time.perf_counter() - begin
    reference = OnnxReference(copy.deepcopy(network), model)
    by_image = [reference.distances(image[None]) for image in images()]
    logits = max(result.pop("logits") for result in by_image)
    worst = [max((value, method) for method, value in result.items()) for result in by_image]
    value, method = max(worst)
    single = OnnxReference(copy.deepcopy(network), model, torch.float32)
    alone = max(max(v for k, v in single.from_double(image[None], reference).items()) for image in images())
    layer = explained.layout.layers[0]
    median = float(np.median([distance for distance, _ in worst]))
    path.unlink()
    return (
        path.stem,
        layer.name,
        layer.channels,
        layer.height,
        f"{logits:.1e}",
        f"{median:.1e}",
        f"{value:.1e}",
        method,
        f"{alone:.1e}",
        f"{took:.1f}",
    )


def of_file(path: Path, folder: Path) -> tuple[object, ...]:
    begin = time.perf_counter()
    try:
        exported = export_onnx(path, name="m", repository=folder, settings=InputSettings(input_range="-1..1"), check_images=IMAGES)
    except TlcliError as error:
        return (path.stem, *["-"] * 6, str(error), "-", "-")
    took = time.perf_counter() - begin
    maps = exported.parity.maps
    method = max(maps, key=lambda name: maps[name])
    layer = exported.description.layers[0]
    logits = exported.parity.logits
    return (path.stem, layer.name, layer.channels, layer.height, f"{logits:.1e}", "-", f"{maps[method]:.1e}", method, "-", f"{took:.1f}")


if __name__ == "__main__":
    sys.exit(main())
