"""Names of backbones as people write them, to timm's."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

import timm
from timm.models import _registry

import tlcli.training.models.zoo  # noqa: F401 - registers them
from tlcli.training.settings.config import FinetuneConfig

_SUGGESTIONS = 6

_OTHER_NAMES = {
    "mobilenetv2": "mobilenetv2_100",
    "mobilenetv3large": "mobilenetv3_large_100",
    "mobilenetv3small": "mobilenetv3_small_100",
    "vitb16": "vit_base_patch16_224",
    "vitb32": "vit_base_patch32_224",
    "vitl16": "vit_large_patch16_224",
    "swint": "swin_tiny_patch4_window7_224",
    "swins": "swin_small_patch4_window7_224",
    "swinb": "swin_base_patch4_window7_224",
    "wideresnet502": "wide_resnet50_2",
    "wideresnet1012": "wide_resnet101_2",
    "xception": "legacy_xception",
}
"""Without separators and in lower case: what torchvision and Keras call networks that timm calls something else."""


def resolve_backbone_name(name: str) -> str:
    """Return timm's name of a backbone.

    `ResNet18`, `resnet-50` and `EfficientNet_B0` differ from timm's names in case and separators alone; torchvision's and older names of
    timm's own are translated. A name that could mean several networks, or none, is returned as it is.

    Args:
        name: with a tag of weights behind a dot, or without.
    """
    if timm.is_model(name):
        return str(_registry._deprecated_models.get(name) or name)
    stripped = name.strip().removeprefix("timm/").removeprefix("hf-hub:timm/")
    if timm.is_model(stripped):
        return stripped
    written, dot, tag = stripped.partition(".")
    key = _key(written)
    known = [one for one in timm.list_models() if _key(one) == key]
    if not known and key in _OTHER_NAMES:
        known = [_OTHER_NAMES[key]]
    return f"{known[0]}{dot}{tag}" if len(known) == 1 else name


def with_timms_name(config: FinetuneConfig, say: Callable[[str], None] = lambda _: None) -> FinetuneConfig:
    """The settings with timm's name of the backbone; says so where that differs from what was written."""
    name = resolve_backbone_name(config.backbone)
    if name == config.backbone:
        return config
    say(f"--backbone {config.backbone}: taken as {name}")
    return config.model_copy(update={"backbone": name})


def close_backbone_names(name: str) -> list[str]:
    """Return timm's names that are written much like this one, the closest first."""
    key = _key(name.partition(".")[0])
    by_key: dict[str, str] = {}
    for one in timm.list_models():
        by_key.setdefault(_key(one), one)
    close = difflib.get_close_matches(key, by_key, n=_SUGGESTIONS, cutoff=0.75)
    key = key if close or any(one.startswith(key) for one in by_key) else key.rstrip("0123456789")
    starting = sorted((one for one in by_key if key and one.startswith(key)), key=lambda one: (len(one), one))
    return [by_key[one] for one in dict.fromkeys([*starting[:_SUGGESTIONS], *close])][:_SUGGESTIONS]


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
