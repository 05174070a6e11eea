"""Query types without protobuf. The clients build them, and the server builds them from each message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from tlcli.contract.errors import RequestError

MapFormat = Literal["raw", "heat_map", "overlay"]
"""Format of a map: raw values, a coloured image, or an overlay on the input image."""


@dataclass(frozen=True)
class MapQuery:
    """Class activation maps requested for an image.

    method: name of a map method that the model offers.
    classes: ids of the classes to explain; -r selects the class of rank r. Empty: the top-ranked class, or with several labels per image
        every assigned label.
    map_format: format in which the maps are returned.
    softmax: explain the class's softmax probability instead of its logit.
    max_channels: number of channels that a Score-CAM scores; 0 for the method's default.
    """

    method: str
    classes: tuple[int, ...] = ()
    map_format: MapFormat = "raw"
    softmax: bool = False
    max_channels: int = 0


@dataclass(frozen=True)
class Query:
    """Request to classify one image.

    encoded: encoded image such as JPEG or PNG, or None. Exactly one of `encoded` and `pixels` is set.
    pixels: RGB pixels of the model's input size, one byte per channel, row by row, or None.
    model: name of the model; may be empty if the server holds only one.
    version: number or label of the version; empty for the latest.
    top_k: number of top-ranked classes to return; 0 for five, or fewer if the model has fewer classes. With several labels per image,
        the assigned labels are returned in any case, and 0 returns only these.
    map: maps to compute, or None.
    request_id: id to return with the response.
    """

    encoded: bytes | None = None
    pixels: bytes | None = None
    model: str = ""
    version: str = ""
    top_k: int = 0
    map: MapQuery | None = None
    request_id: str = ""


def map_query(
    method: str | None, classes: Sequence[int] = (), map_format: MapFormat = "raw", softmax: bool = False, max_channels: int = 0
) -> MapQuery | None:
    """Build a map query from a client's arguments, or return None if no method is set.

    Raises:
        RequestError: the format is unknown, or `classes`, `softmax` or `max_channels` is set without a method.
    """
    if method is not None:
        return MapQuery(method, tuple(classes), require_map_format(map_format), softmax, max_channels)
    if classes:
        raise RequestError(f"classes {list(classes)} need a map method: set one, for example cam='gradcam'")
    if softmax or max_channels:
        raise RequestError("softmax and max_channels need a map method: set one, for example cam='scorecam'")
    return None


def require_map_format(name: str) -> MapFormat:
    """Return `name` unchanged if it is a valid map format.

    Raises:
        RequestError: `name` is not a valid map format. The message lists the valid ones.
    """
    for map_format in get_args(MapFormat):
        if name == map_format:
            return cast("MapFormat", map_format)
    raise RequestError(f"unknown map format {name!r}: expected {', '.join(get_args(MapFormat))}")
