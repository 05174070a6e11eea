"""Top-1 on photographs of cats and dogs: a frozen MobileNetV2 at `tlcli finetune`'s defaults.

    python benchmarks/cats_vs_dogs.py FOLDER WEIGHTS

FOLDER holds `train` and `test`, each with `cat` and `dog`. WEIGHTS is a MobileNetV2 checkpoint for timm's `mobilenetv2_100` with
`pad_type="same"` and inputs scaled to [-1, 1]. Prints the test part's top-1 for five seeds (which also choose the validation part),
their median, and the seconds of the first run (features computed) and of a later one (features read from the cache).
"""

from __future__ import annotations

import argparse
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
    top1, seconds = [], []
    with tempfile.TemporaryDirectory() as runs:
        for seed in SEEDS:
            began = time.perf_counter()
            result = finetune(
                FinetuneConfig(
                    backbone="mobilenetv2_100",
                    weights=arguments.weights,
                    model_kwargs={"pad_type": "same"},
                    mean=(0.5, 0.5, 0.5),
                    std=(0.5, 0.5, 0.5),
                    dataset=arguments.folder,
                    seed=seed,
                    output=Path(runs) / str(seed),
                )
            )
            seconds.append(time.perf_counter() - began)
            top1.append(result.metrics["test_top1"])
            print(f"seed {seed}: {top1[-1]:.2%}, {seconds[-1]:.1f} s", flush=True)
    print(f"median {statistics.median(top1):.2%}; the first run {seconds[0]:.1f} s, later ones {statistics.median(seconds[1:]):.1f} s")


if __name__ == "__main__":
    main()
