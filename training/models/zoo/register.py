"""How a network of this project comes into timm's registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn


def register(module: str, name: str, build: Callable[..., nn.Module], **options: Any) -> None:
    """Let `timm.create_model(name)` make what `build` makes.

    Args:
        module: `__name__` of the one whose `default_cfgs` has the network's entry; timm lists the network under it.
        name: for timm.
        build: takes `num_classes` and the other arguments of `timm.create_model`.
        options: of timm's `build_model_with_cfg`.
    """

    def create(pretrained: bool = False, **settings: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(build, name, pretrained, **options, **settings)
        return model

    create.__name__ = create.__qualname__ = name
    create.__module__ = module
    register_model(create)
