"""Top-1 accuracy on photographs of cats and dogs: MobileNetV2, frozen and fine-tuned, at `tlcli finetune`'s defaults.

    python benchmarks/cats_vs_dogs.py FOLDER WEIGHTS [--mode feature-extraction,full] [--lr RATE] [--epochs N] [--head-epochs N]

FOLDER holds `train` and `test`, each with `cat` and `dog`. WEIGHTS is a MobileNetV2 checkpoint for timm's `mobilenetv2_100` with
`pad_type="same"` and inputs scaled to [-1, 1]. Prints the top-1 on the test split for five seeds, each of which chooses its own validation
split, and their median. The default is frozen features alone; with `full` among the modes, all layers are trained on the same splits, and
the flags apply to that. Then prints the seconds of a run that computes its features, and of a run that finds them in the cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tlcli.training import FinetuneConfig, finetune

SEEDS = range(5)
FROZEN = "feature-extraction"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("weights")
    parser.add_argument("--mode", default=FROZEN)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--head-epochs", type=int)
    arguments = parser.parse_args()
    full = {"lr": arguments.lr, "epochs": arguments.epochs, "head_epochs": arguments.head_epochs}
    modes: list[str] = arguments.mode.split(",")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TLCLI_CACHE"] = f"{folder}/cache"
        top1: dict[str, list[float]] = {mode: [] for mode in modes}
        for seed in SEEDS:
            for mode in modes:
                began = time.perf_counter()
                settings = full if mode == "full" else {}
                top1[mode].append(run(arguments.folder, arguments.weights, seed, Path(folder) / f"{mode}-{seed}", mode=mode, **settings))
                print(f"seed {seed}, {mode}: {top1[mode][-1]:.2%}, {time.perf_counter() - began:.1f} s", flush=True)
        for mode in modes:
            print(f"{mode}: median {statistics.median(top1[mode]):.2%}")
        if FROZEN in modes:
            os.environ["TLCLI_CACHE"] = f"{folder}/another"
            seconds = []
            for number in range(2):
                began = time.perf_counter()
                run(arguments.folder, arguments.weights, 0, Path(folder) / str(number))
                seconds.append(time.perf_counter() - began)
            print(f"features computed {seconds[0]:.1f} s, from the cache {seconds[1]:.1f} s")


def run(folder: str, weights: str, seed: int, output: Path, **settings: Any) -> float:
    config = FinetuneConfig(
        backbone="mobilenetv2_100",
        weights=weights,
        model_kwargs={"pad_type": "same"},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        dataset=folder,
        seed=seed,
        output=output,
        **settings,
    )
    return finetune(config).metrics["test_top1"]


if __name__ == "__main__":
    main()
