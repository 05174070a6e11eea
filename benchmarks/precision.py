"""Files in reduced precision against the float32 file of the same network: time, size, answers and maps.

    python benchmarks/precision.py speed [--pairs 30] [--batch 1] [--size 224] [NETWORK:HEAD ...]
    python benchmarks/precision.py answers PETS WEIGHTS CIFAR CIFAR_WEIGHTS [--images 10000]

`speed` takes networks with random weights and 1,000 classes, in int8 (`benchmarks/gpu.py` has fp16 on a GPU):

    scores       throughput of scores alone, relative to the float32 file
    Grad-CAM     throughput of scores with Grad-CAM of the best class, relative to the float32 file
    file         size of the smaller file, relative to the float32 file

The four runs of a round follow one another in a random order; the figures are medians of the rounds' ratios. Each run is done twice, and
the second counts: in int8 the first run after the other file's is slower, which a server of one file never sees. The session that is
created second may be faster, whatever it holds, so half of the rounds use each order of creation.

`answers` exports as `tlcli export --precision` does, fp16 and int8, and compares with the float32 file on evenly spaced images of the test
split: accuracy, the share with the same first class, and the rank correlation of each map in the graph. PETS holds `train` and `test`,
each with `cat` and `dog`; WEIGHTS is a MobileNetV2 checkpoint for timm's `mobilenetv2_100` with `pad_type="same"` and inputs scaled to
[-1, 1], on which a head is trained at `tlcli finetune`'s defaults. CIFAR holds CIFAR-10 as images; CIFAR_WEIGHTS are a CIFAR ResNet-20's.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.networks import trained_looking
from tlcli.contract.images.evenly_spaced import evenly_spaced
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.description import Provenance
from tlcli.contract.model.onnx_model import Model
from tlcli.evaluation.agreement import Images, Shown, compare
from tlcli.exports import SmallerNumbers, export_backbone, export_run
from tlcli.exports.exporter import describe_explainer
from tlcli.exports.onnx_writer import flat_graph, write_graph
from tlcli.exports.precision.int8 import quantise
from tlcli.exports.rewrite.closed_graph import describe
from tlcli.exports.trace.explainer import Explainer
from tlcli.training import FinetuneConfig, finetune, load_run
from tlcli.training.data.load import load_dataset
from tlcli.training.data.shapes import draw
from tlcli.training.models.network import NetworkConfig, build

NETWORKS = ["resnet50", "vgg16", "mobilenetv2_100", "resnet18"]
KINDS = ("fp32", "int8")
CALIBRATION = 16
PROVENANCE = Provenance(created="", versions={}, backbone="", head="", weights="none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    speed = kinds.add_parser("speed")
    speed.add_argument("networks", nargs="*", default=NETWORKS)
    speed.add_argument("--pairs", type=int, default=30)
    speed.add_argument("--batch", type=int, default=1)
    speed.add_argument("--size", type=int, default=224)
    answers = kinds.add_parser("answers")
    for name in ("pets", "weights", "cifar", "cifar_weights"):
        answers.add_argument(name)
    answers.add_argument("--images", type=int, default=10000)
    arguments = parser.parse_args()
    if arguments.kind == "speed":
        compare_speed(arguments)
    else:
        compare_answers(arguments)


def compare_speed(arguments: argparse.Namespace) -> None:
    print(f"int8 over fp32, batch {arguments.batch}, {arguments.size} x {arguments.size}, {arguments.pairs} rounds")
    print("| network | head | fp32, ms | scores | Grad-CAM | file |")
    print("|---|---|---|---|---|---|")
    for name in arguments.networks:
        backbone, _, head = name.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            write(backbone, head or "linear", arguments.size, Path(folder))
            times = measure(Path(folder), arguments.batch, arguments.size, arguments.pairs)
            sizes = [Path(folder, f"{kind}.onnx").stat().st_size for kind in KINDS]
        scores, gradcam = (
            statistics.median(a / b for a, b in zip(times["fp32", what], times["int8", what], strict=True))
            for what in ("scores", "gradcam")
        )
        took = 1000 * statistics.median(times["fp32", "scores"])
        row = f"| {backbone} | {head or 'linear'} | {took:.1f} | {scores:.2f} | {gradcam:.2f} | {sizes[1] / sizes[0]:.2f} |"
        print(row, flush=True)


def write(backbone: str, head: str, size: int, folder: Path) -> None:
    """Write `fp32.onnx` and `int8.onnx`."""
    torch.manual_seed(0)
    preprocessing = Preprocessing(height=size, width=size)
    config = NetworkConfig(backbone=backbone, head=head, num_classes=1000, preprocessing=preprocessing)
    explainer = Explainer(trained_looking(build(config)))
    described = describe_explainer(explainer, "model", [f"class_{number}" for number in range(1000)], PROVENANCE)
    flat = flat_graph(explainer)
    for kind in KINDS:
        if kind == "int8":
            quantise(flat, [np.asarray(draw(number, 7, size=size).image) for number in range(CALIBRATION)])
        write_graph(explainer, folder / f"{kind}.onnx", flat)
        describe(folder / f"{kind}.onnx", described)


def measure(folder: Path, batch: int, size: int, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each run, by file and request."""
    images = np.stack([np.asarray(draw(number, 0, size=size).image) for number in range(batch)])
    times: dict[tuple[str, str], list[float]] = {(kind, what): [] for kind in KINDS for what in ("scores", "gradcam")}
    for order in (KINDS, KINDS[::-1]):
        models = {kind: Model.open(folder / f"{kind}.onnx", "cpu") for kind in order}

        def asking(kind: str, what: str, models: dict[str, Model] = models) -> Callable[[], object]:
            methods = ["gradcam"] if what == "gradcam" else []
            return lambda: models[kind].run(images, [-1], methods)

        runs = {key: asking(*key) for key in times}
        for run in [*runs.values()] * 3:
            run()
        for _ in range(max(1, rounds // 2)):
            for key in random.sample(list(runs), len(runs)):
                runs[key]()
                began = time.perf_counter()
                runs[key]()
                times[key].append(time.perf_counter() - began)
    return times


def compare_answers(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        for name, made in {"MobileNetV2, cats and dogs": pets, "ResNet-20, CIFAR-10": cifar}.items():
            before, test = made(arguments, None, models)
            numbers = evenly_spaced(test.count, arguments.images)
            chosen = Images(len(numbers), test.source, lambda number, numbers=numbers, test=test: test.show(numbers[number]))
            for small in ("fp16", "int8"):
                after, _ = made(arguments, SmallerNumbers(small, max_accuracy_drop=100), models)
                found = compare(before, after, chosen)
                size = after.path.stat().st_size / before.path.stat().st_size
                print(f"\n{name}, {small}: {found.images:,} test images, right {found.top1:.2%}, in fp32 {found.top1_before:.2%};")
                print(f"the same first class {found.agreement:.2%}; file {size:.2f}\n")
                print("| map | rank correlation | median |\n|---|---|---|")
                for method, maps in found.maps.items():
                    print(f"| {method} | {maps.rank_correlation:.3f} | {maps.rank_correlation_median:.3f} |", flush=True)


def pets(arguments: argparse.Namespace, numbers: SmallerNumbers | None, models: Path) -> tuple[Model, Images]:
    """Return an exported run, and its test split."""
    output = models / "run"
    if not output.exists():
        config = FinetuneConfig(
            backbone="mobilenetv2_100",
            weights=arguments.weights,
            model_kwargs={"pad_type": "same"},
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            dataset=arguments.pets,
            output=output,
        )
        finetune(config)
    run = load_run(output)
    exported = export_run(run, name="pets", repository=models / "models", numbers=numbers)
    return opened_with(exported.path, run.config)


def cifar(arguments: argparse.Namespace, numbers: SmallerNumbers | None, models: Path) -> tuple[Model, Images]:
    """Return a published classifier, calibrated on training images, and the test split."""
    config = FinetuneConfig(backbone="cifar_resnet20", weights=arguments.cifar_weights, dataset=arguments.cifar)
    calibration = [Path(arguments.cifar) / "train"] if numbers is not None and numbers.precision == "int8" else []
    exported = export_backbone(config, name="cifar", repository=models / "models", numbers=numbers, calibration_paths=calibration)
    return opened_with(exported.path, config)


def opened_with(path: Path, config: FinetuneConfig) -> tuple[Model, Images]:
    model = Model.open(path, "cpu")
    test = load_dataset(config).test
    assert test is not None
    preprocessing = model.description.preprocessing
    return model, Images(len(test), "test part", lambda number: Shown(preprocessing.apply(test.load(number)), int(test.labels[number])))


if __name__ == "__main__":
    main()
