"""Writing of contact sheets that show a network's filters, and its maps for an image, to a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tlcli.training.models.backbone_names import built_for_size, with_timms_name
from tlcli.training.models.network import Network, NetworkConfig
from tlcli.training.models.pretrained_preprocessing import resolve_preprocessing
from tlcli.training.models.spatial_layers import Layer, record
from tlcli.training.models.weights import load_backbone
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.visualize.layer_sheets import filters_sheet, maps_sheet, mean_map, overview_sheet

OVERVIEW = "overview.png"


def without_classifier(config: FinetuneConfig) -> Network:
    """Load a backbone in eval mode. Its weights may or may not include a classifier.

    Args:
        config: settings, of which the backbone, weights, model arguments and preprocessing are used.

    Raises:
        WeightsError, HubError, NotFoundError: see `tlcli.training.models.weights.load_backbone`.
        SettingsError: see `load_backbone` and `tlcli.training.models.network.Network`.
    """
    config = built_for_size(with_timms_name(config))
    backbone, _ = load_backbone(config)
    built = NetworkConfig(
        backbone=config.backbone,
        model_kwargs=config.model_kwargs,
        head="linear",
        num_classes=2,  # the head is never run
        preprocessing=resolve_preprocessing(config, backbone),
        pretrained=config.weights != "none",
    )
    return Network(built, backbone).eval().requires_grad_(False)


@dataclass(frozen=True)
class SheetOptions:
    """Layout options of contact sheets.

    max_channels: maximum number of channels per sheet. columns: tiles per row; None chooses it from the number of tiles.
    """

    max_channels: int = 64
    columns: int | None = None


@dataclass(frozen=True)
class WrittenSheet:
    """Contact sheet written to disk.

    path: path of the PNG file. what: kind of sheet. layer: layer shown on the sheet; None for the overview.
    shape: shape of the layer's output, of the convolution's weight, or of the image.
    shown, flat: see `LayerSheet`.
    """

    path: Path
    what: Literal["filters", "maps", "overview"]
    layer: Layer | None
    shape: tuple[int, ...]
    shown: tuple[int, ...] = ()
    flat: int = 0


def write_filters(
    network: Network, convolutions: Sequence[Layer], folder: Path, options: SheetOptions, last_number: int
) -> Iterator[WrittenSheet]:
    """Write a contact sheet of kernels for each convolution to `<number>-<layer>.filters.png`, and yield each written sheet.

    Args:
        network: network that the layers belong to.
        convolutions: layers returned by `tlcli.training.visualize.select_layers.convolutions`.
        folder: output folder, created if missing.
        options: layout of the sheets.
        last_number: number of the network's last layer, which determines the number of digits in file names.
    """
    for layer in convolutions:
        parameter = cast("nn.Conv2d", network.backbone.get_submodule(layer.module)).weight
        weight = parameter.detach().to("cpu", torch.float32).numpy()
        drawn = filters_sheet(layer, weight, options.max_channels, options.columns)
        path = folder / file_name(layer, last_number, "filters")
        drawn.sheet.save(path)
        yield WrittenSheet(path, "filters", layer, weight.shape, drawn.shown, drawn.flat)


def write_maps(
    network: Network,
    image: npt.NDArray[np.uint8],
    title: str,
    layers: Sequence[Layer],
    folder: Path,
    options: SheetOptions,
    last_number: int,
) -> Iterator[WrittenSheet]:
    """Write a contact sheet of maps for each layer to `<number>-<layer>.maps.png`, and an overview. Yields each written sheet.

    Args:
        network: network in eval mode.
        image: network input, uint8 `[H, W, 3]`, as returned by `Preprocessing.apply`.
        title: title of the overview.
        layers: layers to show, in execution order.
        folder, options, last_number: see `write_filters`.
    """
    recorded = record(network, image, layers)
    means = []
    for layer in layers:
        maps = recorded.pop(layer.label)
        means.append((layer, mean_map(maps)))
        drawn = maps_sheet(layer, maps, options.max_channels, options.columns)
        path = folder / file_name(layer, last_number, "maps")
        drawn.sheet.save(path)
        yield WrittenSheet(path, "maps", layer, maps.shape, drawn.shown, drawn.flat)
    height, width = image.shape[:2]
    detail = f"{network.config.backbone}   ·   the mean over each layer's channels"
    overview_sheet(title, detail, image, means, options.columns).save(folder / OVERVIEW)
    yield WrittenSheet(folder / OVERVIEW, "overview", None, (3, height, width))


def file_name(layer: Layer, last_number: int, what: str) -> str:
    """Return the file name of a contact sheet. Names sort in execution order and are valid on every file system."""
    digits = max(2, len(str(last_number)))
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", layer.label)[-120:]
    return f"{layer.number:0{digits}}-{safe}.{what}.png"
