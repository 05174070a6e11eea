"""Cost of maps: time, file size and memory of an exported model, relative to a bare export of the same network. ONNX Runtime, CPU.

    python benchmarks/map_cost.py [--pairs 30] [--batch 1] [--size 224] [--classes 1000] [--memory] [NETWORK:HEAD ...]

    scores       scores alone from the file with maps, relative to the bare export
    Grad-CAM     scores and Grad-CAM of the best class, relative to scores alone, from the file with maps
    LeGrad       the same with LeGrad, for vision transformers
    all          scores and every map in the graph but Ablation-CAM and Recipro-CAM, relative to scores alone
    file         size of the file with maps, relative to the bare one
    memory       benchmarks/session_memory.py of the one relative to the other (with --memory)

The runs of a round follow one another in a random order; the figures are medians of the rounds' ratios. On some machines the session
that is created second is faster, whatever it holds, so half of the rounds use each order of creation. The networks have random weights;
HEAD is linear, mlp:256 or original.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.session_memory import open_session
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.maps.method_names import COSTLY
from tlcli.contract.model.description import IMAGES, LOGITS, SCORES, WANTED
from tlcli.exports.onnx_writer import write_graph
from tlcli.exports.rewrite.closed_graph import IR_VERSION, OPSET
from tlcli.exports.trace.explainer import Explainer
from tlcli.training.models.network import Network, NetworkConfig, build

NETWORKS = [
    "resnet50:linear",
    "vgg16:linear",
    "vgg16:mlp:256",
    "vgg16:original",
    "mobilenetv2_100:linear",
    "efficientnet_b0:linear",
]
UNASKED = (*COSTLY, "features", "gradients")


class Bare(torch.nn.Module):
    """The same network, without maps."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.network(self.network.normalise(images))
        return logits.softmax(1), logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    print(f"batch {arguments.batch}, {arguments.size} x {arguments.size}, {arguments.classes} classes, {arguments.pairs} rounds")
    timm.layers.set_fused_attn(False)  # as the exporter does; the ONNX operators of fused attention are the same
    print("| network | head | bare, ms | scores | Grad-CAM | LeGrad | all | file | memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.networks:
        backbone, _, head = name.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            switches = write(backbone, head, arguments.classes, arguments.size, Path(folder))
            times = measure(Path(folder), switches, arguments.batch, arguments.size, arguments.pairs)
            size = Path(folder, "maps.onnx").stat().st_size / Path(folder, "bare.onnx").stat().st_size
            memory = "not measured"
            if arguments.memory:
                bare, maps = (memory_of(Path(folder, f"{file}.onnx"), arguments.size) for file in ("bare", "maps"))
                memory = f"{maps / bare:.3f} ({bare / 1e6:.0f} MB)"
        bare_ms = 1000 * statistics.median(times["bare"])
        ratios = [
            _ratio(times, over, under) for over, under in (("scores", "bare"), *((name, "scores") for name in ("gradcam", "legrad", "all")))
        ]
        print(f"| {backbone} | {head or 'linear'} | {bare_ms:.1f} | {' | '.join(ratios)} | {size:.4f} | {memory} |", flush=True)


def _ratio(times: dict[str, list[float]], over: str, under: str) -> str:
    """Return the median ratio of the runs of two names, or a dash if there are none."""
    ratios = [a / b for a, b in zip(times[over], times[under], strict=True)] if over in times else []
    return f"{statistics.median(ratios):.3f}" if ratios else "–"


def write(backbone: str, head: str, classes: int, size: int, folder: Path) -> list[str]:
    """Write `bare.onnx` and `maps.onnx`; return the switches of the latter."""
    torch.manual_seed(0)
    preprocessing = Preprocessing(height=size, width=size)
    config = NetworkConfig(backbone=backbone, head=head or "linear", num_classes=classes, preprocessing=preprocessing)
    network = build(config).requires_grad_(False)
    program = torch.onnx.export(
        Bare(network).eval(),
        (torch.zeros(3, size, size, 3, dtype=torch.uint8),),
        dynamo=True,
        input_names=[IMAGES],
        output_names=[SCORES, LOGITS],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    program.model.ir_version = IR_VERSION
    program.save(str(folder / "bare.onnx"))
    explainer = Explainer(network)
    write_graph(explainer, folder / "maps.onnx")
    return list(explainer.switches)


def measure(folder: Path, switches: list[str], batch: int, size: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each run by its name."""
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    times: dict[str, list[float]] = {}
    for order in (("bare", "maps"), ("maps", "bare")):
        sessions = {name: open_session(folder / f"{name}.onnx") for name in order}

        def asking(names: list[str], session: onnxruntime.InferenceSession = sessions["maps"]) -> Callable[[], object]:
            feed = {IMAGES: images, WANTED: np.array([[switch in names for switch in switches]])}
            return lambda: session.run([SCORES, LOGITS, *names], feed)

        bare = sessions["bare"]
        runs = {
            "bare": lambda bare=bare: bare.run([SCORES, LOGITS], {IMAGES: images}),
            "scores": asking([]),
            "gradcam": asking(["gradcam"]),
            "all": asking([switch for switch in switches if switch not in UNASKED]),
        }
        if "legrad" in switches:
            runs["legrad"] = asking(["legrad"])
        for run in [*runs.values()] * 2:
            run()
        for _ in range(rounds // 2):
            for name in random.sample(list(runs), len(runs)):
                began = time.perf_counter()
                runs[name]()
                times.setdefault(name, []).append(time.perf_counter() - began)
    return times


def memory_of(path: Path, size: int) -> int:
    """Return the bytes of memory that a session of the file holds."""
    command = [sys.executable, str(Path(__file__).with_name("session_memory.py")), str(path), "--size", str(size)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
