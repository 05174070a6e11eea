"""Distance of exported models from PyTorch on real images: every head on VGG16, ResNet-18 and MobileNetV2.

    python benchmarks/parity.py FOLDER [--images 200] [--size 224] [--backbones NAME ...] [--heads HEAD ...]

FOLDER is searched for photographs. Prints for each network, with random weights: the largest difference of the logits from PyTorch's
(float32), the share of images with the same first class, the largest difference of each map from a float64 autograd reference written from
the papers (tests/helpers/exports/reference.py) relative to the map's largest value, and the largest difference between the answers to a
batch and to its images one by one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.helpers.exports.reference import Reference, relative_difference
from tlcli.contract.images import decoding
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.maps.method_names import COSTLY, IN_GRAPH
from tlcli.contract.model.description import Provenance
from tlcli.contract.model.onnx_model import Model
from tlcli.exports import export
from tlcli.training.models.network import NetworkConfig, build

CLASSES = 10
METHODS = tuple(name for name in IN_GRAPH if name not in COSTLY)
"""Costly methods run the network again for every channel or position: benchmarks/networks.py has them, on one image."""
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--backbones", nargs="+", default=["mobilenetv2_100", "resnet18", "vgg16"])
    parser.add_argument("--heads", nargs="+", default=["linear", "mlp:256", "original"])
    arguments = parser.parse_args()
    found = decoding.find([arguments.folder])
    chosen = [found[index * len(found) // arguments.images] for index in range(min(arguments.images, len(found)))]
    preprocessing = Preprocessing(height=arguments.size, width=arguments.size)
    images = [preprocessing.apply(decoding.read(path)) for path in chosen]
    print(f"{len(images)} images of {arguments.folder.name}, {arguments.size} x {arguments.size}")
    print(f"| network | head | logits | first class agrees | {' | '.join(METHODS)} | batch against single: logits | maps | seconds |")
    print("|---|---|---|---|" + "---|" * len(METHODS) + "---|---|---|")
    for backbone in arguments.backbones:
        for head in arguments.heads:
            row = measure(backbone, head, preprocessing, images)
            print(f"| {backbone} | {head} | " + " | ".join(row) + " |", flush=True)


def measure(backbone: str, head: str, preprocessing: Preprocessing, images: list[np.ndarray]) -> list[str]:
    began = time.perf_counter()
    torch.manual_seed(0)
    network = build(NetworkConfig(backbone=backbone, head=head, num_classes=CLASSES, preprocessing=preprocessing))
    with tempfile.TemporaryDirectory() as folder:
        exported = export(
            network,
            name="model",
            labels=[f"class_{number}" for number in range(CLASSES)],
            repository=Path(folder),
            images=images[:4],
            source="photographs",
            provenance=Provenance(created="", versions={}, backbone=backbone, head=head, weights="none"),
        )
        model = Model.open(exported.path, device="cpu")
        methods = [method for method in METHODS if method in model.description.graph_maps]
        reference = Reference(network, model.description.maps[0].layer)
        logits, agree, batched = 0.0, 0, [0.0, 0.0]
        answered: dict[str, list[np.ndarray]] = {method: [] for method in methods}
        expected: dict[str, list[np.ndarray]] = {method: [] for method in methods}
        for start in range(0, len(images), BATCH):
            batch = np.stack(images[start : start + BATCH])
            answer = model.run(batch, [-1], methods)
            theirs = network.predict(batch).numpy()
            logits = max(logits, float(np.abs(answer.logits - theirs).max()))
            agree += int((answer.logits.argmax(1) == theirs.argmax(1)).sum())
            for method in methods:
                expected[method].append(reference.maps(method, batch, answer.classes))
                answered[method].append(answer.maps[method])
            alone = model.run(batch[:1], [-1], methods)
            batched[0] = max(batched[0], float(np.abs(alone.logits - answer.logits[:1]).max()))
            batched[1] = max(batched[1], *(relative_difference(alone.maps[m], answer.maps[m][:1]) for m in methods))
    maps = {method: relative_difference(np.concatenate(answered[method]), np.concatenate(expected[method])) for method in methods}
    return [
        f"{logits:.1e}",
        f"{agree / len(images):.1%}",
        *(f"{maps[method]:.1e}" if method in maps else "–" for method in METHODS),
        f"{batched[0]:.1e}",
        f"{batched[1]:.1e}",
        f"{time.perf_counter() - began:.0f}",
    ]


if __name__ == "__main__":
    main()
