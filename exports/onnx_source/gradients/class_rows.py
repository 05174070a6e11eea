"""Layout of gradients with a class axis.

The gradient of the scores of K classes with respect to a value of extent `[p..., N * r, q...]` has the shape `[p..., N * K * r, q...]`:
each image's block of r rows is repeated for each class. Operators that treat rows independently (convolutions, products with weights) take
it unchanged. To multiply it with a value of the forward pass, it is viewed as `[p..., N, K, r, q...]`, and the value as
`[p..., N, 1, r, q...]`, so the value is not copied for each class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tlcli.exports.onnx_source.graph.extents import Extent
from tlcli.exports.onnx_source.graph.node_writer import NodeWriter, sizes


@dataclass(frozen=True)
class Factor:
    """Value to multiply a gradient with.

    value: name of a value of the forward pass with its extent, or an array that is the same for all images.
    """

    value: str | npt.NDArray[np.float32]
    extent: Extent | None = None


class ClassRows:
    """Views of gradients with a class axis; see the module's description."""

    def __init__(self, writer: NodeWriter, classes: str) -> None:
        """Store the writer.

        Args:
            writer: writer for the nodes.
            classes: name of the explained classes, int64 `[N, K]`.
        """
        self.writer = writer
        self.count = writer.op("Shape", classes, start=1, end=2)

    def split(self, gradient: str, extent: Extent) -> str:
        """Return a gradient as `[p..., N, K, r, q...]`."""
        before, after = extent.dims[: extent.batch], extent.dims[extent.batch :]
        shape = self.writer.op("Concat", sizes(*before, -1), self.count, sizes(*after), axis=0)
        return self.writer.op("Reshape", gradient, shape)

    def merge(self, gradient: str, extent: Extent) -> str:
        """Return a gradient as `[p..., N * K * r, q...]`. It may have any view of the same order."""
        shape = [-1 if axis == extent.batch else size for axis, size in enumerate(extent.dims)]
        return self.writer.op("Reshape", gradient, sizes(*shape))

    def to_rows(self, gradient: str, extent: Extent) -> str:
        """Return a gradient as `[elements of the value, K]`."""
        rank, batch = extent.rank, extent.batch
        perm = [axis for axis in range(rank + 2) if axis != batch + 1]
        moved = self.writer.op("Transpose", self.split(gradient, extent), perm=[*perm, batch + 1])
        return self.writer.op("Reshape", moved, self.writer.op("Concat", sizes(-1), self.count, axis=0))

    def from_rows(self, rows: str, extent: Extent) -> str:
        """Return a gradient from `[elements of the value, K]`; the inverse of `to_rows`."""
        rank, batch = extent.rank, extent.batch
        before, after = extent.dims[:batch], extent.dims[batch:]
        shape = self.writer.op("Concat", sizes(*before, -1, *after), self.count, axis=0)
        perm = [*range(batch + 1), rank + 1, *range(batch + 1, rank + 1)]
        return self.merge(self.writer.op("Transpose", self.writer.op("Reshape", rows, shape), perm=perm), extent)

    def beside(self, factor: Factor, extent: Extent) -> str:
        """Return a factor as `[p..., N, 1, r, q...]`, to be combined with the split gradient of a value of this extent.

        Raises:
            NotImplementedError: the batch is on another axis of the factor.
        """
        missing = extent.rank - (factor.extent.rank if factor.extent is not None else np.ndim(factor.value))
        if missing < 0:
            raise NotImplementedError("a value with fewer axes than its gradient's factor")
        if factor.extent is None:
            array = np.asarray(factor.value, dtype=np.float32)
            padded = array.reshape(*[1] * missing, *array.shape)
            split = (*padded.shape[: extent.batch], 1, 1, *padded.shape[extent.batch :])
            return self.writer.constant(padded.reshape(split))
        if factor.extent.batch + missing != extent.batch:
            raise NotImplementedError("a product of values with the batch on different axes")
        assert isinstance(factor.value, str)
        dims = (*[1] * missing, *factor.extent.dims)
        return self.writer.op("Reshape", factor.value, sizes(*dims[: extent.batch], -1, 1, *dims[extent.batch :]))

    def combine(self, operator: str, gradient: str, extent: Extent, factor: Factor) -> str:
        """Combine the gradient of a value elementwise with a factor, for example by `Mul`."""
        if factor.extent is None:
            array = np.asarray(factor.value, dtype=np.float32)
            axis = array.ndim - (extent.rank - extent.batch)
            if array.ndim <= extent.rank and (axis < 0 or array.shape[axis] == 1):
                return self.writer.op(operator, gradient, array)
        return self.merge(self.writer.op(operator, self.split(gradient, extent), self.beside(factor, extent)), extent)

    def reduce_to(self, gradient: str, extent: Extent, target: Extent) -> str:
        """Sum the gradient of a broadcast value over the axes along which the value was repeated.

        Args:
            gradient: gradient with respect to the broadcast value.
            extent: extent of the broadcast value.
            target: extent of the value before broadcasting.

        Raises:
            NotImplementedError: the value was repeated along the batch.
        """
        if extent == target:
            return gradient
        missing = extent.rank - target.rank
        if missing < 0 or target.batch + missing != extent.batch or target.dims[target.batch] != extent.dims[extent.batch]:
            raise NotImplementedError("a value is broadcast along the batch")
        dims = (*[1] * missing, *target.dims)
        axes = [axis for axis in range(extent.rank) if dims[axis] == 1 and extent.dims[axis] != 1 and axis != extent.batch]
        if axes:
            gradient = self.writer.op("ReduceSum", gradient, sizes(*axes), keepdims=1)
        return self.merge(gradient, target) if missing else gradient
