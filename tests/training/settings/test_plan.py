"""Serialization of the resolved plan."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.training.tiny_training import config
from tlcli.training.settings.plan import Plan, resolve_plan


def test_a_serialized_plan_does_not_repeat_the_settings() -> None:
    settings = config(Path("x"), mode="full", mixup=0.2)
    plan = resolve_plan(settings)
    document = plan.model_dump(mode="json")
    assert "config" not in document
    assert not document.keys() & {"optimizer", "batch_size", "mixup"}
    assert Plan.model_validate({**document, "config": settings}) == plan


def test_a_plan_of_an_earlier_version_which_repeats_the_settings_is_read() -> None:
    settings = config(Path("x"), mode="full", mixup=0.2)
    plan = resolve_plan(settings)
    repeated = {
        "head_search": False, "views": 0, "optimizer": "adamw", "schedule": "cosine", "class_weights": "none", "patience": None,
        "batch_size": 8, "accumulate": 1, "mixup": 0.2, "cutmix": 0.0, "ema": None, "gradual_unfreezing": False, "amp": "auto",
        "compile": False,
    }  # fmt: skip
    assert Plan.model_validate({**plan.model_dump(mode="json"), **repeated, "config": settings.model_dump(mode="json")}) == plan
