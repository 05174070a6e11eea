"""Pointing game on the drawn shapes, whose boxes are known.

    python benchmarks/pointing_game.py

Trains a small ResNet on the shapes from random weights (nothing is downloaded), exports it, and computes maps of the test split's images
with the ONNX file: two to three minutes on two idle cores. Prints a row for every method but Score-CAM (`--all` includes it), for maps that
know nothing of the image, and for the same network untrained. The class explained is always the image's own.

pointing        the pointing game (Zhang et al. 2016, arXiv:1608.00507): fraction of the images whose map has its maximum on the shape's
                box, or within 15/224 of the input's side of it. A shape covers two fifths of its image, and the centre is within the margin
                of every box, so the centre hits them all. Hence:
pointing, hard  the same on collages of two by two images of four different classes, each explained in turn: its own box must be hit.
                All are hard in that paper's sense, the box below a quarter of the image and other classes in sight. The margin is as
                many pixels as in one image. No collage was trained on; the file takes any size (`--dynamic-size`).
energy          share of the map, scaled to [0, 1], in the box (Wang et al. 2020, arXiv:1910.01279); then of the collages.

The network pools by the maximum of each feature instead of the mean; `--pooling avg` shows the difference (docs/log.md). `--part val`
evaluates on the validation split, on which the settings were chosen.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tlcli.contract.images.heatmap import to_unit
from tlcli.contract.model.description import Provenance
from tlcli.contract.model.explain import explain
from tlcli.contract.model.onnx_model import Model
from tlcli.evaluation.baselines import BASELINES, CENTRE, RANDOM, centre_map, random_map
from tlcli.evaluation.ground_truth import Truth
from tlcli.evaluation.localisation import MARGIN, energy_inside, points_at
from tlcli.evaluation.perturbation import Bytes, Flags, Values, at_input_size
from tlcli.exports import export, export_run
from tlcli.training import FinetuneConfig, finetune
from tlcli.training.data.shapes import shapes_folder
from tlcli.training.models.network import build
from tlcli.training.runs.load_run import Run, load_run

SLOW = "scorecam"
UNTRAINED = ("gradcam", "gradcam_plus_plus", "hirescam", "layercam")
"""What the same network is asked for without training."""
SIDE = 2
"""Images beside one another in a collage."""
BATCH = 25
IMAGE_SIZE, EPOCHS = 64, 14


@dataclass(frozen=True)
class LabelledImage:
    """Image with the classes to explain.

    image: the network's input, `[H, W, 3]`.
    targets: classes to explain.
    regions: region of each class, `[H, W]`.
    """

    image: Bytes
    targets: tuple[int, ...]
    regions: tuple[Flags, ...]


@dataclass
class Found:
    """Hits and energies by method, a figure per image and class: whether the map's maximum hit, and the share of the map in the box."""

    hits: dict[str, list[bool]] = field(default_factory=dict)
    energies: dict[str, list[float]] = field(default_factory=dict)
    correct: list[bool] = field(default_factory=list)

    def add(self, name: str, values: Values, region: Flags, margin: float) -> None:
        self.hits.setdefault(name, []).append(points_at(values, region, margin))
        self.energies.setdefault(name, []).append(energy_inside(to_unit(values), region))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="Score-CAM too")
    parser.add_argument("--pooling", choices=["max", "avg"], default="max")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=["val", "test"], default="test")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    began = time.perf_counter()
    run = train(folder, arguments.pooling, arguments.epochs, arguments.seed)
    trained_s = time.perf_counter() - began
    models = folder / "models"
    model = Model.open(export_run(run, name="shapes", repository=models, dynamic_size=True).path, device="cpu")
    untrained = export_untrained(run, models, arguments.seed)
    single = read(run, arguments.part)
    collages = list(arranged(single))
    exported_s = time.perf_counter() - began - trained_s

    methods = tuple(name for name in model.description.methods if arguments.all or name != SLOW)
    table = []
    for asked, names, shown, suffix in ((model, methods, (*methods, *BASELINES), ""), (untrained, UNTRAINED, UNTRAINED, ", untrained")):
        table.append((judge(asked, single, names, MARGIN), judge(asked, collages, names, MARGIN / SIDE), shown, suffix))
    judged_s = time.perf_counter() - began - trained_s - exported_s

    accuracy, untaught = (statistics.mean(alone.correct) for alone, _, _, _ in table)
    print(f"{len(single)} images of the {arguments.part} part, {len(collages)} collages of them; seed {arguments.seed}.")
    print(f"{arguments.pooling} pooling, {arguments.epochs} epochs: {accuracy:.2%} of the images correct; untrained {untaught:.2%}.")
    print(f"A box covers {box_share(single):.0%} of its image, {box_share(collages):.0%} of a collage, on average.")
    print(f"Seconds: training {trained_s:.0f}, two exports {exported_s:.0f}, maps {judged_s:.0f}.\n")
    print("| method | pointing | pointing, hard | energy | energy, hard |")
    print("|---|---|---|---|---|")
    for alone, beside, names, suffix in table:
        for name in names:
            figures = (alone.hits[name], beside.hits[name], alone.energies[name], beside.energies[name])
            print(f"| {name}{suffix} | {' | '.join(f'{statistics.mean(values):.1%}' for values in figures)} |")


