"""Gradients of class scores with respect to the features, by PyTorch's autograd, and Grad-CAM made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from tlcli.training.models.network import Network


def feature_gradients(network: Network, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute logits, activations A, and the derivative of each class's logit y with respect to A.

    Grad-CAM and related methods are made of these (Selvaraju et al. 2017, arXiv:1610.02391, section 3: the score before
    the softmax). Images do not influence each other in eval mode, so one backward pass serves a whole batch.

    Args:
        network: in eval mode, of any floating-point type; its parameters and their gradients do not change.
        images: uint8 `[N, H, W, 3]`, on any device.
        classes: class indices, int64 `[N, K]`; K may be 0.

    Returns:
        logits `[N, C]`, activations `[N, c, h, w]` and gradients `[N, K, c, h, w]`, detached, on the network's device.
    """
    with torch.no_grad():
        activations = network.features(network.normalise(images.to(network.device)))
    with torch.enable_grad():
        activations = activations.detach().requires_grad_()
        logits = network.classify(network.embed(activations))
        scores = logits.gather(1, classes.to(logits.device)).sum(0)
        gradients = [torch.autograd.grad(score, activations, retain_graph=True)[0] for score in scores]
    stacked = torch.stack(gradients, 1) if gradients else activations.new_zeros(len(activations), 0, *activations.shape[1:])
    return logits.detach(), activations.detach(), stacked


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Compute Grad-CAM, `relu(sum_k mean(dy/dA_k) A_k)` (Selvaraju et al. 2017, eqs. 1 and 2).

    Args:
        activations: A, `[N, c, h, w]`.
        gradients: dy/dA, `[N, K, c, h, w]`.

    Returns:
        Maps `[N, K, h, w]`.
    """
    weights = gradients.mean((-2, -1))
    return torch.relu(torch.einsum("nkc,nchw->nkhw", weights, activations))
