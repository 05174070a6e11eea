"""Several labels an image: a small network on drawn scenes of several shapes, whose boxes are known.

    python benchmarks/multi_label.py [--output FOLDER] [--loss asymmetric]

Draws scenes of up to four shapes out of eight correlated classes, trains the convolutional network of benchmarks/pointing_game.py on them
from random weights (nothing is downloaded), and exports it. The test split is then answered by the ONNX file. Prints

AP, F1      average precision of each class and F1 at its threshold, which was fitted on the validation split, and their means; the largest
            difference from scikit-learn's figures.
pointing    the pointing game (Zhang et al. 2016, arXiv:1608.00507) for each label of an image: share of the labels whose Grad-CAM map has
            its maximum on the label's own shape, or within 15/224 of the input's side of it.
elsewhere   share of the labels whose map has its maximum on another shape instead.

The same for a network with one label an image, trained alike on as many images of one shape each, which is asked for the maps of the same
scenes. `--output` keeps both runs; runs that are there are not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import average_precision_score, f1_score

from tlcli.contract.model.explain import explain
from tlcli.contract.model.onnx_model import Model
from tlcli.evaluation.ground_truth import boxes_region
from tlcli.evaluation.localisation import MARGIN, points_at
from tlcli.evaluation.perturbation import Flags, at_input_size
from tlcli.exports import export_run
from tlcli.training import FinetuneConfig, finetune
from tlcli.training.data.dataset import Part
from tlcli.training.data.drawing.draw_scene import LABEL_BOXES_FILE, LABELS_FILE, MOST_SHAPES, write_scenes
from tlcli.training.metrics.multi_label import MultiLabelScores, score_labels
from tlcli.training.runs.load_run import Run, load_run

SIZE = 64
BATCH = 50
METHODS = ("gradcam", "layercam", "eigengradcam")
RECIPE = {
    "backbone": "test_resnet",
    "model_kwargs": {"output_stride": 8, "global_pool": "max"},
    "head": "original",  # so that the network's own pooling is kept
    "batch_size": 16,
    "lr": 4e-3,
}
"""Settings of the convolutional network of benchmarks/pointing_game.py."""


@dataclass(frozen=True)
class Explained:
    """Test image with the labels to explain: the network's input, the class ids, and the region of each, `[H, W]`."""

    image: np.ndarray
    targets: tuple[int, ...]
    regions: tuple[Flags, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="keep the drawings, the runs and the models in this folder")
    parser.add_argument("--images", type=int, default=5000, help="for training")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--loss", choices=["cross-entropy", "asymmetric"], default="cross-entropy")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments.output or Path(folder), arguments)


def compare(folder: Path, arguments: argparse.Namespace) -> None:
    several, several_s = trained(folder / "several", MOST_SHAPES, arguments.loss, arguments)
    one, one_s = trained(folder / "one", 1, "cross-entropy", arguments)
    test = several.dataset().test
    assert test is not None
    model = exported(several, folder, "several")
    logits, scores_s = answer(model, test)
    scores = score_labels(torch.from_numpy(logits), torch.from_numpy(test.labels), several.classes, model.description.thresholds)
    print(f"{RECIPE['backbone']}, {arguments.images:,} images, {arguments.epochs} epochs, seed {arguments.seed}, {arguments.loss}.")
    print(f"{len(test):,} test images with {test.labels.sum():,} labels of {len(several.classes)} classes.")
    print(f"Seconds: training {several_s:.0f}, with one label an image {one_s:.0f}, scores of the test images {scores_s:.1f}.\n")
    print_scores(scores, logits, test)
    explained = list(read(several, test, folder / "several"))
    print("\n| labels an image | images right | map | pointing | elsewhere |\n|---|---|---|---|---|")
    print_pointing("several", scores.exact_match, model, explained)
    print_pointing("one", one.results.metrics["test_top1"], exported(one, folder, "one"), explained)


