"""From a checkpoint to one self-describing ONNX model, maps in its graph."""

from tlcli import training  # noqa: F401  # first: it settles how PyTorch's threads wait, which is read when PyTorch is imported
from tlcli.exports.export_sources import DEFAULT_CHECK_IMAGES, export_backbone, export_run, published_network
from tlcli.exports.exporter import Exported, export
from tlcli.exports.precision.convert import SmallerNumbers
from tlcli.exports.trace.target_layers import list_layers

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
