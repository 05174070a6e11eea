"""Backbone names: normalization of common spellings to timm's names, and suggestions for misspelled names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable

import timm
import torch
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
"""timm names for torchvision and Keras names that differ from timm's. Keys are lower case and without separators."""


def resolve_backbone_name(name: str) -> str:
    """Return the timm name of a backbone.

    Differences in case and separators are ignored (`ResNet18`, `resnet-50`, `EfficientNet_B0`); torchvision's names and timm's
    deprecated names are translated. A name that matches several networks, or none, is returned unchanged.

    Args:
        name: backbone name, optionally followed by a dot and a weights tag.
    """
    if timm.is_model(name):
        return str(_registry._deprecated_models.get(name) or name)
    stripped = name.strip().removeprefix("timm/").removeprefix("hf-hub:timm/")
    if timm.is_model(stripped):
        return stripped
    written, dot, tag = stripped.partition(".")
    key = _key(written)
    known = [model for model in timm.list_models() if _key(model) == key]
    if not known and key in _OTHER_NAMES:
        known = [_OTHER_NAMES[key]]
    return f"{known[0]}{dot}{tag}" if len(known) == 1 else name


def with_timms_name(config: FinetuneConfig, say: Callable[[str], None] = lambda _: None) -> FinetuneConfig:
    """Return the settings with the timm name of the backbone. If the name changes, report it through `say`."""
    name = resolve_backbone_name(config.backbone)
    if name == config.backbone:
        return config
    say(f"--backbone {config.backbone}: using {name}")
    return config.model_copy(update={"backbone": name})


def built_for_size(config: FinetuneConfig, say: Callable[[str], None] = lambda _: None) -> FinetuneConfig:
    """Return the settings with timm's model argument `img_size` if the backbone has a fixed input size and another one is requested.

    Most transformers are built for one image size. Built for another one, they resize the position embeddings of their weights. If the
    argument is added, report it through `say`.
    """
    size = config.image_size
    known = timm.get_pretrained_cfg(config.backbone) if timm.is_model(config.backbone) else None
    if size is None or known is None or not known.fixed_input_size or (size, size) == known.input_size[1:]:
        return config
    if "img_size" in config.model_kwargs or not _accepts_img_size(config, size):
        return config
    say(f"--image-size {size}: building {config.backbone} for this size instead of {known.input_size[1]}")
    return config.model_copy(update={"model_kwargs": {**config.model_kwargs, "img_size": size}})


def _accepts_img_size(config: FinetuneConfig, size: int) -> bool:
    try:
        with torch.device("meta"):  # without memory for the weights
            timm.create_model(config.backbone, **{**config.model_kwargs, "img_size": size})  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, AssertionError, NotImplementedError):
        return False
    return True


def close_backbone_names(name: str) -> list[str]:
    """Return up to six timm model names similar to `name`, names that start with it first."""
    key = _key(name.partition(".")[0])
    by_key: dict[str, str] = {}
    for model in timm.list_models():
        by_key.setdefault(_key(model), model)
    close = difflib.get_close_matches(key, by_key, n=_SUGGESTIONS, cutoff=0.75)
    key = key if close or any(other.startswith(key) for other in by_key) else key.rstrip("0123456789")
    starting = sorted((other for other in by_key if key and other.startswith(key)), key=lambda other: (len(other), other))
    return [by_key[match] for match in dict.fromkeys([*starting[:_SUGGESTIONS], *close])][:_SUGGESTIONS]


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
