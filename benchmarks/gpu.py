"""Throughput of exported files on an NVIDIA GPU, beside the same network in PyTorch. Installs nothing.

    python benchmarks/gpu.py [--batch 1,8,32] [--clients 1,32,128] [--seconds 0.5] [--skip compiled,server] [--out FILE] [NETWORK ...]

Per network (random weights, 224 x 224, 1,000 classes), images/s from host memory to answers in host memory:

    file        `Model.run`, in float32 (exact; and in TF32, as PyTorch's convolutions are) and in float16, in the faster of two layouts
    scores, Grad-CAM, all      scores alone; with Grad-CAM of the best class; with every map in the graph but Ablation-CAM and Recipro-CAM
    PyTorch     eager, in float32 (TF32 convolutions, its default) and float16, the better of two memory formats; compiled for the
                largest batch; Grad-CAM by autograd
    of the peak the file's floating-point operations per second relative to the largest of several matrix products in the same type

Then prints how far a GPU's answers are from a CPU's, how long the first run of a new batch size takes, and the throughput of a server of
that file with closed-loop clients that send JPEGs, relative to the bare session's images/s in full batches.

Without a GPU, `--device cpu` runs the same code, so that it can be tested; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tlcli import training  # noqa: F401  # first: it settles how PyTorch's threads wait

# isort: split
import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.serving import ask
from tlcli.contract.errors import first_line
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.maps.method_names import COSTLY
from tlcli.contract.model.cuda_options import Cuda
from tlcli.contract.model.description import Provenance
from tlcli.contract.model.onnx_model import Model
from tlcli.exports.exporter import describe_explainer
from tlcli.exports.onnx_writer import flat_graph, write_graph
from tlcli.exports.precision.fp16 import convert_to_fp16
from tlcli.exports.rewrite.closed_graph import describe
from tlcli.exports.trace.explainer import Explainer
from tlcli.training.models.network import Network, NetworkConfig, build
from tlcli.training.reports.gradcam import gradcam

NETWORKS = ("resnet50", "vgg16", "mobilenetv2_100")
CLASSES, SIZE = 1000, 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--skip", default="", help="compiled, server, agreement, torch")
    parser.add_argument("--clients", default="1,32,128", help="of the server")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    batches, clients = ([int(one) for one in given.split(",")] for given in (arguments.batch, arguments.clients))
    bench = Bench(arguments.device, batches, clients, arguments.seconds, set(arguments.skip.split(",")), Tell(arguments.out))
    bench.machine()
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            bench.network(name, Path(folder))


class Tell:
    """Writer of lines to standard output and to a file, each at once."""

    def __init__(self, out: Path | None) -> None:
        self._out = out
        if out is not None:
            out.write_text("")

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        if self._out is not None:
            with self._out.open("a") as opened:
                opened.write(line + "\n")


@dataclass
class Bench:
    device: str
    batches: Sequence[int]
    clients: Sequence[int]
    seconds: float
    skip: set[str]
    tell: Tell

    def machine(self) -> None:
        name = torch.cuda.get_device_name() if self.device == "cuda" else "no GPU: a CPU, whose figures mean nothing"
        self.tell(f"{name}; onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}")
        self.peaks = {kind: self.peak(kind) for kind in ("float32", "tf32", "float16")}
        self.tell("matrix products, TFLOP/s: " + ", ".join(f"{kind} {peak / 1e12:.0f}" for kind, peak in self.peaks.items()))

    def peak(self, kind: str) -> float:
        """Return the floating-point operations per second of the fastest matrix product."""
        best = 0.0
        for side in (4096, 8192) if self.device == "cuda" else (512,):
            number = torch.float16 if kind == "float16" else torch.float32
            factors = [torch.randn(side, side, device=self.device, dtype=number) for _ in range(2)]
            torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
            try:
                took = self.median_s(torch.mm, *factors)
            finally:
                torch.backends.cuda.matmul.allow_tf32 = False
            best = max(best, 2 * side**3 / took)
        return best

    def median_s(self, run: Callable[..., object], *arguments: Any, **more: Any) -> float:
        """Return the median seconds of a call with these arguments, until the device is done."""

        def once() -> float:
            began = time.perf_counter()
            run(*arguments, **more)
            if self.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - began

        for _ in range(3):
            once()
        times: list[float] = []
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until or len(times) < 3:
            times.append(once())
        return statistics.median(times)

    def network(self, name: str, folder: Path) -> None:
        network = built(name)
        flops = operations(network)
        paths = write(network, folder)
        self.tell(f"\n## {name}: {flops / 1e9:.2f} GFLOP an image\n")
        self.tell("| | batch | scores | of the peak | Grad-CAM | all |")
        self.tell("|---|---|---|---|---|---|")
        best: dict[str, Model] = {}
        for kind, path, cuda in (
            ("float32", paths["float32"], Cuda(tf32=False)),
            ("tf32", paths["float32"], Cuda(tf32=True)),
            ("float16", paths["float16"], Cuda()),
        ):
            best[kind] = self.faster_layout(path, cuda)
            for batch in self.batches:
                self.row_of_file(kind, best[kind], batch, flops)
        if "torch" not in self.skip:
            self.pytorch(network, flops)
        if "agreement" not in self.skip:
            self.agreement(paths, best)
        self.new_sizes(paths["float32"])
        if "server" not in self.skip:
            for kind, model in best.items():
                if kind != "tf32":
                    self.server(kind, model, folder)

    def faster_layout(self, path: Path, cuda: Cuda) -> Model:
        images = make_images(max(self.batches))
        models = [Model.open(path, self.device, cuda=Cuda(cuda.tf32, channels_last)) for channels_last in (False, True)]
        times = [self.median_s(model.run, images) for model in models]
        return models[times.index(min(times))]

    def row_of_file(self, kind: str, model: Model, batch: int, flops: float) -> None:
        images = make_images(batch)
        maps = tuple(one for one in model.description.graph_maps if one not in COSTLY)
        rates = [batch / self.median_s(model.run, images, methods=methods) for methods in ((), ("gradcam",), maps)]
        share = rates[0] * flops / self.peaks[kind]
        self.tell(f"| file, {kind} | {batch} | {rates[0]:,.0f} | {share:.1%} | {rates[1]:,.0f} | {rates[2]:,.0f} |")

    def pytorch(self, network: Network, flops: float) -> None:
        for half in (False, True):
            kind = "float16" if half else "tf32"
            formats = {}
            for layout in (torch.contiguous_format, torch.channels_last):
                one = built(network.config.backbone).to(self.device, memory_format=layout)
                one.load_state_dict(network.state_dict())
                formats[layout] = (one.half() if half else one).eval().requires_grad_(False)
            for batch in self.batches:
                images = make_images(batch)
                took = {layout: self.median_s(eager, one, images) for layout, one in formats.items()}
                layout = min(took, key=lambda one: took[one])
                maps = batch / self.median_s(explained, formats[layout], images)
                rate = batch / took[layout]
                self.tell(f"| PyTorch eager, {kind} | {batch} | {rate:,.0f} | {rate * flops / self.peaks[kind]:.1%} | {maps:,.0f} | |")
            if "compiled" not in self.skip:
                self.row_of_compiled(kind, formats[torch.channels_last], flops)

    def row_of_compiled(self, kind: str, network: Network, flops: float) -> None:
        batch = max(self.batches)
        try:
            rate = batch / self.median_s(eager, network, make_images(batch), torch.compile(network, dynamic=False))
        except RuntimeError as error:  # such as: there is no C compiler
            self.tell(f"| PyTorch compiled, {kind} | {batch} | failed: {first_line(getattr(error, 'inner_exception', error))} | | | |")
            return
        self.tell(f"| PyTorch compiled, {kind} | {batch} | {rate:,.0f} | {rate * flops / self.peaks[kind]:.1%} | | |")

    def agreement(self, paths: dict[str, Path], best: dict[str, Model]) -> None:
        images = make_images(8)
        reference = Model.open(paths["float32"], "cpu")
        maps = tuple(one for one in reference.description.graph_maps if one not in COSTLY)
        expected = reference.run(images, methods=maps)
        self.tell("\nlargest difference from a CPU's float32, of the largest value (the median of 8 images):\n")
        self.tell(f"| | logits | {' | '.join(maps)} |")
        self.tell("|---|---|" + "---|" * len(maps))
        for kind, model in best.items():
            targets = expected.classes
            assert targets is not None
            found = model.run(images, targets, methods=maps)
            pairs = [(found.logits, expected.logits), *((found.maps[one], expected.maps[one]) for one in maps)]
            cells = [f"{statistics.median(far(*pair) for pair in zip(ours, theirs, strict=True)):.1e}" for ours, theirs in pairs]
            self.tell(f"| {kind} | {' | '.join(cells)} |")

    def new_sizes(self, path: Path) -> None:
        """Print how long other requests wait when a batch of another size arrives."""
        model = Model.open(path, self.device)
        model.run(make_images(1), methods=("gradcam",))
        model.run(make_images(32), methods=("gradcam",))
        first, again = [], []
        for batch in (3, 7, 13, 29):
            times = []
            for _ in range(2):
                began = time.perf_counter()
                model.run(make_images(batch), methods=("gradcam",))
                times.append(1000 * (time.perf_counter() - began))
            first.append(times[0])
            again.append(times[1])
        self.tell(f"\nfirst run of a new batch size {statistics.median(first):.1f} ms, the next of it {statistics.median(again):.1f} ms")
        for name, sizes in (("one session", ()), ("a session for each size", (1, 32))):
            took = alternating_ms(Model.open(path, self.device, batch_sizes=sizes))
            self.tell(f"batches of 1, 32, 5 and 32 images by turns, {name}: {took:.1f} ms a run")

    def server(self, kind: str, model: Model, folder: Path) -> None:
        repository = folder / f"repository-{kind}"
        (repository / "model" / "1").mkdir(parents=True)
        (repository / "model" / "1" / "model.onnx").symlink_to(model.path)
        images = make_images(32)
        bare = {method: 32 / self.median_s(model.run, images, methods=(method,) if method else ()) for method in ("", "gradcam")}
        files = jpegs(folder / "jpegs")
        cells = []
        with served(repository, self.device) as port:
            for clients in self.clients:
                for method in ("", "gradcam"):
                    found = ask(port, files, max(1.0, 6 * self.seconds), clients, method=method)
                    share = found["throughput"] / bare[method]
                    cells.append(
                        f"{method or 'scores'}, {clients} clients: {found['throughput']:,.0f}, {share:.2f} of the session's,"
                        f" p50 {found['p50_ms']:.1f} ms"
                    )
        self.tell(f"\nserver, {kind}, images a second: " + "; ".join(cells))


def alternating_ms(model: Model) -> float:
    """Return the mean time of a run, scores alone, while the batch size changes from run to run as it does in a server."""
    sizes = (1, 32, 5, 32)
    batches = [make_images(size) for size in sizes]
    for batch in batches:
        model.run(batch)
    began = time.perf_counter()
    for _ in range(3):
        for batch in batches:
            model.run(batch)
    return 1000 * (time.perf_counter() - began) / (3 * len(sizes))


def built(name: str) -> Network:
    torch.manual_seed(0)
    preprocessing = Preprocessing(height=SIZE, width=SIZE)
    return build(NetworkConfig(backbone=name, head="linear", num_classes=CLASSES, preprocessing=preprocessing)).requires_grad_(False)


def write(network: Network, folder: Path) -> dict[str, Path]:
    """Export the network; return the files by their precision."""
    explainer = Explainer(network)
    paths = {kind: folder / kind / "model.onnx" for kind in ("float32", "float16")}
    flat = flat_graph(explainer)
    for kind, path in paths.items():
        path.parent.mkdir()
        if kind == "float16":
            convert_to_fp16(flat)
        write_graph(explainer, path, flat)
        backbone = network.config.backbone
        provenance = Provenance(created="2026-01-01T00:00:00+00:00", versions={}, backbone=backbone, head="linear", weights="none")
        describe(path, describe_explainer(explainer, "model", [f"class_{number}" for number in range(CLASSES)], provenance))
    return paths


def operations(network: Network) -> float:
    """Return the floating-point operations of one image; a multiplication and an addition count as two."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(network.normalise(torch.from_numpy(make_images(1))))
    return float(counter.get_total_flops())


