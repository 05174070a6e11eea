"""Contact sheets of a network's filters, and of its maps for an image, written into a folder."""

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

from tlcli.training.models.backbone_names import with_timms_name
from tlcli.training.models.network import Network, NetworkConfig
from tlcli.training.models.pretrained_preprocessing import resolve_preprocessing
from tlcli.training.models.spatial_layers import Layer, record
from tlcli.training.models.weights import load_backbone
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.visualize.layer_sheets import filters_sheet, maps_sheet, mean_map, overview_sheet

OVERVIEW = "overview.png"


def without_classifier(config: FinetuneConfig) -> Network:
    """Return a pretrained backbone in eval mode, whether or not its weights include a classifier.

    Args:
        config: its backbone, weights, model arguments and preprocessing are used.

    Raises:
        WeightsError, HubError, NotFoundError: see `tlcli.training.models.weights.load_backbone`.
        SettingsError: see there, and `tlcli.training.models.network.Network`.
    """
    config = with_timms_name(config)
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
    """Layout of sheets. max_channels: most channels on a sheet. columns: tiles in a row; None chooses by their number."""

    max_channels: int = 64
    columns: int | None = None


@dataclass(frozen=True)
class WrittenSheet:
    """A sheet on disk.

    path: path of the PNG. what: kind of sheet. layer: layer of the sheet; None for the overview.
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
    """Write a sheet of kernels per convolution, `<number>-<layer>.filters.png`, and yield each.

    Args:
        network: network of the layers.
        convolutions: see `tlcli.training.visualize.select_layers.convolutions`.
        folder: made if it does not exist.
        options: layout of the sheets.
        last_number: number of the network's last layer, which sets the digits in file names.
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
    """Write a sheet of maps per layer, `<number>-<layer>.maps.png`, and an overview of all layers, and yield each.

    Args:
        network: in eval mode.
        image: uint8 `[H, W, 3]`, as `Preprocessing.apply` returns it.
        title: title of the overview.
        layers: in the order of execution.
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
    """Return the file name of a sheet; names sort in the order of execution and are valid on every file system."""
    digits = max(2, len(str(last_number)))
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", layer.label)[-120:]
    return f"{layer.number:0{digits}}-{safe}.{what}.png"
