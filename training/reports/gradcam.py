"""Grad-CAM, and the gradients of class scores with respect to a layer's map, computed with PyTorch's autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from tlcli.training.models.network import Network
from tlcli.training.models.target_layers import TargetLayer, run_tapped


def layer_gradients(network: Network, layer: TargetLayer, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute logits, a layer's activations A, and the gradient of each selected class logit y with respect to A.

    Grad-CAM and related methods are computed from these (Selvaraju et al. 2017, arXiv:1610.02391, section 3, which uses the score before
    the softmax). In eval mode, images do not influence each other, so one backward pass per class serves an entire batch.

    Args:
        network: network in eval mode, of any floating-point type; its parameters and their gradients do not change.
        layer: layer of the network; see `tlcli.training.models.target_layers.resolve_layers`.
        images: input images, uint8 `[N, H, W, 3]`, on any device.
        classes: class indices, int64 `[N, K]`; K may be 0.

    Returns:
        Logits `[N, C]`, activations `[N, c, h, w]` and gradients `[N, K, c, h, w]`, detached and on the network's device.
    """
    seen: list[Tensor] = []

    def watch(_: str, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[0] * 1  # later layers may work in place

    with torch.enable_grad():
        logits = run_tapped(network, network.normalise(images.to(network.device)), [layer], watch)
        (activations,) = seen
        scores = logits.gather(1, classes.to(logits.device)).sum(0)
        gradients = [torch.autograd.grad(score, activations, retain_graph=True)[0] for score in scores]
    stacked = torch.stack(gradients, 1) if gradients else activations.new_zeros(len(activations), 0, *activations.shape[1:])
    return logits.detach(), activations.detach(), stacked


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Compute Grad-CAM maps, `relu(sum_k mean(dy/dA_k) A_k)` (Selvaraju et al. 2017, eqs. 1 and 2).

    Args:
        activations: activations A, `[N, c, h, w]`.
        gradients: gradients dy/dA, `[N, K, c, h, w]`.

    Returns:
        Grad-CAM maps, `[N, K, h, w]`.
    """
    weights = gradients.mean((-2, -1))
    return torch.relu(torch.einsum("nkc,nchw->nkhw", weights, activations))