def train(folder: Path, pooling: str, epochs: int, seed: int) -> Run:
    config = FinetuneConfig(
        backbone="test_resnet",
        model_kwargs={"output_stride": 8, "global_pool": pooling},
        weights="none",
        head="original",  # so that the network's own pooling is kept, which `global_pool` sets
        dataset="shapes",
        data_dir=folder / "data",
        mode="full",
        epochs=epochs,
        image_size=IMAGE_SIZE,
        crop_pct=1.0,
        batch_size=16,
        lr=4e-3,
        seed=seed,
        output=folder / "run",
    )
    return load_run(finetune(config, log=lambda line: print(line, file=sys.stderr)).path)


def export_untrained(run: Run, models: Path, seed: int) -> Model:
    """Export the run's network with initial weights."""
    torch.manual_seed(seed)
    config = run.network.config
    exported = export(
        build(config),
        name="untrained",
        labels=run.classes,
        repository=models,
        images=[np.zeros((config.preprocessing.height, config.preprocessing.width, 3), dtype=np.uint8)],
        source="black",
        provenance=Provenance(created="", versions={}, backbone=config.backbone, head=config.head, weights="none"),
        methods=UNTRAINED,
        dynamic_size=True,
    )
    return Model.open(exported.path, device="cpu")


def read(run: Run, name: str) -> list[LabelledImage]:
    """Return the images of a split, alternating between the classes."""
    part, preprocessing = run.dataset().parts[name], run.network.config.preprocessing
    truth = Truth.find(shapes_folder(run.config.data_dir, run.config.seed))
    assert truth is not None
    found = []
    for index in in_turn(part.labels.tolist()):
        image = part.load(index)
        region = truth.region(part.names[index], image.size, preprocessing)
        assert region is not None
        found.append(LabelledImage(preprocessing.apply(image), (int(part.labels[index]),), (region,)))
    return found


def in_turn(labels: Sequence[int]) -> list[int]:
    """Return the first of each class, then the second of each, and so on."""
    before = dict.fromkeys(labels, 0)
    keys = []
    for index, label in enumerate(labels):
        keys.append((before[label], label, index))
        before[label] += 1
    return [index for _, _, index in sorted(keys)]


def arranged(images: Sequence[LabelledImage]) -> Iterator[LabelledImage]:
    """Arrange each four consecutive images of different classes as one; a rest of fewer than four is dropped."""
    count = SIDE * SIDE
    for start in range(0, len(images) - count + 1, count):
        of_one = images[start : start + count]
        assert len({image.targets for image in of_one}) == count
        regions = []
        for place in range(count):
            alone = [image.regions[0] & (number == place) for number, image in enumerate(of_one)]
            regions.append(grid(alone))
        yield LabelledImage(grid([image.image for image in of_one]), tuple(image.targets[0] for image in of_one), tuple(regions))


def grid(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.concatenate(parts[start : start + SIDE], axis=1) for start in range(0, len(parts), SIDE)], axis=0)


def judge(model: Model, images: Sequence[LabelledImage], methods: Sequence[str], margin: float) -> Found:
    """Judge the maps of the methods and of the baselines, for every class of every image."""
    found = Found()
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        answer = explain(model, np.stack([one.image for one in batch]), np.array([one.targets for one in batch]), methods)
        for row, one in enumerate(batch):
            height, width = one.image.shape[:2]
            found.correct.append(bool(answer.scores[row].argmax() == one.targets[0]))
            for column, region in enumerate(one.regions):
                low = {name: answer.maps[name][row, column] for name in methods}
                number = (start + row) * len(one.targets) + column
                rows, columns = low[methods[0]].shape
                low[RANDOM] = random_map(rows, columns, seed=0, number=number)
                for name, values in low.items():
                    found.add(name, at_input_size(values, width, height), region, margin)
                found.add(CENTRE, centre_map(height, width), region, margin)
    return found


def box_share(images: Sequence[LabelledImage]) -> float:
    return statistics.mean(float(region.mean()) for image in images for region in image.regions)


if __name__ == "__main__":
    main()
