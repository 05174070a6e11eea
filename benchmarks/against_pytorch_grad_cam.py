"""Comparison of maps from the exported file on ONNX Runtime with pytorch-grad-cam on PyTorch: same network, image, layer and class. CPU.

    python benchmarks/against_pytorch_grad_cam.py [--pairs 10] [--channels 64] [--batch 16] [NETWORK ...]

    Grad-CAM      one image, the best class; pytorch-grad-cam with everything that its users do by default: forward, backward, resizing
    Score-CAM     the --channels channels of the layer that vary most, in batches of --batch, for both
    Faster-Score-CAM   in forward passes of the same session, batch 1, at its ten channels

Both sides end with a map of the input's size. The two of a pair run one after the other; the figures are medians of the pairs' ratios. The
weights are random. PyTorch runs as its users run it: default threads, eval mode, parameters that require gradients.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path

import numpy as np
import torch
import tqdm
from pytorch_grad_cam import GradCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

sys.path.insert(0, str(Path(__file__).parents[1]))

from tlcli.contract.images.heatmap import enlarge, to_unit
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.description import Provenance
from tlcli.contract.model.explain import explain
from tlcli.contract.model.onnx_model import Model
from tlcli.exports.exporter import describe_explainer
from tlcli.exports.onnx_writer import write_graph
from tlcli.exports.rewrite.closed_graph import describe
from tlcli.exports.trace.explainer import Explainer
from tlcli.training.data.shapes import draw
from tlcli.training.models.network import Network, NetworkConfig, build

SIZE = 224
CLASSES = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet50", "vgg16"])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    print(f"{SIZE} x {SIZE}, {arguments.pairs} pairs; Score-CAM over {arguments.channels} channels in batches of {arguments.batch}")
    print("| network | Grad-CAM, ms | times faster | Score-CAM, s | times faster | Faster-Score-CAM, forward passes |")
    print("|---|---|---|---|---|---|")
    for name in arguments.networks:
        print(f"| {name} | " + " | ".join(measure(name, arguments.pairs, arguments.channels, arguments.batch)) + " |", flush=True)


def ours(model: Model, image: np.ndarray, method: str, **more: int) -> np.ndarray:
    """Return the map of the best class, scaled to [0, 1] and enlarged to the input."""
    values = explain(model, image[None], methods=[method], **more).maps[method][0, 0]
    return enlarge(to_unit(values), SIZE, SIZE)


def compare(first: Callable[[], object], second: Callable[[], object], pairs: int) -> tuple[float, float]:
    """Return the median seconds of the first function, and the median ratio of the second to the first."""
    first(), second()
    times = []
    for _ in range(pairs):
        began = time.perf_counter()
        first()
        between = time.perf_counter()
        second()
        times.append((between - began, time.perf_counter() - between))
    return statistics.median(a for a, _ in times), statistics.median(b / a for a, b in times)


def write(network: Network) -> tuple[Model, str]:
    """Export the network; return the opened model and the layer that it explains."""
    explainer = Explainer(network)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_graph(explainer, path)
        provenance = Provenance(created="", versions={}, backbone="", head="linear", weights="none")
        describe(path, describe_explainer(explainer, "model", [f"class_{number}" for number in range(CLASSES)], provenance))
        return Model.open(path, device="cpu"), explainer.layers[0].name


def measure(name: str, pairs: int, channels: int, batch: int) -> list[str]:
    torch.manual_seed(0)
    network = build(NetworkConfig(backbone=name, head="linear", num_classes=CLASSES, preprocessing=Preprocessing(height=SIZE, width=SIZE)))
    model, layer = write(copy.deepcopy(network).requires_grad_(False))
    image = np.asarray(draw(0, 0, size=SIZE).image)
    inputs = network.normalise(torch.from_numpy(image[None]))
    module = network.backbone.get_submodule(layer)
    target = [ClassifierOutputTarget(int(model.run(image[None]).logits[0].argmax()))]

    with GradCAM(network, [module]) as peer:
        gradcam = compare(lambda: ours(model, image, "gradcam"), lambda: peer(inputs, target), pairs)
    with torch.no_grad():
        features = network.features(inputs)
    same = features.var((-2, -1)).argsort(descending=True)[0, :channels]  # those that ours looks through
    with ScoreCAM(network, [module], reshape_transform=lambda activations: activations[:, same]) as peer:
        peer.batch_size = batch
        scorecam = compare(
            lambda: ours(model, image, "scorecam", max_channels=channels, batch_size=batch),
            lambda: peer(inputs, target),
            max(2, pairs // 4),
        )
    faster = compare(lambda: model.run(image[None]), lambda: ours(model, image, "faster_scorecam"), pairs)
    return [
        f"{1000 * gradcam[0]:.1f}",
        f"{gradcam[1]:.2f}",
        f"{scorecam[0]:.2f}",
        f"{scorecam[1]:.2f}",
        f"{faster[1]:.1f}",
    ]


if __name__ == "__main__":
    tqdm.tqdm.__init__ = partialmethod(tqdm.tqdm.__init__, disable=True)  # type: ignore[method-assign]  # it prints for every image
    main()
