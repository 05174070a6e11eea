"""Top-1 on photographs of cats and dogs: a frozen MobileNetV2 at `tlcli finetune`'s defaults.

    python benchmarks/cats_vs_dogs.py FOLDER WEIGHTS

FOLDER holds `train` and `test`, each with `cat` and `dog`. WEIGHTS is a MobileNetV2 checkpoint for timm's `mobilenetv2_100` with
`pad_type="same"` and inputs scaled to [-1, 1]. Prints the test part's top-1 for five seeds (each chooses its own validation part), their
median, and the seconds of a run whose features are computed and of the same run once more, which finds them in the cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from training import FinetuneConfig, finetune

SEEDS = range(5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("weights")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TLCLI_CACHE"] = f"{folder}/cache"
        top1, seconds = [], []
        for number, seed in enumerate((*SEEDS, SEEDS[-1])):
            began = time.perf_counter()
            top1.append(run(arguments.folder, arguments.weights, seed, Path(folder) / str(number)))
            seconds.append(time.perf_counter() - began)
            print(f"seed {seed}: {top1[-1]:.2%}, {seconds[-1]:.1f} s", flush=True)
    print(f"median {statistics.median(top1[:-1]):.2%}; features computed {seconds[-2]:.1f} s, from the cache {seconds[-1]:.1f} s")


def run(folder: str, weights: str, seed: int, output: Path) -> float:
    config = FinetuneConfig(
        backbone="mobilenetv2_100",
        weights=weights,
        model_kwargs={"pad_type": "same"},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        dataset=folder,
        seed=seed,
        output=output,
    )
    return finetune(config).metrics["test_top1"]


if __name__ == "__main__":
    main()
