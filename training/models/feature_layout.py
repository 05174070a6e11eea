"""Layout of a layer's output: where it holds a map `[c, h, w]` for each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LayoutKind = Literal["channels_first", "channels_last", "tokens"]

_MOST_PREFIX_TOKENS = 8
"""Largest number of prefix tokens to try. DINOv2 and DINOv3 have up to five: a class token and four registers."""


@dataclass(frozen=True)
class FeatureLayout:
    """Position of the map in an output.

    kind: `channels_first` for `[N, c, h, w]`, `channels_last` for `[N, h, w, c]`, and `tokens` for `[N, prefix + h * w, c]`, where the
        prefix holds tokens without a position, such as the class token, and the other tokens are in row-major order.
    height, width: size of the map. Used only for `tokens`, so that the other layouts accept maps of any size.
    prefix: number of prefix tokens.
    """

    kind: LayoutKind
    height: int
    width: int
    prefix: int = 0

    def to_map(self, output: Tensor) -> Tensor:
        """Return the map `[N, c, h, w]` in an output. The result may share memory with the output."""
        if self.kind == "channels_first":
            return output
        if self.kind == "channels_last":
            return output.permute(0, 3, 1, 2)
        return output[:, self.prefix :].transpose(1, 2).reshape(output.shape[0], output.shape[2], self.height, self.width)

    def with_map(self, output: Tensor, new_map: Tensor) -> Tensor:
        """Return an output with its map replaced by `new_map`, `[N, c, h, w]`, and its prefix tokens kept."""
        if self.kind == "channels_first":
            return new_map
        if self.kind == "channels_last":
            return new_map.permute(0, 2, 3, 1)
        tokens = new_map.flatten(2).transpose(1, 2)
        return torch.cat([output[:, : self.prefix], tokens], 1) if self.prefix else tokens

    def from_map(self, new_map: Tensor) -> Tensor:
        """Return an output with the map `new_map`, `[N, c, h, w]`, and prefix tokens of zeros."""
        return self.with_map(new_map.new_zeros(new_map.shape[0], self.prefix, new_map.shape[1]), new_map)

    def channels(self, output: Tensor) -> int:
        """Return the number of channels c of an output."""
        return output.shape[1] if self.kind == "channels_first" else output.shape[-1]


def possible_layouts(shape: tuple[int, ...], height: int, width: int, declared_prefix: int) -> Iterator[FeatureLayout]:
    """Yield the layouts that an output's shape allows: those whose map has more than one position and the aspect ratio of the image.

    Args:
        shape: shape of the output, with the batch dimension.
        height, width: size of the image.
        declared_prefix: number of prefix tokens to try first.
    """
    if len(shape) == 4:
        if _fits(shape[2], shape[3], height, width):
            yield FeatureLayout("channels_first", shape[2], shape[3])
        if _fits(shape[1], shape[2], height, width):
            yield FeatureLayout("channels_last", shape[1], shape[2])
    elif len(shape) == 3 and shape[1] != shape[2]:  # a square matrix holds the weights of an attention
        for prefix in dict.fromkeys((declared_prefix, *range(_MOST_PREFIX_TOKENS + 1))):
            tokens = shape[1] - prefix
            sizes = [(rows, tokens // rows) for rows in range(2, tokens // 2 + 1) if tokens % rows == 0]
            fitting = [size for size in sizes if _fits(*size, height, width)]
            for rows, columns in sorted(fitting, key=lambda size: abs(size[0] * width - size[1] * height)):
                yield FeatureLayout("tokens", rows, columns, prefix)


def _fits(rows: int, columns: int, height: int, width: int) -> bool:
    """Return True if a map has positions and the image's aspect ratio, up to one row or column."""
    within = 1 < rows <= height and 1 < columns <= width
    return within and abs(rows * width - columns * height) <= (0 if height == width else max(height, width))
