"""Images and settings small enough to train on within a test."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

from tlcli.training import RunResult, load_run
from tlcli.training.settings.config import FinetuneConfig

BACKBONE = "test_resnet"
COLOURS = {"blue": (60, 80, 190), "green": (70, 180, 80), "red": (190, 70, 60)}


def put_colours(folder: Path, train: int = 12, val: int = 4, test: int = 4, size: int = 40) -> Path:
    """Write `<folder>/<part>/<colour>/<number>.png`: noise around a colour, so that the classes can be distinguished."""
    for part, count in (("train", train), ("val", val), ("test", test)):
        for name in COLOURS:
            for number in range(count):
                put_image_of(folder / part / name / f"{number}.png", name, number + 1000 * len(part), size)
    return folder


def put_image_of(path: Path, colour: str, number: int, size: int = 40) -> None:
    """Write one image of a class."""
    rng = np.random.default_rng([list(COLOURS).index(colour), number])
    pixels = np.clip(rng.normal(COLOURS[colour], 40, (size, size + 6, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def config(dataset: Path, output: Path | None = None, **settings: Any) -> FinetuneConfig:
    """Return settings for a few epochs of a tiny network with random weights at 32x32 pixels."""
    defaults = {"backbone": BACKBONE, "weights": "none", "image_size": 32, "epochs": 3, "batch_size": 8, "workers": 0, "device": "cpu"}
    return FinetuneConfig(dataset=str(dataset), output=output, **{**defaults, **settings})


def digest(module: nn.Module) -> dict[str, str]:
    """Return the SHA-256 of each parameter and buffer, batch norm statistics included."""
    return {name: hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest() for name, tensor in module.state_dict().items()}


def check_it_is_read_back(result: RunResult) -> None:
    """Check that the network of a finished run, loaded from its folder, has the accuracy recorded in the run."""
    run = load_run(result.path)
    val = run.dataset().val
    images = np.stack([run.network.config.preprocessing.apply(val.load(index)) for index in range(len(val))])
    top1 = (run.network.predict(images).argmax(1).numpy() == val.labels).mean()
    assert top1 == pytest.approx(result.metrics["val_top1"])
