"""Time that cached features save: `tlcli finetune` with a frozen base, against other ways to train the same head. CPU.

    python benchmarks/feature_extraction.py FOLDER [--limit 2000] [--share 1.0] [--fastai PYTHON] [NETWORK ...]

    bare         one pass of the frozen base over all images, reading included: the same worker processes read ahead, and the base runs
                 in whatever is fastest on the first 64 images, PyTorch (which keeps its freed memory, as in tlcli) or ONNX Runtime, in
                 batches of 8 or 32; a session is opened before the clock starts
    tlcli        features and ten epochs of the head from an empty cache, as in the run's `results.json`; relative to bare, target 1.15
    again        the whole command once more with another learning rate, process start and data set check included; target 10 s
    every epoch  the frozen base in PyTorch, also with its freed memory kept, run anew in each epoch; target 6 times tlcli's time
    fastai       `vision_learner`, frozen (with --fastai: the PYTHON of an environment with fastai and torchvision); same target

FOLDER holds a folder of photographs per class, of which --limit are used, a fifth of them for validation. The last two are timed over two
epochs of --share of those images, and scaled to ten epochs of all. Networks are timm's vgg16 and resnet50 with random weights at
224 x 224 and a linear head; fastai's are torchvision's of the same names.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tlcli import training  # noqa: F401  # first: it settles how PyTorch's threads wait

# isort: split
import onnxruntime
import torch
from torch.nn import functional

from tlcli.contract.images import decoding
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.process.cores import usable_cores
from tlcli.contract.process.malloc import keep_freed_memory
from tlcli.training.data.dataloader import ImageBatch, image_batches
from tlcli.training.data.dataset import Part
from tlcli.training.data.load import load_dataset
from tlcli.training.models.network import Network, NetworkConfig, build
from tlcli.training.settings.config import FinetuneConfig

NETWORKS = ("resnet50", "vgg16")
EPOCHS = 10
TIMED_EPOCHS = 2
PROBED = 64
BATCH = 32

Run = Callable[[torch.Tensor], object]
"""Of uint8 `[N, 224, 224, 3]`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--fastai")
    arguments = parser.parse_intermixed_args()
    print(
        f"{arguments.limit} photographs, {EPOCHS} epochs; the last two columns from {TIMED_EPOCHS} epochs of {arguments.share:.0%} of them"
    )
    print("| network | bare, s | by | tlcli, s | over bare | again, s | every epoch, s | over tlcli | fastai, s | over tlcli |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TLCLI_CACHE"] = f"{folder}/cache"
            everything, some = Path(folder, "images"), Path(folder, "some")
            choose(arguments.folder, arguments.limit, everything)
            choose(arguments.folder, round(arguments.limit * arguments.share), some)
            print(row(name, everything, some, arguments.fastai, Path(folder)), flush=True)


def row(name: str, everything: Path, some: Path, fastai: str | None, folder: Path) -> str:
    bare, by = bare_pass(name, everything)
    first, _ = finetune(name, everything, folder / "first", "0.0003")
    _, again = finetune(name, everything, folder / "again", "0.001")
    scale = EPOCHS / TIMED_EPOCHS * count(everything) / count(some)
    anew = scale * every_epoch(name, some)
    cells = [f"{bare:.1f}", by, f"{first:.1f}", f"{first / bare:.3f}", f"{again:.1f}", f"{anew:.0f}", f"{anew / first:.1f}"]
    if fastai is None:
        cells += ["not measured", ""]
    else:
        command = [fastai, str(Path(__file__).parent / "peers" / "fastai_frozen.py"), str(some), name, str(TIMED_EPOCHS), str(workers())]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        seconds = scale * float(answer.split()[-1])
        cells += [f"{seconds:.0f}", f"{seconds / first:.1f}"]
    return f"| {name} | " + " | ".join(cells) + " |"


