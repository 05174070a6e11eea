"""A network's filters, and its maps of an image, written as sheets into a folder."""

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
    """A backbone as it was published, in eval mode: whether its weights hold a classifier does not matter.

    Args:
        config: its backbone, weights, model arguments and preprocessing count.

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
        num_classes=2,  # a head that is never asked
        preprocessing=resolve_preprocessing(config, backbone),
        pretrained=config.weights != "none",
    )
    return Network(built, backbone).eval().requires_grad_(False)


@dataclass(frozen=True)
class Look:
    """How sheets are drawn. max_channels: on a sheet. columns: in a row; None: what suits."""

    max_channels: int = 64
    columns: int | None = None


@dataclass(frozen=True)
class Written:
    """A sheet that was written.

    layer: None for the overview.
    shape: of the layer's output, of the convolution's weight, or of the image.
    shown, flat: channels, see `LayerSheet`.
    """

    path: Path
    what: Literal["filters", "maps", "overview"]
    layer: Layer | None
    shape: tuple[int, ...]
    shown: tuple[int, ...] = ()
    flat: int = 0


def write_filters(network: Network, convolutions: Sequence[Layer], folder: Path, look: Look, last_number: int) -> Iterator[Written]:
    """A sheet of kernels a convolution: `<number>-<layer>.filters.png`.

    Args:
        network: whose layers they are.
        convolutions: see `tlcli.training.visualize.select_layers.convolutions`.
        folder: made if it is not there.
        look: of the sheets.
        last_number: of the network's layers: it decides how many digits a name has.
    """
    for layer in convolutions:
        parameter = cast("nn.Conv2d", network.backbone.get_submodule(layer.module)).weight
        weight = parameter.detach().to("cpu", torch.float32).numpy()
        drawn = filters_sheet(layer, weight, look.max_channels, look.columns)
        path = folder / file_name(layer, last_number, "filters")
        drawn.sheet.save(path)
        yield Written(path, "filters", layer, weight.shape, drawn.shown, drawn.flat)


def write_maps(
    network: Network, image: npt.NDArray[np.uint8], title: str, layers: Sequence[Layer], folder: Path, look: Look, last_number: int
) -> Iterator[Written]:
    """A sheet of maps a layer, `<number>-<layer>.maps.png`, and the overview of them all.

    Args:
        network: in eval mode.
        image: uint8 `[H, W, 3]`, as `Preprocessing.apply` gives it.
        title: of the overview.
        layers: in the order of execution.
        folder, look, last_number: see `write_filters`.
    """
    found = record(network, image, layers)
    means = []
    for layer in layers:
        maps = found.pop(layer.label)
        means.append((layer, mean_map(maps)))
        drawn = maps_sheet(layer, maps, look.max_channels, look.columns)
        path = folder / file_name(layer, last_number, "maps")
        drawn.sheet.save(path)
        yield Written(path, "maps", layer, maps.shape, drawn.shown, drawn.flat)
    height, width = image.shape[:2]
    detail = f"{network.config.backbone}   ·   the mean over each layer's channels"
    overview_sheet(title, detail, image, means, look.columns).save(folder / OVERVIEW)
    yield Written(folder / OVERVIEW, "overview", None, (3, height, width))


def file_name(layer: Layer, last_number: int, what: str) -> str:
    """Of a sheet: in a listing, names stand in the order of execution, and every file system takes them."""
    digits = max(2, len(str(last_number)))
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", layer.label)[-120:]
    return f"{layer.number:0{digits}}-{safe}.{what}.png"
