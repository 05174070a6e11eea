"""`tlcli finetune --resume`: it goes on with the settings that a run was started with, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.training.tiny_training import config, put_colours
from tlcli.cli.finetune_settings import check_same_settings
from tlcli.contract.errors import NotFoundError, SettingsError
from tlcli.training import finetune

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    put_colours(home / "data", train=4)
    return finetune(config(home / "data", home / "run", mode="full", epochs=1)).path


@pytest.mark.parametrize("given", [{}, {"epochs": 1, "mode": "full", "image_size": 32}, {"weights": "none"}, {"workers": 7}])
def test_what_a_run_was_begun_with_may_be_said_again(run: Path, given: dict[str, Any]) -> None:
    check_same_settings(run, given, None)


def test_the_data_set_may_lie_in_another_folder(run: Path, tmp_path: Path) -> None:
    check_same_settings(run, {"dataset": str(tmp_path)}, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": 7}, "--epochs 7 does not match .*run, which was started with 1: leave --epochs out to resume, or start a new run"),
        ({"lr": 0.1}, "--lr 0.1 does not match .* was started with the default"),
        ({"dataset": "cifar10"}, "--dataset cifar10 does not match .* was started with .*data"),
        ({"recipe": "scratch"}, "--recipe scratch does not match .* was started with default"),
        ({"tensorboard": True}, "--tensorboard True does not match .* was started with False"),
        ({"output": Path("x")}, "--output cannot be combined with --resume"),
    ],
)
def test_other_settings_are_refused_by_name(run: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check_same_settings(run, given, None)


def test_a_settings_file_is_refused(run: Path) -> None:
    with pytest.raises(SettingsError, match="--config cannot be combined with --resume"):
        check_same_settings(run, {}, Path("settings.toml"))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"not a run \(config.json is missing\)"):
        check_same_settings(tmp_path, {}, None)
