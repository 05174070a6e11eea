"""Recipes, settings files, and the resolved plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.helpers.training.tiny_training import config
from tlcli.cli.finetune_settings import finetune_config, to_toml
from tlcli.contract.errors import NotFoundError, SettingsError
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.plan import resolve_plan
from tlcli.training.settings.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("overrides", [{}, {"mode": "full"}, {"mode": "full", "weights": "none"}])
def test_every_recipe_resolves_to_a_plan(recipe: Any, overrides: dict[str, Any]) -> None:
    plan = resolve_plan(FinetuneConfig.of(recipe, **overrides))
    assert plan.head_epochs + plan.full_epochs >= 10


def test_a_flag_overrides_a_recipe() -> None:
    notebook = FinetuneConfig.of("notebook")
    assert (notebook.image_size, notebook.head, notebook.optimizer) == (150, "mlp:256", "adam")
    mine = FinetuneConfig.of("notebook", image_size=64, optimizer="sgd")
    assert (mine.image_size, mine.head, mine.optimizer) == (64, "mlp:256", "sgd")


def test_the_notebook_trains_a_head_with_adam_and_all_layers_with_rmsprop() -> None:
    head = resolve_plan(FinetuneConfig.of("notebook"))
    assert (head.config.optimizer, head.config.schedule) == ("adam", "constant")
    assert (head.head_lr, head.head_epochs, head.full_epochs) == (1e-3, 10, 0)
    full = resolve_plan(FinetuneConfig.of("notebook", mode="full"))
    assert (full.config.optimizer, full.full_lr, full.head_epochs, full.full_epochs) == ("rmsprop", 1e-5, 10, 10)
    assert (full.warm_up, full.full_label_smoothing, full.weight_decay, full.layer_decay) == (0, 0, 0, 1)
    views = full.augmentation
    assert (views.scale, views.shear, views.zoom, views.hflip, views.brightness) == (None, 0.2, 0.2, True, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": 0.2}, "--mixup needs --mode full"),
        ({"ema": 0.99}, "--ema needs --mode full"),
        ({"accumulate": 2}, "--accumulate needs --mode full"),
        ({"gradual_unfreezing": True}, "--gradual-unfreezing needs --mode full"),
        ({"shear": 5.0}, "--shear has no effect without augmented images: add --augment VIEWS, or use --mode full"),
        ({"random_erasing": 0.5}, "--random-erasing has no effect without augmented images"),
        ({"mode": "full", "weights": "none", "gradual_unfreezing": True}, "--gradual-unfreezing has no effect with --weights none"),
        ({"mode": "full", "head_search": True}, "--head-search needs --mode feature-extraction"),
    ],
)
def test_contradictory_settings_are_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve_plan(config(Path("x"), **settings))


def test_feature_extraction_augments_its_views() -> None:
    plan = resolve_plan(config(Path("x"), augment=2, shear=5.0, jitter=0.0))
    assert (plan.config.augment, plan.augmentation.shear, plan.augmentation.saturation) == (2, 5.0, 0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recipe": "notebook", "mode": "full", "dataset": 'a "folder"\\with ünusual', "model_kwargs": {"pad_type": "same", "depth": 3}},
        {"recipe": "scratch", "classes": ("a", "b"), "mean": (0.5, 0.5, 0.5), "device": "cpu"},
    ],
)
def test_printed_settings_are_read_back_unchanged(settings: dict[str, Any], tmp_path: Path) -> None:
    written = finetune_config(**settings)
    file = tmp_path / "settings.toml"
    file.write_text(to_toml(written), encoding="utf-8")
    assert finetune_config(file) == written
    assert finetune_config(file, epochs=77).epochs == 77
    assert f"# head_epochs = {resolve_plan(written).head_epochs}" in file.read_text(encoding="utf-8")


def test_errors_in_a_settings_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("epoch = 3")
    with pytest.raises(SettingsError, match=r"settings.toml: epoch: no such setting"):
        finetune_config(file)
    file.write_text('optimizer = "magic"')
    with pytest.raises(SettingsError, match=r"settings.toml: optimizer: Input should be 'adamw', 'adam', 'rmsprop' or 'sgd'"):
        finetune_config(file)
    file.write_text("epochs: 3")
    with pytest.raises(SettingsError, match=r"settings.toml: not valid TOML"):
        finetune_config(file)
    file.write_bytes("epochs = 3".encode("utf-8-sig"))
    assert finetune_config(file).epochs == 3
    file.write_bytes("# caf\u00e9".encode("latin-1"))
    with pytest.raises(SettingsError, match=r"settings.toml: line 1: byte 5 \(0xe9\) is not UTF-8"):
        finetune_config(file)
    with pytest.raises(NotFoundError, match="no such file"):
        finetune_config(tmp_path / "none.toml")
    with pytest.raises(SettingsError, match="--lr: Input should be greater than 0"):
        finetune_config(lr=-1.0)


def test_an_unknown_recipe_is_rejected() -> None:
    with pytest.raises(ValidationError, match="recipe"):
        FinetuneConfig.of("magic")  # type: ignore[arg-type]
