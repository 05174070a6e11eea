"""Recipes: settings that belong together, by name. Any flag overrides what a recipe says."""

from __future__ import annotations

from typing import Any, Literal, get_args

Recipe = Literal["default", "notebook", "scratch"]

RECIPES: tuple[Recipe, ...] = get_args(Recipe)

_NOTEBOOK = {
    "head": "mlp:256",
    "image_size": 150,
    "crop_mode": "squash",
    "crop_pct": 1.0,
    "epochs": 10,
    "batch_size": 20,
    "schedule": "constant",
    "warm_up": 0.0,
    "weight_decay": 0.0,
    "layer_decay": 1.0,
    "label_smoothing": 0.0,
}
"""As Keras's notebooks for cats and dogs do it: 150 x 150 pixels, a hidden layer of 256, and rates that stay as they are."""

_NOTEBOOK_FEATURES = {"optimizer": "adam", "lr": 1e-3}
_NOTEBOOK_FULL = {"optimizer": "rmsprop", "lr": 1e-5, "epochs": 20, "head_epochs": 10, "crop_scale": 1.0, "jitter": 0.0}
_NOTEBOOK_VIEWS = {"shear": 0.2, "zoom": 0.2, "hflip": True}

_SCRATCH = {
    "weights": "none",
    "mode": "full",
    "epochs": 60,
    "batch_size": 64,
    "rand_augment": 7,
    "random_erasing": 0.1,
    "mixup": 0.1,
    "cutmix": 0.5,
    "ema": 0.999,
}
"""Random weights see more of everything: epochs, and ways to look at an image (Wightman et al. 2021, arXiv:2110.00476)."""


def recipe_settings(recipe: Recipe, mode: str | None, weights: str | None) -> dict[str, Any]:
    """What a recipe says, as fields of `FinetuneConfig`.

    Args:
        recipe: its name.
        mode, weights: what the user asked for, None where nothing: `notebook` trains a head with Adam and all layers with RMSprop.
    """
    if recipe == "scratch":
        return dict(_SCRATCH)
    if recipe == "notebook":
        if mode != "full":
            return {**_NOTEBOOK, **_NOTEBOOK_FEATURES}
        own = {**_NOTEBOOK, **_NOTEBOOK_FULL, **_NOTEBOOK_VIEWS}
        if weights == "none":  # there is no stage of the head alone, and random layers learn nothing at a rate made to preserve them
            own |= {"lr": 1e-3, "epochs": 10}
            del own["head_epochs"]
        return own
    return {}
