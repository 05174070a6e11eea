"""How images become a backbone's input: what its makers wrote down, overridden by what was asked for."""

from __future__ import annotations

from typing import Any, cast

import timm.data
from torch import nn

from tlcli.contract.errors import SettingsError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.settings.config import FinetuneConfig


def resolve_preprocessing(config: FinetuneConfig, backbone: nn.Module) -> Preprocessing:
    """The evaluation transform of a run.

    Args:
        config: its `image_size`, `crop_pct`, `crop_mode`, `interpolation`, `mean` and `std` count where they are given.
        backbone: a timm model, whose `pretrained_cfg` fills in the rest. The share that the crop keeps stays the
            backbone's when only the size is changed.

    Raises:
        SettingsError: the size differs from the one that the backbone is fixed to.
    """
    own: dict[str, Any] = timm.data.resolve_model_data_config(backbone)  # type: ignore[attr-defined, no-untyped-call]
    built_for = config.model_kwargs.get("img_size")  # an argument that timm's models of fixed input size take
    height, width = (int(built_for), int(built_for)) if built_for is not None else own["input_size"][1:]
    if config.image_size is not None:
        asked = (config.image_size, config.image_size)
        if cast("dict[str, Any]", backbone.pretrained_cfg).get("fixed_input_size") and asked != (height, width):
            raise SettingsError(
                f"--image-size {config.image_size}: {config.backbone} is built for {height}x{width} pixels and takes no other;"
                f" build it for yours with --model-kwargs img_size={config.image_size}, or leave --image-size out"
            )
        height, width = asked
    given = {
        name: value
        for name in ("crop_pct", "crop_mode", "interpolation", "mean", "std")
        if (value := getattr(config, name)) is not None or (value := own[name]) is not None
    }
    return Preprocessing(height=height, width=width, **given)
