"""Feature cache of a tiny network, and a program that kills itself while filling it.

    python -m tests.helpers.training.feature_work FOLDER IMAGES

computes the features of the training images of FOLDER, and kills itself after IMAGES of them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import tlcli.training.features.cache
from tests.helpers.training.tiny_training import BACKBONE, config
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.data.load import load_dataset
from tlcli.training.features.cache import FeatureCache
from tlcli.training.models.network import Network, NetworkConfig, create_backbone
from tlcli.training.runtime.progress import Advance, ProgressFactory, silent

SIZE = Preprocessing(height=32, width=32)
BATCH = 8


def cache(
    head: str = "linear",
    classes: int = 3,
    weights: str = "w",
    workers: int = 0,
    seed: int = 0,
    progress: ProgressFactory = silent,
    said: list[str] | None = None,
) -> FeatureCache:
    torch.manual_seed(seed)
    network = Network(NetworkConfig(backbone=BACKBONE, head=head, num_classes=classes, preprocessing=SIZE), create_backbone(BACKBONE, {}))
    return FeatureCache(network, weights, workers, progress, [].append if said is None else said.append)


@contextmanager
def deadly(description: str, total: int) -> Iterator[Advance]:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done >= int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

    yield advance


if __name__ == "__main__":
    tlcli.training.features.cache._BATCH = BATCH
    cache(progress=deadly).embeddings(load_dataset(config(Path(sys.argv[1]))).train, "features")
