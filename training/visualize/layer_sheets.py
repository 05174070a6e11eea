"""Contact sheets of the maps of a layer, the kernels of a convolution, and an overview of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.images.heatmap import ByteArray, FloatArray
from tlcli.training.models.spatial_layers import Layer
from tlcli.training.visualize.colormap import RAMP, about_zero, color_map, is_flat
from tlcli.training.visualize.contact_sheet import RULE, ContactSheet, Legend, Tile, columns_for, enlarge, lay_out, reduce, room

_MAP_SIDE, _KERNEL_SIDE, _ROW_KERNEL_SIDE = 224, 112, 60
"""Maximum side length in pixels of maps, of single kernels, and of kernels shown side by side, after enlarging."""

_INPUTS_SHOWN = 8
_SPACE = 5
"""Space in pixels between kernels shown side by side."""

_GREYS = np.repeat(np.arange(1, 256, dtype=np.uint8)[:, None], 3, axis=1)


@dataclass(frozen=True)
class LayerSheet:
    """Contact sheet of one layer.

    shown: channels or filters on the sheet. flat: number of flat channels or filters in the entire layer.
    """

    sheet: ContactSheet
    shown: tuple[int, ...]
    flat: int


def maps_sheet(layer: Layer, maps: FloatArray, most: int, columns: int | None = None) -> LayerSheet:
    """Draw the maps of a layer, each scaled to its own range.

    Args:
        layer: layer that the maps belong to, for the title.
        maps: output of the layer, `[c, h, w]`.
        most: maximum number of channels; those with the highest mean are shown, in index order.
        columns: number of tiles per row; None chooses it from the number of tiles.
    """
    shown = strongest(maps.mean((1, 2), dtype=np.float64), most)
    flat = sum(is_flat(channel) for channel in maps)
    columns = columns or columns_for(len(shown))
    tiles = [Tile(_map_tile(maps[channel], room(columns)), (str(channel),)) for channel in shown]
    count = f"all {len(maps)} channels" if len(shown) == len(maps) else f"the {len(shown)} most active of {len(maps)} channels"
    detail = _detail(
        layer.kind, " x ".join(map(str, layer.shape)), count, _describe_flat(flat, any(is_flat(maps[channel]) for channel in shown))
    )
    legend = Legend(RAMP, "each channel's lowest", "highest")
    return LayerSheet(lay_out(layer.label, detail, tiles, columns, legend), shown, flat)


def filters_sheet(layer: Layer, weight: FloatArray, most: int, columns: int | None = None) -> LayerSheet:
    """Draw the kernels of a convolution. Each filter is scaled by the largest magnitude among its shown weights.

    Zero is drawn in middle grey. Filters with three input channels are drawn in RGB; for others, the kernels of the first input channels
    are drawn side by side in grey.

    Args:
        layer: layer that the kernels belong to, for the title.
        weight: weight of the convolution, `[filters, inputs, h, w]`.
        most: maximum number of filters; those with the largest norm are shown, in index order.
        columns: number of filters per row; None chooses it from the number of filters.
    """
    filters, inputs = weight.shape[:2]
    shown = strongest(np.square(weight, dtype=np.float64).sum((1, 2, 3)), most)
    flat = sum(not (np.isfinite(kernel).all() and np.any(kernel)) for kernel in weight)
    several = inputs not in (1, 3)
    columns = columns or (min(4, len(shown)) if several else columns_for(len(shown)))
    in_row = max(1, min(inputs, _INPUTS_SHOWN, room(columns) // (weight.shape[3] + _SPACE))) if several else 1
    side = min(_ROW_KERNEL_SIDE if several else _KERNEL_SIDE, (room(columns) - in_row * _SPACE) // in_row)
    tiles = []
    for number in shown:
        colors = about_zero(weight[number] if inputs == 3 else weight[number, :in_row])
        kernels = [colors.transpose(1, 2, 0)] if inputs == 3 else [np.repeat(grey[..., None], 3, axis=2) for grey in colors]
        tiles.append(Tile(_in_a_row([enlarge(kernel, side) for kernel in kernels]), (str(number),)))
    count = f"all {filters} filters" if len(shown) == filters else f"the {len(shown)} of the largest norm of {filters} filters"
    of_inputs = "RGB" if inputs == 3 else f"the first {in_row} of {inputs} inputs side by side" if several else ""
    shape = " x ".join(map(str, weight.shape))
    detail = _detail(layer.kind, f"kernels {shape}", count, of_inputs, f"{flat} flat" if flat else "")
    legend = Legend(_GREYS, "each filter's -max", "+max")
    return LayerSheet(lay_out(f"{layer.label} filters", detail, tiles, columns, legend), shown, flat)


def overview_sheet(
    title: str, detail: str, image: npt.NDArray[np.uint8], means: Sequence[tuple[Layer, FloatArray]], columns: int | None = None
) -> ContactSheet:
    """Draw the input image followed by the channel mean of each layer, all at the same size.

    Args:
        title: title of the sheet.
        detail: line below the title.
        image: input of the network, uint8 `[H, W, 3]`.
        means: mean map `[h, w]` of each layer, in execution order.
        columns: number of tiles per row; None chooses it from the number of tiles.
    """
    columns = columns or columns_for(len(means) + 1)
    height, width = image.shape[:2]
    scale = min(_MAP_SIDE, room(columns)) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    tiles = [Tile(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)), ("the image", f"3 x {height} x {width}"))]
    for layer, mean in means:
        values = reduce(mean, max(size))
        colored = Image.fromarray(color_map(values)).resize(size, Image.Resampling.NEAREST)
        tiles.append(Tile(np.asarray(colored), (layer.label, " x ".join(map(str, layer.shape)))))
    return lay_out(title, detail, tiles, columns, Legend(RAMP, "each map's lowest", "highest"))


def mean_map(maps: FloatArray) -> FloatArray:
    """Return the channel mean `[h, w]` of maps `[c, h, w]`; zeros if the mean contains only rounding errors, as after a layer norm."""
    mean: FloatArray = maps.mean(0, dtype=np.float64).astype(np.float32)
    return np.zeros_like(mean) if is_flat(mean, float(np.abs(maps).max())) else mean


def strongest(strengths: npt.NDArray[np.float64], most: int) -> tuple[int, ...]:
    """Return the indices of the `most` largest values, sorted in ascending order. NaN is treated as the smallest value."""
    order = np.argsort(-np.nan_to_num(strengths, nan=-np.inf), kind="stable")
    return tuple(sorted(order[:most].tolist()))


def _map_tile(values: FloatArray, most: int) -> ByteArray:
    return enlarge(color_map(reduce(values, most)), min(_MAP_SIDE, most))


def _describe_flat(count: int, shown: bool) -> str:
    return "" if count == 0 else f"{count} flat (grey)" if shown else f"{count} others flat"


def _in_a_row(kernels: Sequence[ByteArray]) -> ByteArray:
    if len(kernels) == 1:
        return kernels[0]
    space = np.full((kernels[0].shape[0], _SPACE, 3), RULE, np.uint8)
    row = [pixels for kernel in kernels for pixels in (kernel, space)]
    return np.concatenate(row[:-1], axis=1)


def _detail(*facts: str) -> str:
    return "   ·   ".join(fact for fact in facts if fact)
