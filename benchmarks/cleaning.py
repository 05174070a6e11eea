"""Label errors, near-duplicates and seconds of `tlcli clean`, on photographs of cats and dogs and on CIFAR-10.

    python benchmarks/cleaning.py CATS_VS_DOGS CIFAR10 WEIGHTS [--parts labels,duplicates,time] [--seeds 5] [--cleanlab-seeds 1]

CATS_VS_DOGS and CIFAR10 hold `train` and `test` with a folder per class. WEIGHTS is a MobileNetV2 checkpoint for timm's
`mobilenetv2_100` with `pad_type="same"` and inputs scaled to [-1, 1]. CIFAR-10 is reduced to 1,000 training images of each class and
enlarged to 128 pixels.

labels: 5 % of the training labels are replaced by another class at random. Prints the fraction of replaced labels among the first 5 %
listed, which is both precision and recall: with our ranking, with cleanlab's on the same probabilities, and with cleanlab's own
`CleanLearning` (five folds of scikit-learn's logistic regression at its defaults) on the same features of unit length, for the first
`--cleanlab-seeds` seeds. Then prints precision and recall of the confident errors, and those of cleanlab on the same probabilities.
Needs cleanlab.
duplicates: of cats and dogs, as many training images as `--planted` says are resized to 70 %, recompressed at JPEG quality 40, cropped by
5 % of height and width at a random place, and mirrored. Prints the fraction of planted images that are paired with their original, and
the fraction of listed pairs that connect different photographs, of which `--pairs` writes a sheet.
time: seconds, and seconds of the processor, of `tlcli clean` on the 10,000 images of CIFAR-10 with the features in the cache, by step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from tlcli.evaluation.cleaning.confident_learning import find_label_errors
from tlcli.evaluation.cleaning.findings import find_issues
from tlcli.evaluation.cleaning.findings_table import write_findings
from tlcli.evaluation.cleaning.images import LabelledParts, features_of_backbone, look_at, open_dataset
from tlcli.evaluation.cleaning.out_of_sample import out_of_sample
from tlcli.evaluation.cleaning.page import write_page
from tlcli.training import FinetuneConfig
from tlcli.training.features.near_duplicates import NEIGHBOURS, groups_of, near_duplicates
from tlcli.training.features.neighbours import nearest_neighbours, unit_rows
from tlcli.training.runtime.progress import silent

FLIPPED = 0.05
PER_CLASS = 1000
PLANTS = ("resized", "recompressed", "cropped", "mirrored")

Features = npt.NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cats_vs_dogs", type=Path)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--parts", default="labels,duplicates,time")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cleanlab-seeds", type=int, default=1)
    parser.add_argument("--planted", type=int, default=300)
    parser.add_argument("--pairs", type=Path)
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    with tempfile.TemporaryDirectory() as temporary:
        photographs, small = Path(temporary) / "cats-vs-dogs", Path(temporary) / "cifar10"
        link(arguments.cats_vs_dogs / "train", photographs)
        link(arguments.cifar10 / "train", small, PER_CLASS)
        if "labels" in parts:
            label_errors("cats-vs-dogs", *opened(photographs, arguments.weights, None), arguments.seeds, arguments.cleanlab_seeds)
            label_errors("cifar10", *opened(small, arguments.weights, 128), arguments.seeds, arguments.cleanlab_seeds)
        if "duplicates" in parts:
            duplicates(arguments.cats_vs_dogs / "train", Path(temporary) / "planted", arguments.weights, arguments.planted, arguments.pairs)
        if "time" in parts:
            seconds(*opened(small, arguments.weights, 128), Path(temporary))


def link(source: Path, target: Path, per_class: int | None = None) -> None:
    for folder in sorted(source.iterdir()):
        (target / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:per_class]:
            (target / folder.name / path.name).symlink_to(path.resolve())


def opened(folder: Path, weights: str, size: int | None) -> tuple[LabelledParts, Features]:
    half = (0.5, 0.5, 0.5)
    config = FinetuneConfig(
        backbone="mobilenetv2_100",
        weights=weights,
        model_kwargs={"pad_type": "same"},
        mean=half,
        std=half,
        dataset=str(folder),
        image_size=size,
    )
    images = open_dataset(config)
    return images, features_of_backbone(config, images, silent, print)


def label_errors(name: str, images: LabelledParts, features: Features, seeds: int, cleanlab_seeds: int) -> None:
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    truth, classes = images.images.labels, len(images.classes)
    count = round(FLIPPED * len(truth))
    rows = unit_rows(features)
    print(f"\n{name}: {len(truth):,} images, {count} labels replaced")
    heads = ("first 5 %", "cleanlab's first 5 %", "CleanLearning's first 5 %", "precision", "recall", "cleanlab's precision", "recall", "s")
    print("| seed | " + " | ".join(heads) + " |\n|" + "---|" * (len(heads) + 1))
    table = []
    for seed in range(seeds):
        chance = np.random.default_rng(seed)
        flipped = chance.choice(len(truth), count, replace=False)
        labels = truth.copy()
        labels[flipped] = (labels[flipped] + chance.integers(1, classes, count)) % classes
        is_flipped = np.isin(np.arange(len(labels)), flipped)
        began = time.perf_counter()
        probabilities = out_of_sample(rows, labels, classes, np.arange(len(labels)), seed).probabilities
        errors = find_label_errors(probabilities, labels)
        took = time.perf_counter() - began
        theirs = np.argsort(get_label_quality_scores(labels, probabilities, method="self_confidence"), kind="stable")
        own = np.nan if seed >= cleanlab_seeds else is_flipped[clean_learning(rows, labels, seed)[:count]].mean()
        issues = find_label_issues(labels, probabilities, filter_by="confident_learning", n_jobs=1)
        table.append(
            (
                is_flipped[errors.order[:count]].mean(),
                is_flipped[theirs[:count]].mean(),
                own,
                is_flipped[errors.is_error].mean(),
                errors.is_error[flipped].mean(),
                is_flipped[issues].mean(),
                issues[flipped].mean(),
                took,
            )
        )
        print(f"| {seed} | " + " | ".join(f"{value:.3f}" for value in table[-1][:-1]) + f" | {took:.1f} |", flush=True)
    medians = [statistics.median([value for value in column if not np.isnan(value)] or [np.nan]) for column in zip(*table, strict=True)]
    print("| median | " + " | ".join(f"{value:.3f}" for value in medians[:-1]) + f" | {medians[-1]:.1f} |", flush=True)


def clean_learning(rows: Features, labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return all images, ordered by cleanlab from the least to the most plausible label."""
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression

    issues = CleanLearning(LogisticRegression(max_iter=1000), seed=seed, cv_n_folds=5).find_label_issues(rows, labels)
    return np.argsort(issues["label_quality"].to_numpy(), kind="stable")


