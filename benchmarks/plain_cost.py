"""Cost of a plain graph: its time relative to the graph with optional inputs, asked for the same maps. ONNX Runtime, CPU.

    python benchmarks/plain_cost.py [--pairs 30] [--batch 1] [--size 224] [--classes 1000] [--maps gradcam,layercam] [NETWORK:HEAD ...]

    input        plain graph whose classes are an input, relative to the graph with optional inputs
    top          plain graph of the first class
    fixed        plain graph of the first class with a fixed batch

The runs of a round follow one another in a random order; the figures are medians of the rounds' ratios. Half of the rounds create the
sessions in the opposite order. The networks have random weights; HEAD is linear, mlp:256 or original.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.session_memory import open_session
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.description import CLASSES, IMAGES, LOGITS, SCORES, TARGETS, WANTED, Plain
from tlcli.exports.onnx_writer import flat_graph, write_graph
from tlcli.exports.trace.explainer import Explainer
from tlcli.training.models.network import NetworkConfig, build

NETWORKS = ["resnet50:linear", "vgg16:mlp:256", "mobilenetv2_100:linear", "efficientnet_b0:linear"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--maps", default="gradcam,layercam")
    arguments = parser.parse_args()
    maps = arguments.maps.split(",")
    forms = {
        "input": Plain(),
        "top": Plain(classes="top"),
        "fixed": Plain(classes="top", batch=arguments.batch),
    }
    size = f"{arguments.size} x {arguments.size}"
    print(f"batch {arguments.batch}, {size}, {arguments.classes} classes, {arguments.maps}, {arguments.pairs} rounds")
    print("| network | head | optional inputs, ms | input | top | fixed |")
    print("|---|---|---|---|---|---|")
    for name in arguments.networks:
        backbone, _, head = name.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            write(backbone, head, arguments.classes, arguments.size, maps, forms, Path(folder))
            times = measure(Path(folder), maps, list(forms), arguments.batch, arguments.size, arguments.pairs)
        ratios = [statistics.median(a / b for a, b in zip(times[form], times["gated"], strict=True)) for form in forms]
        gated_ms = 1000 * statistics.median(times["gated"])
        print(f"| {backbone} | {head or 'linear'} | {gated_ms:.1f} | " + " | ".join(f"{ratio:.3f}" for ratio in ratios) + " |", flush=True)


def write(backbone: str, head: str, classes: int, size: int, maps: list[str], forms: dict[str, Plain], folder: Path) -> None:
    """Write `gated.onnx` and a file per form, all of the same network and maps."""
    torch.manual_seed(0)
    config = NetworkConfig(
        backbone=backbone, head=head or "linear", num_classes=classes, preprocessing=Preprocessing(height=size, width=size)
    )
    explainer = Explainer(build(config).eval().requires_grad_(False), maps)
    flat = flat_graph(explainer)
    write_graph(explainer, folder / "gated.onnx", flat)
    for name, form in forms.items():
        write_graph(explainer, folder / f"{name}.onnx", flat, form)


def measure(folder: Path, maps: list[str], forms: list[str], batch: int, size: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each run by its name."""
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    names = ["gated", *forms]
    times: dict[str, list[float]] = {name: [] for name in names}
    for order in (names, names[::-1]):
        sessions = {name: open_session(folder / f"{name}.onnx") for name in order}
        feeds = {}
        for name, session in sessions.items():
            inputs = {entry.name for entry in (*session.get_inputs(), *session.get_overridable_initializers())}
            feeds[name] = {IMAGES: images}
            if TARGETS in inputs:
                feeds[name][TARGETS] = np.full((batch, 1), -1)
            if WANTED in inputs:
                width = next(entry.shape[1] for entry in session.get_overridable_initializers() if entry.name == WANTED)
                feeds[name][WANTED] = np.array([[index < len(maps) for index in range(width)]])  # the maps are the first switches
        outputs = [SCORES, LOGITS, CLASSES, *maps]
        for name in names * 2:
            sessions[name].run(outputs, feeds[name])
        for _ in range(rounds // 2):
            for name in random.sample(names, len(names)):
                began = time.perf_counter()
                sessions[name].run(outputs, feeds[name])
                times[name].append(time.perf_counter() - began)
        del sessions
    return times


if __name__ == "__main__":
    main()
