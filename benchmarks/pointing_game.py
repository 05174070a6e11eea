"""Do the maps look at the right thing? The pointing game on the drawn shapes, whose boxes are known.

    python benchmarks/pointing_game.py

Trains a small ResNet on drawn shapes from random weights (nothing is downloaded), exports it, and asks the ONNX file for maps of the test
part's pictures: some four minutes on two cores. Prints, for every method but Score-CAM (--all for it too), then for maps that know nothing
of the picture, then for the same network untrained:

pointing        the pointing game (arXiv:1608.00507): share of the pictures where the map's largest point lies on the shape's box, or within
                15/224 of the input's side beside it. Shapes cover two fifths of a picture and its middle always: the centre hits them all.
pointing, hard  the same on collages, two by two pictures of four different classes, each asked for in turn: its box must be hit. All are
                hard in that paper's sense: the box is below a quarter of the picture, and other classes are in sight. The margin stays what
                it was in a single picture. The network has never seen a collage; the file takes any size (`--dynamic-size`).
energy          the share of the map, scaled to [0, 1], that lies in the box (arXiv:1910.01279), and the same of the collages.

The class that is explained is always the picture's own. `--pooling avg` gives the network the usual mean instead of the largest value of
each feature, for comparison; `--part val` judges on the validation part, which settings were chosen by.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from contract.description import Provenance
from contract.explaining import explain
from contract.model import Model
from contract.rendering import to_unit
from evaluation.baselines import BASELINES, CENTRE, RANDOM, centre_map, random_map
from evaluation.localisation import MARGIN, energy_inside, points_at
from evaluation.probing import Bytes, Flags, Values, at_input_size
from evaluation.truth import Truth
from exports import export, export_run
from training import FinetuneConfig, finetune
from training.network import build
from training.run import Run, load_run
from training.shapes import shapes_folder

SLOW = "scorecam"
UNTRAINED = ("gradcam", "gradcam_plus_plus", "hirescam", "layercam")
"""What the same network is asked for without training."""
SIDE = 2
"""Pictures beside one another in a collage."""
BATCH = 25


@dataclass(frozen=True)
class Picture:
    """image: the network's input, `[H, W, 3]`. targets: the classes to explain; regions: where each of them is, `[H, W]`."""

    image: Bytes
    targets: tuple[int, ...]
    regions: tuple[Flags, ...]


@dataclass
class Found:
    """By method, a figure for each picture and class: whether its map's largest point hit, and the share of it in the box."""

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
    single = read(run, folder, arguments.part)
    collages = list(arranged(single))
    exported_s = time.perf_counter() - began - trained_s

    methods = tuple(name for name in model.description.methods if arguments.all or name != SLOW)
    table = [(judge(model, single, methods), judge(model, collages, methods), (*methods, *BASELINES), "")]
    table.append((judge(untrained, single, UNTRAINED), judge(untrained, collages, UNTRAINED), UNTRAINED, ", untrained"))
    judged_s = time.perf_counter() - began - trained_s - exported_s

    accuracy, chance = (statistics.mean(alone.correct) for alone, _, _, _ in table)
    print(f"{len(single)} pictures of the {arguments.part} part, {len(collages)} collages of them; seed {arguments.seed}, {arguments.pooling}")
    print(f"pooling, {arguments.epochs} epochs: {accuracy:.2%} classified right, {chance:.2%} untrained. On average a box is")
    print(f"{box_share(single):.0%} of a picture, {box_share(collages):.0%} of a collage. Seconds: training {trained_s:.0f},", end=" ")
    print(f"two exports {exported_s:.0f}, maps {judged_s:.0f}\n")
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
    return load_run(finetune(config).path)


def export_untrained(run: Run, models: Path, seed: int) -> Model:
    """The run's network with the weights it might have begun with."""
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


def read(run: Run, folder: Path, name: str) -> list[Picture]:
    """The pictures of a part, of each class in turn."""
    part, preprocessing = run.dataset().parts[name], run.network.config.preprocessing
    truth = Truth.find(shapes_folder(folder / "data", run.config.seed))
    assert truth is not None
    found = []
    for index in in_turn(part.labels.tolist()):
        picture = part.load(index)
        region = truth.region(part.names[index], picture.size, preprocessing)
        assert region is not None
        found.append(Picture(preprocessing.apply(picture), (int(part.labels[index]),), (region,)))
    return found


def in_turn(labels: Sequence[int]) -> list[int]:
    """The first of each class, the second of each, and so on."""
    before = {label: 0 for label in labels}
    keys = []
    for index, label in enumerate(labels):
        keys.append((before[label], label, index))
        before[label] += 1
    return [index for _, _, index in sorted(keys)]


def arranged(pictures: Sequence[Picture]) -> Iterator[Picture]:
    """Each four that follow one another, of as many classes, in one; fewer that are left over are not used."""
    count = SIDE * SIDE
    for start in range(0, len(pictures) - count + 1, count):
        of_one = pictures[start : start + count]
        assert len({picture.targets for picture in of_one}) == count
        regions = []
        for place in range(count):
            alone = [picture.regions[0] & (number == place) for number, picture in enumerate(of_one)]
            regions.append(grid(alone))
        yield Picture(grid([picture.image for picture in of_one]), tuple(picture.targets[0] for picture in of_one), tuple(regions))


def grid(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.concatenate(parts[start : start + SIDE], axis=1) for start in range(0, len(parts), SIDE)], axis=0)


def judge(model: Model, pictures: Sequence[Picture], methods: Sequence[str]) -> Found:
    """The methods' maps and those that know nothing, of every class of every picture."""
    found = Found()
    margin = MARGIN / len(pictures[0].targets) ** 0.5
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        answer = explain(model, np.stack([one.image for one in batch]), np.array([one.targets for one in batch]), methods)
        for row, one in enumerate(batch):
            height, width = one.image.shape[:2]
            found.correct.append(bool(answer.scores[row].argmax() == one.targets[0]))
            for column, region in enumerate(one.regions):
                low = {name: answer.maps[name][row, column] for name in methods}
                number = (start + row) * len(one.targets) + column
                low[RANDOM] = random_map(*low[methods[0]].shape, seed=0, number=number)
                for name, values in low.items():
                    found.add(name, at_input_size(values, width, height), region, margin)
                found.add(CENTRE, centre_map(height, width), region, margin)
    return found


def box_share(pictures: Sequence[Picture]) -> float:
    return statistics.mean(float(region.mean()) for picture in pictures for region in picture.regions)


if __name__ == "__main__":
    main()
