"""`tlcli export --onnx`: maps for an ONNX classifier that already exists. PyTorch is not imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlcli.cli import options
from tlcli.cli.console import Console, show
from tlcli.contract.errors import SettingsError

if TYPE_CHECKING:
    from tlcli.exports.onnx_source.input_settings import InputSettings
    from tlcli.exports.publication import Exported

_OTHERS = (
    "dynamic_size",
    "temperature",
    "precision",
    "calibration_paths",
    "calibration_images",
    "max_accuracy_drop",
    "min_map_correlation",
    "dataset",
    "data_dir",
    "weights",
    "model_kwargs",
    "seed",
)
"""Parameters of the command that have no effect on the export of an ONNX file."""


def require_flags() -> None:
    """Reject flags that do not apply to an ONNX file.

    Raises:
        UsageError: such a flag was given.
    """
    options.reject_flags(_OTHERS, "cannot be combined with --onnx: use only one of them")


def input_settings(**fields: Any) -> InputSettings:
    """Return the settings of the file's input from the values of the flags.

    Raises:
        SettingsError: the onnx package is not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        raise SettingsError("--onnx needs the onnx package: pip install 'tlcli[onnx]'")
    from tlcli.exports.onnx_source.input_settings import InputSettings

    return InputSettings(**fields)


def run(path: Path, console: Console, **arguments: Any) -> Exported:
    """Export the file. For the arguments, see `tlcli.exports.onnx_export.export_onnx`."""
    from tlcli.exports.onnx_export import export_onnx

    return export_onnx(path, say=console.say, **arguments)


def list_layers(path: Path, settings: InputSettings, logits: str | None) -> None:
    """Print the values of the file that maps can explain."""
    from tlcli.exports.onnx_export import load_classifier
    from tlcli.exports.onnx_source.graph.source_file import shown

    spatial = load_classifier(path, settings, logits, needs_preprocessing=False).spatial_values()()
    rows = [
        {"layer": shown(value.name), "operator": value.operator, "channels": value.channels, "height": value.height, "width": value.width}
        for value in spatial
    ]
    show(rows, ("layer", "operator", "channels", "height", "width"), as_json=False)
