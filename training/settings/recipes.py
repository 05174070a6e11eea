"""Recipes: named presets of settings. Command-line flags override the values of a recipe."""

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
"""Settings of the Keras cats-and-dogs notebooks: 150 x 150 pixels, a hidden layer of 256 units, and a constant learning rate."""

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
"""Settings for training from random weights, which needs more epochs and stronger augmentation (Wightman et al. 2021, arXiv:2110.00476)."""


def recipe_settings(recipe: Recipe, mode: str | None, weights: str | None) -> dict[str, Any]:
    """Return the settings of a recipe, as fields of `FinetuneConfig`.

    Args:
        recipe: name of the recipe.
        mode, weights: values chosen by the user, or None. The `notebook` recipe depends on them: it trains a head with Adam and all
            layers with RMSprop.
    """
    if recipe == "scratch":
        return dict(_SCRATCH)
    if recipe == "notebook":
        if mode != "full":
            return {**_NOTEBOOK, **_NOTEBOOK_FEATURES}
        own = {**_NOTEBOOK, **_NOTEBOOK_FULL, **_NOTEBOOK_VIEWS}
        if weights == "none":  # no head stage, and random layers learn nothing at a rate meant to preserve pretrained ones
            own |= {"lr": 1e-3, "epochs": 10}
            del own["head_epochs"]
        return own
    return {}
