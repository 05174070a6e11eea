"""Preprocessing of a pretrained backbone, taken from its `pretrained_cfg` and overridden by the user's settings."""

from __future__ import annotations

from typing import Any, cast

import timm.data
from torch import nn

from tlcli.contract.errors import SettingsError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.model_arguments import Argument


def resolve_preprocessing(config: FinetuneConfig, backbone: nn.Module) -> Preprocessing:
    """Resolve the evaluation transform of a run.

    Args:
        config: settings, of which `image_size`, `crop_pct`, `crop_mode`, `interpolation`, `mean` and `std` override the backbone's values.
        backbone: timm model whose `pretrained_cfg` supplies the remaining values. If only the image size changes, its `crop_pct` is kept.

    Raises:
        SettingsError: the backbone has a fixed input size that differs from the requested one.
    """
    own: dict[str, Any] = timm.data.resolve_model_data_config(backbone)  # type: ignore[attr-defined, no-untyped-call]
    built_for = config.model_kwargs.get("img_size")  # argument of timm models with a fixed input size
    height, width = _pair(built_for) if built_for is not None else own["input_size"][1:]
    if config.image_size is not None:
        requested = (config.image_size, config.image_size)
        if cast("dict[str, Any]", backbone.pretrained_cfg).get("fixed_input_size") and requested != (height, width):
            raise SettingsError(
                f"--image-size {config.image_size}: {config.backbone} is built for {height}x{width} pixels and accepts no other size;"
                f" build it for your size with --model-kwargs img_size={config.image_size}, or leave --image-size out"
            )
        height, width = requested
    values = {
        name: value
        for name in ("crop_pct", "crop_mode", "interpolation", "mean", "std")
        if (value := getattr(config, name)) is not None or (value := own[name]) is not None
    }
    return Preprocessing(height=height, width=width, **values)


def _pair(img_size: Argument) -> tuple[int, int]:
    """Return timm's `img_size`, one number or two, as height and width."""
    height, width = img_size if isinstance(img_size, tuple) else (img_size, img_size)
    return int(height), int(width)
