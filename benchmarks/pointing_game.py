"""Pointing game on the drawn shapes, whose boxes are known, for one trained network of each kind.

    python benchmarks/pointing_game.py [KIND] [--output FOLDER] [--run FOLDER]

Trains a small network on the shapes from random weights (nothing is downloaded), exports it, and computes maps of the test split's images
with the ONNX file. KIND is `cnn` (the default: two to three minutes on two idle cores), `convnext`, `swin`, `vit` or `hybrid` (a quarter of
an hour to an hour; how often each is right is in docs/log.md); their settings are in `RECIPES`.
`--output` keeps the trained run, `--run` judges one that was kept. Prints a row for every method but Score-CAM (`--all` includes it), for
maps that know nothing of the image, and for the same network untrained. The class explained is always the image's own.

pointing        the pointing game (Zhang et al. 2016, arXiv:1608.00507): fraction of the images whose map has its maximum on the shape's
                box, or within 15/224 of the input's side of it. A shape covers two fifths of its image, and the centre is within the margin
                of every box, so the centre hits them all. Hence:
pointing, hard  the same on collages of two by two images of four different classes, each explained in turn: its own box must be hit.
                All are hard in that paper's sense, the box below a quarter of the image and other classes in sight. The margin is as
                many pixels as in one image. No collage was trained on: a convolutional network's file takes any size (`--dynamic-size`),
                the others are exported once more for twice the size, for which timm resizes the position embeddings.
energy          share of the map, scaled to [0, 1], in the box (Wang et al. 2020, arXiv:1910.01279); then of the collages.
deletion        area under the class's probability as the map's most important pixels are painted over, and
insertion       as they are put into the blurred image (Petsiuk et al. 2018, arXiv:1806.07421), on the first 60 images.

The convolutional network pools by the maximum of each feature instead of the mean; `--pooling avg` shows the difference (docs/log.md).
`--part val` evaluates on the validation split, on which the settings were chosen.
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
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tlcli.contract.images.heatmap import to_unit
from tlcli.contract.model.description import Provenance
from tlcli.contract.model.explain import explain
from tlcli.contract.model.onnx_model import Model
from tlcli.evaluation.baselines import BASELINES, CENTRE, RANDOM, centre_map, random_map
from tlcli.evaluation.faithfulness import area, blur, deletion, insertion
from tlcli.evaluation.ground_truth import Truth
from tlcli.evaluation.localisation import MARGIN, energy_inside, points_at
from tlcli.evaluation.perturbation import Bytes, Flags, Values, at_input_size, class_score, ranking
from tlcli.exports import export, published_network
from tlcli.training import FinetuneConfig, finetune
from tlcli.training.data.shapes import shapes_folder, write_shapes
from tlcli.training.models.network import ImageNetwork, Network, build
from tlcli.training.runs.load_run import Run, load_run

SLOW = "scorecam"
UNTRAINED = ("gradcam", "gradcam_plus_plus", "hirescam", "layercam")
"""What the same network is asked for without training."""
SIDE = 2
"""Images beside one another in a collage."""
BATCH = 25
DRAWN_SIZE = 64
CROP_SCALE = 0.8
"""Smallest part of an image that training crops to, as for `--dataset shapes`: a smaller one cuts shapes off."""
CHECKED = 2
"""Images on which an exported file is compared with PyTorch."""
STEPS, PERTURBED = 16, 60
"""Steps of deletion and insertion, and the number of images."""


@dataclass(frozen=True)
class Recipe:
    """Network of a kind, and how it is trained.

    settings: settings of `tlcli finetune`.
    epochs: number of epochs.
    drawn: images per class of the train split; None takes the data set as `--dataset shapes` draws it.
    any_size: True if one file can take images of any size.
    image_size: height and width of the network's input.
    """

    settings: dict[str, Any]
    epochs: int
    drawn: int | None = None
    any_size: bool = False
    image_size: int = DRAWN_SIZE


RECIPES = {
    "cnn": Recipe(
        {"backbone": "test_resnet", "model_kwargs": {"output_stride": 8}, "batch_size": 16, "lr": 4e-3},
        epochs=14,
        any_size=True,
    ),
    "convnext": Recipe(
        {
            "backbone": "test_convnext",
            "model_kwargs": {"output_stride": 8, "kernel_sizes": 3, "ls_init_value": 1.0, "global_pool": "max"},
            "batch_size": 32,
            "lr": 4e-3,
        },
        epochs=8,
        drawn=2000,
        any_size=True,
    ),
    "swin": Recipe(
        {
            "backbone": "swin_tiny_patch4_window7_224",
            "model_kwargs": {
                "patch_size": 2,
                "embed_dim": 48,
                "depths": (2, 2, 2),
                "num_heads": (2, 4, 8),
                "window_size": 4,
                "global_pool": "max",
            },
            "batch_size": 32,
            "lr": 1e-3,
        },
        epochs=10,
        drawn=2000,
        image_size=32,
    ),
    "vit": Recipe(
        {
            "backbone": "eva02_tiny_patch14_224",  # rotary positions: learned ones take several times as many images from random weights
            "model_kwargs": {"patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3, "global_pool": "max"},
            "batch_size": 64,
            "lr": 1e-3,
        },
        epochs=14,
        drawn=2000,
        image_size=32,
    ),
    "hybrid": Recipe(
        {"backbone": "mobilevit_xxs", "model_kwargs": {"output_stride": 8}, "batch_size": 32, "lr": 2e-3},
        epochs=5,
        drawn=2000,
    ),
}
"""A smaller variant of each network, with patches and windows of a size that suits the images. Maps are 8 x 8, those of the Swin 4 x 4. The
head is the network's own, so that its pooling is kept."""


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
    """Figures by method.

    hits, energies: per image and class, whether the map's maximum hit, and the share of the map in the box.
    deletions, insertions: per perturbed image, the area under the curve.
    correct: per image, whether its class has the highest score.
    """

    hits: dict[str, list[bool]] = field(default_factory=dict)
    energies: dict[str, list[float]] = field(default_factory=dict)
    deletions: dict[str, list[float]] = field(default_factory=dict)
    insertions: dict[str, list[float]] = field(default_factory=dict)
    correct: list[bool] = field(default_factory=list)

    def add(self, name: str, values: Values, region: Flags, margin: float) -> None:
        self.hits.setdefault(name, []).append(points_at(values, region, margin))
        self.energies.setdefault(name, []).append(energy_inside(to_unit(values), region))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="?", choices=RECIPES, default="cnn")
    parser.add_argument("--output", type=Path, help="keep the trained run in this folder")
    parser.add_argument("--run", type=Path, help="judge this run instead of training")
    parser.add_argument("--all", action="store_true", help="Score-CAM too")
    parser.add_argument("--pooling", choices=["max", "avg"], default="max", help="of the convolutional network")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=["val", "test"], default="test")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    recipe = RECIPES[arguments.kind]
    if arguments.kind == "cnn":
        recipe.settings["model_kwargs"]["global_pool"] = arguments.pooling
    began = time.perf_counter()
    run = load_run(arguments.run) if arguments.run else train(folder, recipe, arguments)
    trained_s = time.perf_counter() - began
    torch.manual_seed(arguments.seed)
    single = read(run, arguments.part)
    collages = list(arranged(single))
    seen = single[:CHECKED], collages[:CHECKED]
    trained, untrained = (
        models_of(run.network, recipe, seen, folder / "trained"),
        models_of(build(run.network.config), recipe, seen, folder / "untrained"),
    )
    exported_s = time.perf_counter() - began - trained_s

    methods = tuple(name for name in trained.single.description.methods if arguments.all or name != SLOW)
    table = []
    for asked, names, shown, suffix in ((trained, methods, (*methods, *BASELINES), ""), (untrained, UNTRAINED, UNTRAINED, ", untrained")):
        alone = judge(asked.single, single, names, MARGIN)
        perturb(asked.single, single[:PERTURBED], names, alone)
        table.append((alone, judge(asked.collage, collages, names, MARGIN / SIDE), shown, suffix))
    judged_s = time.perf_counter() - began - trained_s - exported_s

    accuracy, untaught = (statistics.mean(alone.correct) for alone, _, _, _ in table)
    print(f"{arguments.kind}: {run.config.backbone}, {len(run.dataset().train)} images, {run.config.epochs} epochs.")
    print(f"{len(single)} images of the {arguments.part} part, {len(collages)} collages of them; seed {arguments.seed}.")
    print(f"{accuracy:.2%} of the images correct; untrained {untaught:.2%}.")
    print(f"A box covers {box_share(single):.0%} of its image, {box_share(collages):.0%} of a collage, on average.")
    print(f"Seconds: training {trained_s:.0f}, exports {exported_s:.0f}, maps {judged_s:.0f}.\n")
    print("| method | pointing | pointing, hard | energy | energy, hard | deletion | insertion |")
    print("|---|---|---|---|---|---|---|")
    for alone, beside, names, suffix in table:
        for name in names:
            figures = (alone.hits[name], beside.hits[name], alone.energies[name], beside.energies[name])
            areas = (alone.deletions[name], alone.insertions[name])
            print(
                f"| {name}{suffix} | {' | '.join(f'{statistics.mean(values):.1%}' for values in figures)} |"
                f" {' | '.join(f'{statistics.mean(values):.3f}' for values in areas)} |"
            )


