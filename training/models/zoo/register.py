"""Registration of a network with timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn


def register(module: str, name: str, build: Callable[..., nn.Module], **options: Any) -> None:
    """Register a network, so that `timm.create_model(name)` builds it with `build`.

    Args:
        module: `__name__` of the module whose `default_cfgs` has the network's entry; timm lists the network under it.
        name: name of the network in timm.
        build: constructor that accepts `num_classes` and the other arguments of `timm.create_model`.
        options: further arguments of timm's `build_model_with_cfg`.
    """

    def create(pretrained: bool = False, **settings: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(build, name, pretrained, **options, **settings)
        return model

    create.__name__ = create.__qualname__ = name
    create.__module__ = module
    register_model(create)