def choose(folder: Path, limit: int, target: Path) -> None:
    """Link a number of images into a folder, the same number of each class."""
    classes = sorted(one for one in folder.iterdir() if one.is_dir())
    for one in classes:
        (target / one.name).mkdir(parents=True)
        for image in decoding.find([one])[: limit // len(classes)]:
            (target / one.name / image.name).symlink_to(image.absolute())


def count(folder: Path) -> int:
    return len(decoding.find([folder]))


def workers() -> int:
    return min(usable_cores(), 8)  # as tlcli.training.settings.plan has it


def built(name: str) -> Network:
    torch.manual_seed(0)
    config = NetworkConfig(backbone=name, head="linear", num_classes=2, preprocessing=Preprocessing(height=224, width=224))
    return build(config)


def parts_of(folder: Path) -> list[Part]:
    """Return the training and the validation split."""
    dataset = load_dataset(FinetuneConfig(dataset=str(folder), weights="none"))
    return [dataset.train, dataset.val]


def read(part: Part, network: Network, batch: int) -> Iterator[ImageBatch]:
    return image_batches(part, network.config.preprocessing, batch_size=batch, workers=workers())


def bare_pass(name: str, folder: Path) -> tuple[float, str]:
    """Return the seconds of one pass, and the engine that ran it."""
    network, parts = built(name), parts_of(folder)
    probe = torch.cat([images for images, _, _ in islice(read(parts[0], network, BATCH), PROBED // BATCH)])
    runs = {"PyTorch": in_pytorch(network), "ONNX Runtime": in_onnx_runtime(network)}
    ways = {f"{name}, {batch}": (run, batch) for name, run in runs.items() for batch in (8, BATCH)}
    times = {by: min(seconds(run, probe, batch) for _ in range(2)) for by, (run, batch) in ways.items()}
    fastest = min(times, key=lambda by: times[by])
    run, batch = ways[fastest]
    began = time.perf_counter()
    for part in parts:
        for images, _, _ in read(part, network, batch):
            run(images)
    return time.perf_counter() - began, fastest


class Frozen(torch.nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.embed(self.network.features(self.network.normalise(images)))


def in_pytorch(network: Network) -> Run:
    keep_freed_memory()
    return torch.inference_mode()(Frozen(network))


def in_onnx_runtime(network: Network) -> Run:
    example, batch = torch.zeros(3, 224, 224, 3, dtype=torch.uint8), torch.export.Dim.AUTO
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(Frozen(network).eval(), (example,), dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
        assert program is not None
        program.save(f"{folder}/frozen.onnx")
        session = onnxruntime.InferenceSession(f"{folder}/frozen.onnx", options, providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())
    return lambda images: session.run(None, {name: images.numpy()})


def seconds(run: Run, images: torch.Tensor, batch: int) -> float:
    began = time.perf_counter()
    for some in images.split(batch):
        run(some)
    return time.perf_counter() - began


def finetune(name: str, folder: Path, output: Path, lr: str) -> tuple[float, float]:
    """Return the seconds of features and head, and those of the whole command."""
    command = [sys.executable, "-m", "tlcli", "finetune", "--backbone", name, "--weights", "none", "--dataset", str(folder), "--lr", lr]
    command += ["--epochs", str(EPOCHS), "--image-size", "224", "--device", "cpu", "--no-export", "--quiet", "--output", str(output)]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
    whole = time.perf_counter() - began
    took = json.loads((output / "results.json").read_text())["seconds"]
    return took["features"] + took["head"], whole


def every_epoch(name: str, folder: Path) -> float:
    """Return the seconds of the timed epochs, validation included."""
    network = built(name)
    train, val = parts_of(folder)
    network.requires_grad_(False)
    network.classifier.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.classifier.parameters(), lr=3e-4)
    began = time.perf_counter()
    for _ in range(TIMED_EPOCHS):
        for images, labels in read(train, network, BATCH):
            loss = functional.cross_entropy(network(network.normalise(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.inference_mode():
            for images, _ in read(val, network, BATCH):
                network(network.normalise(images))
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
