"""From a checkpoint to one self-describing ONNX model, maps in its graph."""

import training  # noqa: F401  # first: it settles how PyTorch's threads wait, which is read when PyTorch is imported
from exports.export import Exported, export
from exports.layers import list_layers
from exports.smaller import SmallerNumbers
from exports.sources import DEFAULT_CHECK_PICTURES, export_backbone, export_run, published_network

__all__ = [
    "DEFAULT_CHECK_PICTURES",
    "Exported",
    "SmallerNumbers",
    "export",
    "export_backbone",
    "export_run",
    "list_layers",
    "published_network",
]
