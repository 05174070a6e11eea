"""A map as a request wants it: numbers, a heat map, an overlay."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tlcli.contract.images import heatmap
from tlcli.contract.images.network_input import NetworkInput
from tlcli.contract.images.preprocessing import Box, Preprocessing
from tlcli.service.types.answer import ClassMap
from tlcli.service.types.query import MapQuery


def draw(values: npt.NDArray[np.float32], query: MapQuery, seen: NetworkInput, preprocessing: Preprocessing) -> ClassMap:
    """One class's map.

    Args:
        values: float32 `[h, w]`, not normalised.
        query: the format; an overlay needs `seen.image`.
        seen: what the network was given.
        preprocessing: gives a heat map its size, the input's.
    """
    png = None
    if query.map_format == "heat_map":
        png = heatmap.encode(heatmap.heat_map(values, preprocessing.width, preprocessing.height))
    elif query.map_format == "overlay":
        assert seen.image is not None, "kept where an overlay was asked for"
        png = heatmap.encode(heatmap.overlay(seen.image, values, _scaled(seen.box, seen.scale)))
    height, width = values.shape
    return ClassMap(query.method, height, width, values if png is None else None, png, seen.box)


def _scaled(box: Box, scale: float) -> Box:
    left, top, right, bottom = box
    return left * scale, top * scale, right * scale, bottom * scale