def train(folder: Path, recipe: Recipe, arguments: argparse.Namespace) -> Run:
    dataset = "shapes"
    if recipe.drawn is not None:
        drawn = arguments.output.absolute().with_suffix(".shapes") if arguments.output else folder / "shapes"  # outside the run
        dataset = str(drawn / f"{recipe.drawn}")
        if not Path(dataset).exists():
            write_shapes(Path(dataset), {"train": recipe.drawn, "val": 60, "test": 100}, seed=arguments.seed, size=DRAWN_SIZE)
    config = FinetuneConfig(
        weights="none",
        head="original",  # so that the network's own pooling is kept
        dataset=dataset,
        data_dir=folder / "data",
        crop_scale=CROP_SCALE,
        mode="full",
        epochs=arguments.epochs or recipe.epochs,
        image_size=recipe.image_size,
        crop_pct=1.0,
        seed=arguments.seed,
        output=arguments.output or folder / "run",
        **recipe.settings,
    )
    return load_run(finetune(config, log=lambda line: print(line, file=sys.stderr)).path)


@dataclass(frozen=True)
class Models:
    """Exported files of one network: for one image, and for a collage of images of the same size."""

    single: Model
    collage: Model


def models_of(network: Network, recipe: Recipe, seen: tuple[Sequence[LabelledImage], Sequence[LabelledImage]], folder: Path) -> Models:
    """Export a network. `seen` are images, and collages, on which the exported file is compared with PyTorch."""
    single, collages = seen
    if recipe.any_size:
        model = exported(network, "any-size", single, folder, dynamic_size=True)
        return Models(model, model)
    return Models(exported(network, "single", single, folder), exported(at_double_size(network, folder), "collage", collages, folder))


