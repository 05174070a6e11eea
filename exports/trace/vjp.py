"""Gradient of a network's tail, the part after the explained layers, as graphs of plain operators.

A class activation map needs dy/dA, the derivative of a class's score y with respect to the activations A of a layer. This is a
vector-Jacobian product (VJP). `joint_trace` traces it into ordinary operators, so that the export does not depend on autograd. `partition`
splits the trace: nodes that do not depend on the class run once per image, the others once per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from tlcli.exports.trace.joint_trace import TailFunction, trace_joint
from tlcli.exports.trace.mean_gradients import append_mean_gradients
from tlcli.exports.trace.partition import partition


class TracedTail(nn.Module):
    """Function from `[N, ...]` to an embedding z `[N, d]`, traced into graphs together with its gradient.

    forward: computes z, the layers' activations, and the residuals (masks, sizes) that the other two methods take.
    pull_back: computes the derivatives of weighted sums of z with respect to each layer's activations.
    from_activations: computes z from modified activations of one layer.
    """

    def __init__(
        self, function: TailFunction, example: Tensor, layers: Sequence[str], dynamic_size: bool = False, selects_tokens: bool = False
    ) -> None:
        """Trace `function`.

        Args:
            function: differentiable function that computes each image independently of the others in its batch.
            example: input for one image, without the batch dimension.
            layers: names that `function` passes to its tap, each exactly once.
            dynamic_size: keep the last two dimensions of the input dynamic, in addition to the batch dimension.
            selects_tokens: z may be computed from some of a transformer's tokens only, see `tlcli.exports.trace.needed_tokens`.

        Raises:
            NotImplementedError, RuntimeError, TypeError: an operator cannot be traced or differentiated.
        """
        super().__init__()
        traced = trace_joint(function, example, layers, dynamic_size, selects_tokens)
        self._has_mean = append_mean_gradients(traced, len(layers))
        parts = partition(traced, len(layers))
        self.forward_graph, self.backward_graph = parts.forward, parts.backward
        self.from_activations_graphs = nn.ModuleList(parts.from_activations)
        self._saved_inputs = parts.saved_inputs
        self._rows = parts.rows
        self.layers = tuple(layers)

    def forward(self, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[Any, ...]]:
        """Compute z `[N, d]`, each layer's activations `[N, c, h, w]`, and the residuals for inputs `[N, ...]`."""
        z, *others = self.forward_graph(inputs)
        return z, tuple(others[: len(self.layers)]), tuple(others[len(self.layers) :])

    def pull_back(self, cotangents: Tensor, residuals: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Compute the vector-Jacobian products of z for each layer.

        Args:
            cotangents: weights of z, `[N, K, d]`.
            residuals: residuals returned by `forward`.

        Returns:
            For each layer, the derivatives of the weighted sums of z, `[N, K, c, h, w]`, and for each layer their spatial means,
            `[N, K, c]`.
        """
        n, k, _ = cotangents.shape
        saved = [_repeat_rows(residuals[i], k, self._rows[i]) if self._rows[i] else residuals[i] for i in self._saved_inputs[-1]]
        results = [result.reshape(n, k, *result.shape[1:]) for result in self.backward_graph(cotangents.flatten(0, 1), *saved)]
        gradients, computed_means = results[: len(self.layers)], iter(results[len(self.layers) :])
        means = [
            next(computed_means) if has_mean else gradient.mean((-2, -1))
            for has_mean, gradient in zip(self._has_mean, gradients, strict=True)
        ]
        return tuple(gradients), tuple(means)

    def from_activations(self, layer: int, activations: Tensor, images: Tensor, residuals: tuple[Any, ...]) -> Tensor:
        """Compute z `[R, d]` from modified activations of one layer.

        Args:
            layer: index of the layer.
            activations: modified activations, `[R, c, h, w]`.
            images: int64 `[R]`, batch index of the image to which each row belongs.
            residuals: residuals returned by `forward`.
        """
        saved = [_select_rows(residuals[i], images, self._rows[i]) if self._rows[i] else residuals[i] for i in self._saved_inputs[layer]]
        return cast("Tensor", self.from_activations_graphs[layer](activations, *saved)[0])


def _repeat_rows(value: Tensor, times: Any, rows: int) -> Tensor:
    """Repeat each image's block of `rows` rows `times` times, from `[N * rows, ...]` to `[N * times * rows, ...]`."""
    images = value.reshape(-1, 1, rows, *value.shape[1:])
    return images.expand(-1, times, *([-1] * value.ndim)).flatten(0, 2)


def _select_rows(value: Tensor, images: Tensor, rows: int) -> Tensor:
    """Select the rows of the given images, from `[N * rows, ...]` to `[R * rows, ...]`."""
    return value.reshape(-1, rows, *value.shape[1:]).index_select(0, images).flatten(0, 1)
