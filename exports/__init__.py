"""Export of a checkpoint to one self-describing ONNX model, with class activation maps in its graph."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tlcli import training  # noqa: F401  # first: it sets how PyTorch's threads wait, which is read when PyTorch is imported

if TYPE_CHECKING:
    from tlcli.exports.backbone_export import export_backbone
    from tlcli.exports.exporter import export
    from tlcli.exports.precision.convert import SmallerNumbers
    from tlcli.exports.publication import DEFAULT_CHECK_IMAGES, Exported
    from tlcli.exports.published_backbone import published_network
    from tlcli.exports.run_export import export_run
    from tlcli.training.models.target_layers import list_layers

__all__ = [
    "DEFAULT_CHECK_IMAGES",
    "Exported",
    "SmallerNumbers",
    "export",
    "export_backbone",
    "export_run",
    "list_layers",
    "published_network",
]

_MODULES = {
    "DEFAULT_CHECK_IMAGES": "tlcli.exports.publication",
    "Exported": "tlcli.exports.publication",
    "SmallerNumbers": "tlcli.exports.precision.convert",
    "export": "tlcli.exports.exporter",
    "export_backbone": "tlcli.exports.backbone_export",
    "export_run": "tlcli.exports.run_export",
    "list_layers": "tlcli.training.models.target_layers",
    "published_network": "tlcli.exports.published_backbone",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that exporting a backbone does not import the code for data sets or training."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
