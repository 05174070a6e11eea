"""What is asked, free of protobuf: the client makes it, the server's edge reads it off the wire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from tlcli.contract.errors import RequestError

MapFormat = Literal["raw", "heat_map", "overlay"]
"""A map as its own numbers, as a coloured image, or laid over the photograph."""


@dataclass(frozen=True)
class MapQuery:
    """Which maps are wanted.

    method: a map's name, of those the model offers.
    classes: to explain, by id; -r means the r-th ranked. Empty: the first ranked.
    map_format: how they come.
    softmax: explain the class's softmax probability instead of its logit.
    max_channels: how many channels a Score-CAM looks through; 0 for the method's own number.
    """

    method: str
    classes: tuple[int, ...] = ()
    map_format: MapFormat = "raw"
    softmax: bool = False
    max_channels: int = 0


@dataclass(frozen=True)
class Query:
    """One image and what is asked of it.

    encoded: a JPEG, PNG, ... or None.
    pixels: RGB, a byte a channel, row by row, of the model's input size, or None. One of the two is there.
    model: its name; empty where the server holds one only.
    version: empty for the latest.
    top_k: how many of the best classes; 0 for five, or fewer where the model has fewer.
    map: absent, no map is computed.
    request_id: comes back in the answer.
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
    """What a caller asks of maps; None without a method.

    Raises:
        RequestError: an unknown format, or something is said of a map and no method is named.
    """
    if method is not None:
        return MapQuery(method, tuple(classes), require_map_format(map_format), softmax, max_channels)
    if classes:
        raise RequestError(f"classes {list(classes)} are to be explained by no method: name one, for example method='gradcam'")
    if softmax or max_channels:
        raise RequestError(
            "softmax and max_channels say how a map is made, and no method is named: name one, for example method='scorecam'"
        )
    return None


def require_map_format(name: str) -> MapFormat:
    """`name`, if it is a map format.

    Raises:
        RequestError: it is not; the message lists those that are.
    """
    for known in get_args(MapFormat):
        if name == known:
            found: MapFormat = known
            return found
    raise RequestError(f"unknown map format {name!r}: expected {', '.join(get_args(MapFormat))}")
