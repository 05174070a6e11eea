"""Recipes, and what the settings come to."""

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
@pytest.mark.parametrize("given", [{}, {"mode": "full"}, {"mode": "full", "weights": "none"}])
def test_every_recipe_is_a_plan(recipe: Any, given: dict[str, Any]) -> None:
    plan = resolve_plan(FinetuneConfig.of(recipe, **given))
    assert plan.head_epochs + plan.full_epochs >= 10


def test_a_flag_overrides_a_recipe() -> None:
    notebook = FinetuneConfig.of("notebook")
    assert (notebook.image_size, notebook.head, notebook.optimizer) == (150, "mlp:256", "adam")
    mine = FinetuneConfig.of("notebook", image_size=64, optimizer="sgd")
    assert (mine.image_size, mine.head, mine.optimizer) == (64, "mlp:256", "sgd")


def test_the_notebook_trains_a_head_with_adam_and_all_layers_with_rmsprop() -> None:
    head = resolve_plan(FinetuneConfig.of("notebook"))
    assert (head.optimizer, head.head_lr, head.head_epochs, head.full_epochs, head.schedule) == ("adam", 1e-3, 10, 0, "constant")
    full = resolve_plan(FinetuneConfig.of("notebook", mode="full"))
    assert (full.optimizer, full.full_lr, full.head_epochs, full.full_epochs) == ("rmsprop", 1e-5, 10, 10)
    assert (full.warm_up, full.full_label_smoothing, full.weight_decay, full.layer_decay) == (0, 0, 0, 1)
    views = full.augmentation
    assert (views.scale, views.shear, views.zoom, views.hflip, views.brightness) == (None, 0.2, 0.2, True, 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mixup": 0.2}, "--mixup goes with --mode full"),
        ({"ema": 0.99}, "--ema goes with --mode full"),
        ({"accumulate": 2}, "--accumulate goes with --mode full"),
        ({"gradual_unfreezing": True}, "--gradual-unfreezing goes with --mode full"),
        ({"shear": 5.0}, "--shear changes images, and feature extraction looks at each as it is: give --augment VIEWS too"),
        ({"random_erasing": 0.5}, "--random-erasing changes images"),
        ({"mode": "full", "weights": "none", "gradual_unfreezing": True}, "--gradual-unfreezing with --weights none"),
        ({"mode": "full", "head_search": True}, "--head-search goes with --mode feature-extraction"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        resolve_plan(config(Path("x"), **settings))


def test_views_of_feature_extraction_may_be_changed_images() -> None:
    plan = resolve_plan(config(Path("x"), augment=2, shear=5.0, jitter=0.0))
    assert (plan.views, plan.augmentation.shear, plan.augmentation.saturation) == (2, 5.0, 0.0)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"recipe": "notebook", "mode": "full", "dataset": 'a "folder"\\with ünusual', "model_kwargs": {"pad_type": "same", "depth": 3}},
        {"recipe": "scratch", "classes": ("a", "b"), "mean": (0.5, 0.5, 0.5), "device": "cpu"},
    ],
)
def test_settings_printed_are_settings_read(given: dict[str, Any], tmp_path: Path) -> None:
    asked = finetune_config(**given)
    file = tmp_path / "settings.toml"
    file.write_text(to_toml(asked), encoding="utf-8")
    assert finetune_config(file) == asked
    assert finetune_config(file, epochs=77).epochs == 77
    assert f"# head_epochs = {resolve_plan(asked).head_epochs}" in file.read_text(encoding="utf-8")


def test_mistakes_in_a_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("epoch = 3")
    with pytest.raises(SettingsError, match=r"settings.toml: epoch: is no setting"):
        finetune_config(file)
    file.write_text('optimizer = "magic"')
    with pytest.raises(SettingsError, match=r"settings.toml: optimizer: Input should be 'adamw', 'adam', 'rmsprop' or 'sgd'"):
        finetune_config(file)
    file.write_text("epochs: 3")
    with pytest.raises(SettingsError, match=r"settings.toml: no TOML"):
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


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValidationError, match="recipe"):
        FinetuneConfig.of("magic")  # type: ignore[arg-type]