def at_double_size(network: Network, folder: Path) -> ImageNetwork:
    """Build the network anew for images of twice the size, with the same weights."""
    weights = folder / "weights.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in network.backbone.state_dict().items()}, weights)
    size = network.config.preprocessing
    kwargs = {name: value for name, value in network.config.model_kwargs.items() if name != "img_size"}
    return published_network(
        FinetuneConfig(
            backbone=network.config.backbone,
            model_kwargs=kwargs,
            weights=str(weights),
            image_size=SIDE * size.height,
            crop_pct=1.0,
            mean=size.mean,
            std=size.std,
        )
    )


def exported(network: ImageNetwork, name: str, images: Sequence[LabelledImage], folder: Path, dynamic_size: bool = False) -> Model:
    file = export(
        network,
        name=name,
        labels=[f"class {number}" for number in range(network.config.num_classes)],
        repository=folder / "models",
        images=[one.image for one in images],
        source="shapes",
        provenance=Provenance(created="", versions={}, backbone=network.config.backbone, head=network.config.head, weights="none"),
        dynamic_size=dynamic_size,
    )
    return Model.open(file.path, device="cpu")


def read(run: Run, name: str) -> list[LabelledImage]:
    """Return the images of a split, alternating between the classes."""
    part, preprocessing = run.dataset().parts[name], run.network.config.preprocessing
    folder = shapes_folder(run.config.data_dir, run.config.seed) if run.config.dataset == "shapes" else Path(run.config.dataset)
    truth = Truth.find(folder)
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


def perturb(model: Model, images: Sequence[LabelledImage], methods: Sequence[str], found: Found) -> None:
    """Add the deletion and insertion areas of the methods and of the baselines."""
    answer = explain(model, np.stack([one.image for one in images]), np.array([one.targets for one in images]), methods)
    colour = np.array([round(255 * value) for value in model.description.preprocessing.mean], dtype=np.uint8)
    for number, one in enumerate(images):
        height, width = one.image.shape[:2]
        low = {name: answer.maps[name][number, 0] for name in methods}
        rows, columns = low[methods[0]].shape
        low[RANDOM] = random_map(rows, columns, seed=0, number=number)
        score, blurred = class_score(model, one.targets[0], BATCH), blur(one.image)
        for name, values in {**low, CENTRE: centre_map(height, width)}.items():
            order = ranking(at_input_size(values, width, height))
            found.deletions.setdefault(name, []).append(area(deletion(one.image, order, score, STEPS, colour)))
            found.insertions.setdefault(name, []).append(area(insertion(one.image, order, score, STEPS, blurred)))


def box_share(images: Sequence[LabelledImage]) -> float:
    return statistics.mean(float(region.mean()) for image in images for region in image.regions)


if __name__ == "__main__":
    main()
