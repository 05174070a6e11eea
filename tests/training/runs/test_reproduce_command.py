"""The command that repeats a run: the command line parses it into the settings of that run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tlcli.cli import finetune_settings
from tlcli.cli.commands import finetune
from tlcli.training.runs.reproduce_command import finetune_command
from tlcli.training.settings.config import FinetuneConfig


class _ReadError(Exception):
    """The command has parsed its settings."""


def read(command: str) -> FinetuneConfig:
    """Return the settings that `tlcli finetune` parses from a command line."""
    words = shlex.split(command)
    assert words[:2] == ["tlcli", "finetune"]
    found: list[FinetuneConfig] = []
    made = finetune_settings.finetune_config

    def keep(*positional: Any, **flags: Any) -> FinetuneConfig:
        found.append(made(*positional, **flags))
        raise _ReadError

    with patch.object(finetune_settings, "finetune_config", keep), pytest.raises(_ReadError):
        finetune.command.main(words[2:], standalone_mode=False)
    return found[0]


@pytest.mark.parametrize(
    "config",
    [
        FinetuneConfig(dataset="labels.csv", columns={"path": "file name", "label": "class"}, group_column="patient id"),
        FinetuneConfig(),
        FinetuneConfig(
            backbone="mobilenetv2_100",
            weights="/a folder/with 'quotes' & $signs/w.safetensors",
            model_kwargs={"pad_type": "same", "drop_rate": 0.25, "antialias": True, "depths": (2, 2), "heads": (3,)},
            dataset="/data/cats; rm -rf dogs",
            classes=("cat", "dög"),
            mean=(0.5, 0.25, 0.125),
            lr=1e-05,
            head="mlp:256",
            augment=2,
            hflip=False,
            seed=7,
        ),
        FinetuneConfig(mode="full", epochs=4, head_epochs=2, mixup=0.2, ema=0.99, gradual_unfreezing=True, hflip=True, tensorboard=True),
        FinetuneConfig(data_dir=Path("/elsewhere"), name="pets"),
        FinetuneConfig.of("notebook"),
        FinetuneConfig.of("notebook", mode="full", batch_size=32, layer_decay=0.75),
        FinetuneConfig.of("notebook", mode="full", weights="none"),
        FinetuneConfig.of("scratch"),
        FinetuneConfig.of("scratch", mode="feature-extraction", weights="pretrained", mixup=0.0, cutmix=0.0),
    ],
    ids=range(10),
)
def test_the_command_is_parsed_into_the_same_settings(config: FinetuneConfig) -> None:
    assert read(finetune_command(config.model_dump(mode="json"))) == config


def test_only_chosen_settings_are_shown() -> None:
    assert finetune_command(FinetuneConfig().model_dump(mode="json")) == "tlcli finetune --backbone vgg16 --dataset cats-vs-dogs"
    command = finetune_command(FinetuneConfig.of("scratch", seed=3, backbone="lenet5").model_dump(mode="json"))
    assert command == "tlcli finetune --recipe scratch --backbone lenet5 --dataset cats-vs-dogs --seed 3"


def test_the_folder_of_the_run_is_left_out() -> None:
    """The folder exists, so the command would be rejected."""
    assert "--output" not in finetune_command(FinetuneConfig(output=Path("/runs/a")).model_dump(mode="json"))


def test_settings_of_another_version_are_shown_unchanged() -> None:
    asked = {"backbone": "vgg16", "dataset": "mnist", "recipe": "fancy", "sharpness": 0.5, "wide": True}
    assert finetune_command(asked) == "tlcli finetune --backbone vgg16 --dataset mnist --recipe fancy --sharpness 0.5 --wide"
