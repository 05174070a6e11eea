"""Tail of a network, the part behind the explained layers, and its gradient: traced once, cut into graphs of plain operators.

A class activation map needs dy/dA, the derivative of a class's score y with respect to the activations A of a layer. That is a
vector-Jacobian product (VJP). It is traced into ordinary operators (`joint_trace`), so that exporting it needs no autograd, and cut
(`partition`): nodes that do not depend on the class run once per image, the others once per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from tlcli.exports.trace.joint_trace import TailFunction, trace_joint
from tlcli.exports.trace.mean_gradients import append_mean_gradients
from tlcli.exports.trace.partition import partition


class TracedTail(nn.Module):
    """Function `[N, ...] -> z [N, d]` with layers in it, as graphs.

    forward: the input to z, the layers' activations, and the residuals that the other two methods take (masks, sizes).
    pull_back: weights of z to the derivative of its weighted sum with respect to each layer's activations.
    from_activations: changed activations of one layer to z.
    """

    def __init__(self, function: TailFunction, example: Tensor, layers: Sequence[str], dynamic_size: bool = False) -> None:
        """Trace `function`.

        Args:
            function: differentiable; every image independent of the others in its batch.
            example: an input of one image, without the batch dimension.
            layers: names that `function` passes to its tap, each once.
            dynamic_size: keep the example's last two dimensions open, as well as the batch dimension.

        Raises:
            NotImplementedError, RuntimeError, TypeError: an operator cannot be traced or differentiated.
        """
        super().__init__()
        traced = trace_joint(function, example, layers, dynamic_size)
        self._has_mean = append_mean_gradients(traced, len(layers))
        parts = partition(traced, len(layers))
        self.forward_graph, self.backward_graph = parts.forward, parts.backward
        self.from_activations_graphs = nn.ModuleList(parts.from_activations)
        self._saved_inputs = parts.saved_inputs
        self._rows = parts.rows
        self.layers = tuple(layers)

    def forward(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[Any, ...]]:
        """Return z `[N, d]`, each layer's activations `[N, c, h, w]`, and the residuals, for inputs `[N, ...]`."""
        z, *others = self.forward_graph(inputs)
        return z, tuple(others[: len(self.layers)]), tuple(others[len(self.layers) :])

    def pull_back(self, cotangents: Tensor, residuals: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the derivatives of weighted sums of z, `[N, K, c, h, w]` a layer, and their spatial means.

        Args:
            cotangents: the weights of z, `[N, K, d]`.
            residuals: from `forward`.
        """
        n, k, _ = cotangents.shape
        saved = [_repeat_rows(residuals[i], k, self._rows[i]) if self._rows[i] else residuals[i] for i in self._saved_inputs[-1]]
        results = [result.unflatten(0, (n, k)) for result in self.backward_graph(cotangents.flatten(0, 1), *saved)]
        gradients, computed_means = results[: len(self.layers)], iter(results[len(self.layers) :])
        means = [
            next(computed_means) if has_mean else gradient.mean((-2, -1))
            for has_mean, gradient in zip(self._has_mean, gradients, strict=True)
        ]
        return tuple(gradients), tuple(means)

    def from_activations(self, layer: int, activations: Tensor, images: Tensor, residuals: tuple[Any, ...]) -> Tensor:
        """Return z `[R, d]` for changed activations of one layer.

        Args:
            layer: its index.
            activations: `[R, c, h, w]`.
            images: int64 `[R]`, the index in the batch of the image that each row belongs to.
            residuals: from `forward`.
        """
        saved = [_select_rows(residuals[i], images, self._rows[i]) if self._rows[i] else residuals[i] for i in self._saved_inputs[layer]]
        return cast("Tensor", self.from_activations_graphs[layer](activations, *saved)[0])


def _repeat_rows(value: Tensor, times: Any, rows: int) -> Tensor:
    """Repeat the `rows` rows of each image `times` times: `[N * rows, ...]` to `[N * times * rows, ...]`."""
    images = value.reshape(-1, 1, rows, *value.shape[1:])
    return images.expand(-1, times, *([-1] * value.ndim)).flatten(0, 2)


def _select_rows(value: Tensor, images: Tensor, rows: int) -> Tensor:
    """Select the rows of the given images: `[N * rows, ...]` to `[R * rows, ...]`."""
    return value.reshape(-1, rows, *value.shape[1:]).index_select(0, images).flatten(0, 1)
