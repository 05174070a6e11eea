"""Registration of networks in timm's model registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn


def register(module: str, name: str, build: Callable[..., nn.Module], **options: Any) -> None:
    """Register a network with timm, so that `timm.create_model(name)` builds it with `build`.

    Args:
        module: `__name__` of the module whose `default_cfgs` contains the network. timm lists the network under this module.
        name: name of the network in timm.
        build: constructor that accepts `num_classes` and the other arguments of `timm.create_model`.
        options: additional arguments for timm's `build_model_with_cfg`.
    """

    def create(pretrained: bool = False, **settings: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(build, name, pretrained, **options, **settings)
        return model

    create.__name__ = create.__qualname__ = name
    create.__module__ = module
    register_model(create)