def plant(image: Image.Image, kind: str, path: Path, chance: np.random.Generator) -> None:
    width, height = image.size
    quality = 90
    if kind == "resized":
        image = image.resize((round(0.7 * width), round(0.7 * height)), Image.Resampling.BICUBIC)
    elif kind == "recompressed":
        quality = 40
    elif kind == "cropped":
        left, top = int(chance.integers(0, round(0.05 * width) + 1)), int(chance.integers(0, round(0.05 * height) + 1))
        image = image.crop((left, top, left + round(0.95 * width), top + round(0.95 * height)))
    else:
        image = ImageOps.mirror(image)
    image.save(path, "JPEG", quality=quality)


def duplicates(source: Path, folder: Path, weights: str, planted: int, sheet: Path | None) -> None:
    link(source, folder / "train")
    chance = np.random.default_rng(0)
    originals = sorted(path for path in source.rglob("*") if path.is_file())
    for number in chance.choice(len(originals), planted, replace=False).tolist():
        path = originals[number]
        (folder / "test" / path.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as opened_image:
            image = opened_image.convert("RGB")
        for kind in PLANTS:
            plant(image, kind, folder / "test" / path.parent.name / f"{path.stem}_{kind}.jpg", chance)
    images, features = opened(folder, weights, None)
    part = images.images
    _, thumbnails = look_at(part)
    pairs = near_duplicates(nearest_neighbours(unit_rows(features), NEIGHBOURS), thumbnails.__getitem__)
    origin = [f"{Path(name).parent.name}/{Path(name).stem.split('_')[0]}" for name in part.names]
    kind = [Path(name).stem.partition("_")[2] for name in part.names]
    paired = {
        index
        for pair in pairs
        if origin[pair.first] == origin[pair.second] and not (kind[pair.first] and kind[pair.second])
        for index in (pair.first, pair.second)
        if kind[index]
    }
    totals, found = Counter(filter(None, kind)), Counter(kind[index] for index in paired)
    print(f"\nnear-duplicates: {planted} photographs planted four times among {len(originals):,}")
    print("| planted | found with the original |\n|---|---|")
    for name in PLANTS:
        print(f"| {name} | {found[name] / totals[name]:.4f} |")
    print(f"| all | {sum(found.values()) / sum(totals.values()):.4f} |")
    other = [pair for pair in pairs if origin[pair.first] != origin[pair.second]]
    unplanted = sorted({tuple(sorted((origin[pair.first], origin[pair.second]))) for pair in other})
    print(
        f"{len(pairs):,} pairs listed, {len(other)} of them ({len(other) / max(1, len(pairs)):.4f}) of different photographs: {unplanted}"
    )
    grouped = groups_of(pairs, len(part))
    print(f"largest group: {np.bincount(grouped).max()} images")
    if sheet is not None:
        write_pairs(sheet, source, unplanted)


def write_pairs(path: Path, source: Path, pairs: list[tuple[str, ...]]) -> None:
    by_stem = {f"{file.parent.name}/{file.stem}": file for file in source.rglob("*") if file.is_file()}
    canvas = Image.new("RGB", (400, 200 * max(1, len(pairs))))
    for row, pair in enumerate(pairs):
        for column, name in enumerate(pair):
            with Image.open(by_stem[name]) as image:
                canvas.paste(image.convert("RGB").resize((200, 200)), (200 * column, 200 * row))
    canvas.save(path)


def seconds(images: LabelledParts, features: Features, folder: Path) -> None:
    print(f"\ntime: {len(images.images):,} images, features in the cache")
    print("| step | s | CPU s |\n|---|---|---|")
    total = processor = 0.0

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        nonlocal total, processor
        began, began_processor = time.perf_counter(), time.process_time()
        yield
        took, took_processor = time.perf_counter() - began, time.process_time() - began_processor
        total, processor = total + took, processor + took_processor
        print(f"| {step} | {took:.1f} | {took_processor:.1f} |", flush=True)

    with timed("read and measure"):
        qualities, thumbnails = look_at(images.images)
    with timed("find"):
        findings = find_issues(images, features, qualities, thumbnails)
    with timed("page and table"):
        write_findings(folder / "findings.csv", findings.rows, images)
        write_page(folder / "clean.html", images, findings, "cifar10", 48)
    print(f"| all | {total:.1f} | {processor:.1f} |")


if __name__ == "__main__":
    main()
