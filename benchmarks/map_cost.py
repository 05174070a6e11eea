"""What a Grad-CAM map costs: scores with the first class's map over scores alone, on ONNX Runtime, on a CPU.

    python benchmarks/map_cost.py [--pairs 30] [--batch 1] [--size 224] [NETWORK:HEAD ...]

Each pair runs one after the other on the same session; the median of the pairs' ratios is printed, since the machine's speed drifts.
The networks have random weights; HEAD is linear, mlp:256 or original.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from contract.description import Provenance
from contract.model import Model
from contract.preprocessing import Preprocessing
from exports import export
from training.network import NetworkConfig, build

NETWORKS = ["resnet50:linear", "vgg16:linear", "vgg16:mlp:256", "vgg16:original", "mobilenetv2_100:linear"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    print(f"batch {arguments.batch}, {arguments.size} x {arguments.size}, {arguments.pairs} pairs")
    print("| network | head | scores alone, ms | with Grad-CAM over without |")
    print("|---|---|---|---|")
    for network in arguments.networks:
        backbone, _, head = network.partition(":")
        alone_s, ratio = measure(backbone, head, arguments.batch, arguments.size, arguments.pairs)
        print(f"| {backbone} | {head} | {1000 * alone_s:.1f} | {ratio:.3f} |", flush=True)


def measure(backbone: str, head: str, batch: int, size: int, pairs: int) -> tuple[float, float]:
    """Median seconds of scores alone, and the median of the pairs' ratios."""
    torch.manual_seed(0)
    network = build(NetworkConfig(backbone=backbone, head=head, num_classes=10, preprocessing=Preprocessing(height=size, width=size)))
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        provenance = Provenance(created="", versions={}, backbone=backbone, head=head, weights="none")
        labels = [f"class_{number}" for number in range(10)]
        exported = export(
            network, name="model", labels=labels, repository=Path(folder), images=[images[0]], source="noise", provenance=provenance
        )
        model = Model.open(exported.path, device="cpu")
    model.warm_up()
    alone, with_map = [], []
    for _ in range(pairs):
        began = time.perf_counter()
        model.run(images)
        between = time.perf_counter()
        model.run(images, methods=("gradcam",))
        alone.append(between - began)
        with_map.append(time.perf_counter() - between)
    return statistics.median(alone), statistics.median(b / a for a, b in zip(alone, with_map, strict=True))


if __name__ == "__main__":
    main()
