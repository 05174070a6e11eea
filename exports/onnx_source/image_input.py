"""Form of the images that a foreign file takes, as NumPy arithmetic and as nodes of the graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.exports.onnx_source.graph.node_writer import NodeWriter, sizes


@dataclass(frozen=True)
class ImageInput:
    """Form of the images that a foreign file takes.

    preprocessing: normalisation, and size.
    channels_last: True for `[N, H, W, 3]`.
    reversed_channels: True for blue, green, red.
    is_float: True for float32, False for uint8.
    """

    preprocessing: Preprocessing
    channels_last: bool
    reversed_channels: bool = False
    is_float: bool = True

    @property
    def mean(self) -> np.ndarray:
        """Mean per channel for values from 0 to 255."""
        return (255 * np.array(self.preprocessing.mean)).astype(np.float32)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation per channel for values from 0 to 255."""
        return (255 * np.array(self.preprocessing.std)).astype(np.float32)

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Convert uint8 images `[N, H, W, 3]` to the input of the file."""
        values = (images.astype(np.float32) - self.mean) / self.std if self.is_float else images
        if self.reversed_channels:
            values = values[..., ::-1]
        return np.ascontiguousarray(values if self.channels_last else values.transpose(0, 3, 1, 2))

    def write(self, writer: NodeWriter, images: str, output: str) -> None:
        """Add the nodes that compute the conversion of `apply`."""
        value = images if self.channels_last else writer.op("Transpose", images, perm=[0, 3, 1, 2])
        shape = (3,) if self.channels_last else (3, 1, 1)
        if self.is_float:
            value = writer.op("Cast", value, to=TensorProto.FLOAT)
            if np.any(self.mean):
                value = writer.op("Sub", value, self.mean.reshape(shape))
            if np.any(self.std != 1):
                value = writer.op("Div", value, self.std.reshape(shape))
        if self.reversed_channels:
            value = writer.op("Gather", value, sizes(2, 1, 0), axis=3 if self.channels_last else 1)
        writer.named("Identity", [value], output)
