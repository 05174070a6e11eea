"""Top-1 over the number of training images: cats and dogs, a frozen MobileNetV2, `tlcli finetune`'s defaults. CPU.

    python benchmarks/training_size.py FOLDER WEIGHTS [--sizes 10,25,50,100,250,1000] [--seeds 3]

FOLDER holds `train` and `test`, each with `cat` and `dog`. WEIGHTS is a MobileNetV2 checkpoint for timm's `mobilenetv2_100` with
`pad_type="same"` and inputs scaled to [-1, 1]. Each size is a number of images per class, of which `tlcli finetune` holds out a share for
validation. All sizes are evaluated on the whole test split. Prints the median top-1 over the seeds, which choose the images, and the
median seconds of the training alone, with the features computed anew.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from tlcli.training import FinetuneConfig, finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--sizes", default="10,25,50,100,250,1000")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print("| images per class | top-1, % | seconds |\n|---|---|---|")
    for size in map(int, arguments.sizes.split(",")):
        runs = [measure(arguments.folder, arguments.weights, size, seed) for seed in range(arguments.seeds)]
        top1, seconds = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"| {size} | {top1:.1%} | {seconds:.0f} |".replace("%", ""), flush=True)


def measure(folder: Path, weights: str, size: int, seed: int) -> tuple[float, float]:
    """Return the test split's top-1 and the seconds of a run on `size` images per class."""
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["TLCLI_CACHE"] = f"{temporary}/cache"
        config = FinetuneConfig(
            backbone="mobilenetv2_100",
            weights=weights,
            model_kwargs={"pad_type": "same"},
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            dataset=str(link_subset(folder, Path(temporary, "images"), size, seed)),
            seed=seed,
            output=Path(temporary, "run"),
        )
        began = time.perf_counter()
        return finetune(config).metrics["test_top1"], time.perf_counter() - began


def link_subset(folder: Path, subset: Path, size: int, seed: int) -> Path:
    """Link `size` training images per class and the whole test split below `subset`."""
    for label in sorted(path for path in (folder / "train").iterdir() if path.is_dir()):
        chosen = subset / "train" / label.name
        chosen.mkdir(parents=True)
        for image in random.Random(seed).sample(sorted(label.iterdir()), size):
            (chosen / image.name).symlink_to(image.resolve())
    (subset / "test").symlink_to((folder / "test").resolve())
    return subset


if __name__ == "__main__":
    main()
