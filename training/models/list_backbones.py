"""Which of timm's models are backbones here: those with a spatial feature map, which a class activation map needs."""

from __future__ import annotations

import re
from dataclasses import dataclass

import timm

import tlcli.training.models.zoo  # noqa: F401 - registers them

# timm's modules whose models answer tokens, not a map `[N, c, h, w]`.
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
_OF_TOKENS = re.compile(r"levit_(?!conv_)")
"""Models that answer tokens in a module whose other models answer a map."""


@dataclass(frozen=True)
class Backbone:
    """A model of timm's registry.

    family: timm's module. pretrained: the tags of its official weights; the first is what the bare name means.
    """

    name: str
    family: str
    pretrained: tuple[str, ...]


def list_backbones(pattern: str = "*") -> list[Backbone]:
    """Those whose name matches: a part of the name, or a pattern with `*`. In natural order."""
    if "*" not in pattern:
        pattern = f"*{pattern}*"
    tags: dict[str, list[str]] = {}
    for full in timm.list_models(pretrained=True):
        name, _, tag = full.partition(".")
        tags.setdefault(name, []).append(tag)
    found = []
    for name in timm.list_models(pattern):
        family = timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
        if family not in _WITHOUT_MAP and not _OF_TOKENS.match(name):
            default = getattr(timm.get_pretrained_cfg(name), "tag", None)
            ordered = sorted(tags.get(name, []), key=lambda tag: (tag != default, tag))
            found.append(Backbone(name, family, tuple(ordered)))
    return found