def trained(folder: Path, most: int, loss: str, arguments: argparse.Namespace) -> tuple[Run, float]:
    """Train a network on scenes of at most `most` shapes, or load its run. Return it with the seconds that it took."""
    drawings, run = folder / "images", folder / "run"
    if not (drawings / LABELS_FILE).exists():
        write_scenes(drawings, {"train": arguments.images, "val": 1000, "test": 1000}, arguments.seed, SIZE, most)
    if (run / "results.json").exists():
        return load_run(run), 0.0
    config = FinetuneConfig(
        weights="none",
        dataset=str(drawings / LABELS_FILE),
        mode="full",
        epochs=arguments.epochs,
        loss=loss,
        image_size=SIZE,
        crop_pct=1.0,
        crop_scale=1.0,  # a crop may lose a shape, but not its label
        seed=arguments.seed,
        output=run,
        **RECIPE,
    )
    began = time.perf_counter()
    result = finetune(config, log=lambda line: print(line, file=sys.stderr))
    return load_run(result.path), time.perf_counter() - began


def exported(run: Run, folder: Path, name: str) -> Model:
    file = export_run(run, name=name, repository=folder / "models", methods=METHODS, check_images=8)
    return Model.open(file.path, device="cpu")


def answer(model: Model, part: Part) -> tuple[np.ndarray, float]:
    """Return the logits `[n, C]` of a part and the seconds that they took."""
    images = [model.description.preprocessing.apply(part.load(index)) for index in range(len(part))]
    began = time.perf_counter()
    logits = [model.run(np.stack(images[start : start + BATCH])).logits for start in range(0, len(images), BATCH)]
    return np.concatenate(logits), time.perf_counter() - began


def print_scores(scores: MultiLabelScores, logits: np.ndarray, test: Part) -> None:
    print("| label | images | AP | threshold | precision | recall | F1 |\n|---|---|---|---|---|---|---|")
    for row in scores.classes:
        figures = (row.average_precision, row.threshold, row.precision, row.recall, row.f1)
        print(f"| {row.label} | {row.count} | {' | '.join(f'{value:.4f}' for value in figures if value is not None)} |")
    print(f"| mean | {scores.count} | {scores.mean_ap:.4f} | | | | {scores.macro_f1:.4f} |")
    print(f"\nAll labels are right on {scores.exact_match:.2%} of the images.")
    values = torch.from_numpy(logits).double().sigmoid().numpy()
    differences = (
        abs(scores.mean_ap - average_precision_score(test.labels, values, average="macro")),
        abs(scores.macro_f1 - f1_score(test.labels, values >= np.array(scores.thresholds), average="macro")),
    )
    print(f"Difference from scikit-learn: mAP {differences[0]:.1g}, F1 {differences[1]:.1g}.")


def read(run: Run, part: Part, folder: Path) -> Iterator[Explained]:
    """Yield the images of a part that have labels."""
    boxes = json.loads((folder / "images" / LABEL_BOXES_FILE).read_text())
    preprocessing = run.network.config.preprocessing
    for index, name in enumerate(part.names):
        image, labels = part.load(index), part.labels_of(index, run.classes)
        if labels:
            regions = tuple(boxes_region((tuple(boxes[name][label]),), image.size, preprocessing) for label in labels)
            yield Explained(preprocessing.apply(image), tuple(run.classes.index(label) for label in labels), regions)


def print_pointing(name: str, right: float, model: Model, explained: Sequence[Explained]) -> None:
    hits: dict[str, list[bool]] = {method: [] for method in METHODS}
    elsewhere: dict[str, list[bool]] = {method: [] for method in METHODS}
    for shown in explained:
        maps = explain(model, shown.image[None], shown.targets, METHODS).maps
        for method in METHODS:
            for index, region in enumerate(shown.regions):
                values = at_input_size(maps[method][0, index], region.shape[1], region.shape[0])
                is_hit = points_at(values, region, MARGIN)
                others = (other for number, other in enumerate(shown.regions) if number != index)
                hits[method].append(is_hit)
                elsewhere[method].append(not is_hit and any(points_at(values, other, 0.0) for other in others))
    for method in METHODS:
        print(f"| {name} | {right:.1%} | {method} | {statistics.mean(hits[method]):.1%} | {statistics.mean(elsewhere[method]):.1%} |")


if __name__ == "__main__":
    main()
