"""Maps written from the papers, in float64, with autograd: what the graph is compared with.

Nothing here comes from `exports`. The network is taken as a black box that runs from pictures to logits; the layer is
observed with a hook on the module that the model's description names.
"""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.network import Network


class Reference:
    """Logits and maps of a network in float64."""

    def __init__(self, network: Network, layer: str) -> None:
        self.network = copy.deepcopy(network).double().eval().requires_grad_(False)
        self.layer = self.network.backbone.get_submodule(layer)

    def observe(self, images: npt.NDArray[np.uint8], class_ids: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[N, C]`, activations A `[N, c, h, w]` and dy/dA `[N, K, c, h, w]` for class ids `[N, K]`."""
        seen: list[Tensor] = []

        def watch(_module: object, _inputs: object, output: Tensor) -> Tensor:
            seen.append(output.detach().requires_grad_(True))
            return seen[-1] * 1  # what follows may work in place

        config = self.network.config.preprocessing
        pixels = torch.from_numpy(images).double().permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (config.mean, config.std))
        handle = self.layer.register_forward_hook(watch)
        try:
            logits = self.network((pixels - mean) / std)
        finally:
            handle.remove()
        gradients = [
            torch.autograd.grad(logits[range(len(images)), torch.from_numpy(column)].sum(), seen[-1], retain_graph=True)[0]
            for column in class_ids.T
        ]
        return logits.detach(), seen[-1].detach(), torch.stack(gradients, 1)

    def gradcam(self, images: npt.NDArray[np.uint8], class_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Selvaraju et al. 2017: alpha_k = 1/Z sum_ij dy/dA_k,ij (eq. 1); relu(sum_k alpha_k A_k) (eq. 2)."""
        _, activations, gradients = self.observe(images, class_ids)
        alpha = gradients.sum((-2, -1)) / (activations.shape[-2] * activations.shape[-1])
        return torch.einsum("nkc,nchw->nkhw", alpha, activations).clamp(min=0).numpy()

    def cam(self, images: npt.NDArray[np.uint8], class_ids: npt.NDArray[np.int64], weight: Tensor) -> npt.NDArray[np.float64]:
        """Zhou et al. 2016, eq. 2: M_c(x, y) = sum_k w_k^c f_k(x, y)."""
        _, activations, _ = self.observe(images, class_ids)
        return torch.einsum("nkc,nchw->nkhw", weight.double()[torch.from_numpy(class_ids)], activations).numpy()


def relative_difference(values: npt.NDArray[np.float32], reference: npt.NDArray[np.float64]) -> float:
    """The largest difference over the reference's largest value, map by map; the worst of them.

    A rectified map may be all but zero; it is measured against a thousandth of the largest of all.
    """
    difference = np.abs(values - reference).max((-2, -1))
    largest = np.abs(reference).max((-2, -1))
    return float((difference / np.maximum(largest, largest.max() * 1e-3)).max())
