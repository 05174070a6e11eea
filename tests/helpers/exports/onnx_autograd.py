"""Maps of a foreign ONNX file by float64 autograd, on the PyTorch network that the file was written from.

The explained layer is found by its numbers: among all tensors that the network computes, the one that equals the file's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.helpers.exports import reference
from tlcli.contract.model.onnx_model import Answer, Model

GRADIENT_MAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": reference.gradcam,
    "gradcam_plus_plus": reference.gradcam_plus_plus,
    "xgradcam": reference.xgradcam,
    "hirescam": reference.hirescam,
    "gradcam_elementwise": reference.gradcam_elementwise,
    "layercam": reference.layercam,
}


def maps_in(output: Tensor, shape: torch.Size) -> list[Callable[[Tensor], Tensor]]:
    """Return the ways to view a tensor as features `[N, c, h, w]`: as it is, channels last, and tokens behind prefix tokens."""
    count, channels, height, width = shape
    if output.shape == shape:
        return [lambda value: value]
    if output.shape == (count, height, width, channels):
        return [lambda value: value.permute(0, 3, 1, 2)]
    if output.ndim == 3 and output.shape[::2] == (count, channels) and output.shape[1] >= height * width:
        return [lambda value: value[:, -height * width :].mT.reshape(shape)]
    return []


class _Recorder(TorchFunctionMode):
    """Records the first tensor that holds the features."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self._features = features
        self.layer: Tensor | None = None
        self.to_map: Callable[[Tensor], Tensor] = lambda value: value
        self._busy = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if self._busy or self.layer is not None or not isinstance(output, Tensor):
            return output
        self._busy = True
        try:
            scale = 1e-4 * float(self._features.abs().max())
            for view in maps_in(output, self._features.shape):
                if output.requires_grad and torch.allclose(view(output.detach()), self._features, rtol=1e-3, atol=scale):
                    self.layer, self.to_map = output, view  # the first of several equal ones: the others are copies of it
        finally:
            self._busy = False
        return output


class OnnxReference:
    """Network in float64, and the file that was exported from its ONNX file."""

    def __init__(self, network: nn.Module, model: Model, dtype: torch.dtype = torch.float64) -> None:
        self._network = network.to(dtype).eval()
        self._model = model
        self._dtype = dtype
        size = model.description.preprocessing
        self._mean, self._std = (255 * torch.tensor(values, dtype=torch.float64) for values in (size.mean, size.std))

    def distances(self, images: npt.NDArray[np.uint8], ranks: Sequence[int] = (-1, -2), softmax: bool = False) -> dict[str, float]:
        """Return the largest difference of each map from autograd's, relative to the map's largest value, and of the logits."""
        answer, expected, logits = self._compute(images, ranks, softmax)
        differences = {"logits": float(np.abs(answer.logits - logits).max())}
        for method, maps in expected.items():
            differences[method] = reference.relative_difference(answer.maps[method].reshape(maps.shape), maps)
        return differences

    def from_double(self, images: npt.NDArray[np.uint8], double: OnnxReference, ranks: Sequence[int] = (-1, -2)) -> dict[str, float]:
        """Return the largest difference of each map between autograd in this precision and in float64."""
        _, own, _ = self._compute(images, ranks, False)
        _, expected, _ = double._compute(images, ranks, False)
        return {method: reference.relative_difference(own[method], maps) for method, maps in expected.items()}

    def _compute(
        self, images: npt.NDArray[np.uint8], ranks: Sequence[int], softmax: bool
    ) -> tuple[Answer, dict[str, npt.NDArray[np.float64]], npt.NDArray[np.float64]]:
        """Return the file's answer, autograd's maps `[N * K, h, w]` by method, and its logits."""
        (layer,) = self._model.description.layers
        methods = [method for method in self._model.description.graph_maps if method != "ablationcam"]
        answer = self._model.run(images, ranks, methods, [layer.features], softmax)
        features = torch.from_numpy(answer.evidence[layer.features]).to(self._dtype)
        inputs = ((torch.from_numpy(images).double() - self._mean) / self._std).permute(0, 3, 1, 2).to(self._dtype)
        with _Recorder(features) as recorder:
            logits = self._network(inputs.requires_grad_())
        if recorder.layer is None:
            raise AssertionError(f"no tensor of the network equals {layer.name}")
        assert answer.classes is not None
        scores = logits.softmax(1) if softmax else logits
        expected: dict[str, list[npt.NDArray[np.float64]]] = {method: [] for method in methods}
        for image in range(len(images)):
            activations = recorder.to_map(recorder.layer.detach())[image]
            for class_id in answer.classes[image]:
                (gradient,) = torch.autograd.grad(scores[image, class_id], recorder.layer, retain_graph=True)
                for method in methods:
                    expected[method].append(self._expected(method, activations.double(), recorder.to_map(gradient)[image].double()).numpy())
        return answer, {method: np.stack(maps) for method, maps in expected.items()}, logits.detach().double().numpy()

    def _expected(self, method: str, activations: Tensor, gradient: Tensor) -> Tensor:
        if method == "fem":
            return reference.fem(activations)
        if method == "cam":  # the gradient of the mean is the weight divided by the number of positions
            return reference.cam(activations, gradient.sum((-2, -1)))
        return GRADIENT_MAPS[method](activations, gradient)
