"""Listing of the backbones that can be fine-tuned: timm models whose features hold a spatial map."""

from __future__ import annotations

from dataclasses import dataclass

import timm

import tlcli.training.models.zoo  # noqa: F401 - registers them

_WITHOUT_MAP = frozenset({"coat", "crossvit", "efficientvim", "pit"})
"""timm modules whose features hold no map: several tensors, or class tokens only. Their published models can be exported, but a new head
cannot be trained."""


@dataclass(frozen=True)
class Backbone:
    """Backbone in timm's model registry.

    family: name of the timm module. pretrained: tags of the official weights, starting with the default.
    """

    name: str
    family: str
    pretrained: tuple[str, ...]


def list_backbones(pattern: str = "*") -> list[Backbone]:
    """Return the backbones whose names match a pattern, in natural order.

    Args:
        pattern: substring of the name, or a wildcard pattern with `*`.
    """
    if "*" not in pattern:
        pattern = f"*{pattern}*"
    tags: dict[str, list[str]] = {}
    for full in timm.list_models(pretrained=True):
        name, _, tag = full.partition(".")
        tags.setdefault(name, []).append(tag)
    backbones = []
    for name in timm.list_models(pattern):
        family = timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
        if family not in _WITHOUT_MAP:
            default = getattr(timm.get_pretrained_cfg(name), "tag", None)
            ordered = sorted(tags.get(name, []), key=lambda tag: (tag != default, tag))
            backbones.append(Backbone(name, family, tuple(ordered)))
    return backbones
