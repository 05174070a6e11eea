"""Listing of usable backbones: timm models with a spatial feature map, which class activation maps require."""

from __future__ import annotations

import re
from dataclasses import dataclass

import timm

import tlcli.training.models.zoo  # noqa: F401 - registers them

# timm modules whose models return tokens instead of a feature map `[N, c, h, w]`.
# fmt: off
_WITHOUT_MAP = frozenset(
    {
        "beit", "cait", "coat", "convit", "crossvit", "deepseek_vit", "deit", "efficientformer", "efficientvim", "eva", "flexivit",
        "gemma4_vit", "hiera", "hieradet_sam2", "mambaout", "mlp_mixer", "mvitv2", "naflexvit", "pit", "qwen3_vit", "sequencer",
        "swin_transformer", "swin_transformer_v2", "tnt", "twins", "vision_transformer", "vision_transformer_hybrid",
        "vision_transformer_relpos", "vitamin", "volo", "xcit",
    }
)
# fmt: on
_RETURNS_TOKENS = re.compile(r"levit_(?!conv_)")
"""Names of models that return tokens although other models of the same module return a feature map."""


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
        if family not in _WITHOUT_MAP and not _RETURNS_TOKENS.match(name):
            default = getattr(timm.get_pretrained_cfg(name), "tag", None)
            ordered = sorted(tags.get(name, []), key=lambda tag: (tag != default, tag))
            backbones.append(Backbone(name, family, tuple(ordered)))
    return backbones