def make_images(count: int) -> np.ndarray:
    """Return images of noise."""
    return np.random.default_rng(count).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def jpegs(folder: Path, count: int = 64) -> list[Path]:
    """Return JPEGs of smooth images of a common size for classifiers, 500 x 375."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        encoded = io.BytesIO()
        small.resize((500, 375), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90)
        (folder / f"{number}.jpg").write_bytes(encoded.getvalue())
    return sorted(folder.iterdir())


@torch.inference_mode()
def eager(network: Network, images: np.ndarray, runs: torch.nn.Module | None = None) -> torch.Tensor:
    inputs = network.normalise(torch.from_numpy(images).to(network.mean.device))
    logits: torch.Tensor = (network if runs is None else runs)(inputs)
    return logits.float().softmax(1).cpu()


def explained(network: Network, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scores and Grad-CAM of the best class."""
    batch = torch.from_numpy(images).to(network.mean.device)
    with torch.no_grad():
        features = network.features(network.normalise(batch))
    with torch.enable_grad():
        features.requires_grad_()
        logits = network.classify(network.embed(features))
        gradients = torch.autograd.grad(logits.max(1).values.sum(), features)[0]
    return logits.detach().float().softmax(1).cpu(), gradcam(features.detach(), gradients[:, None]).float().cpu()


def far(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(np.float32).tiny))


@contextlib.contextmanager
def served(models: Path, device: str) -> Iterator[int]:
    """Run `tlcli serve` in a process and yield its port."""
    command = [sys.executable, "-m", "tlcli", "serve", str(models), "--port", "0", "--device", device, "--max-batch-size", "32"]
    process = subprocess.Popen([*command, "--max-queue-size", "512"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = 0
        for line in process.stderr:
            if "ready on" in line:
                print(line.strip(), flush=True)
            if "listening on" in line:
                port = int(line.rsplit(":", 1)[1])
            if "serving " in line:
                break
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=60)


if __name__ == "__main__":
    main()
