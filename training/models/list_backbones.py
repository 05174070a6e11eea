"""List of usable backbones: timm's models with a spatial feature map, which class activation maps need."""

from __future__ import annotations

import re
from dataclasses import dataclass

import timm

import tlcli.training.models.zoo  # noqa: F401 - registers them

# timm's modules whose models return tokens, not a feature map `[N, c, h, w]`.
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
"""Models that return tokens, in a module whose other models return a feature map."""


@dataclass(frozen=True)
class Backbone:
    """Model of timm's registry.

    family: name of timm's module. pretrained: tags of the official weights; the first is the default.
    """

    name: str
    family: str
    pretrained: tuple[str, ...]


def list_backbones(pattern: str = "*") -> list[Backbone]:
    """Return the backbones whose name matches, in natural order.

    Args:
        pattern: a substring of the name, or a pattern with `*`.
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
