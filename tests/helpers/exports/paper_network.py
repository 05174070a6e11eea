"""Network so small that its maps can be computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.models.network import Network, NetworkConfig


class Toy(nn.Module):
    """Network whose `layer` returns an image's red minus one, and its green; then come `behind`, the spatial mean and a linear head."""

    pretrained_cfg: dict[str, Any] = {"input_size": (3, 2, 2)}  # noqa: RUF012
    num_features = 2

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 2, 1)
        self.behind = behind
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[255.0, 0, 0], [0, 255, 0]]).view(2, 3, 1, 1))
            self.layer.bias.copy_(torch.tensor([-1.0, 0]))

    def forward_features(self, inputs: Tensor) -> Tensor:
        return self.behind(self.layer(inputs))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = features.mean((-2, -1))
        return pooled if pre_logits else self.fc(pooled)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(inputs))

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.fc = nn.Linear(2, num_classes)


def toy(weight: list[list[float]], bias: list[float], *, behind: nn.Module | None = None, size: tuple[int, int] = (2, 2)) -> Network:
    preprocessing = Preprocessing(height=size[0], width=size[1], mean=(0, 0, 0), std=(1, 1, 1))
    config = NetworkConfig(backbone="toy", head="linear", num_classes=len(weight), preprocessing=preprocessing)
    network = Network(config, Toy(behind or nn.Identity()))
    with torch.no_grad():
        network.classifier.weight.copy_(torch.tensor(weight))  # type: ignore[operator,union-attr]
        network.classifier.bias.copy_(torch.tensor(bias))  # type: ignore[operator,union-attr]
    return network


def make_image(first: list[list[int]], second: list[list[int]]) -> npt.NDArray[np.uint8]:
    """Return the image for which the toy's `layer` returns these two channels."""
    return np.stack([np.array(first) + 1, np.array(second), np.zeros_like(second)], -1)[None].astype(np.uint8)


WEIGHT, BIAS = [[2.0, -1.0], [-1.0, 3.0], [-1.0, 0.0], [0.0, 0.0]], [0.5, 0.0, 0.0, 0.0]
A0, A1 = np.array([[4.0, -1], [0, 1]]), np.array([[1.0, 2], [3, 2]])
"""Means 1 and 2, so the logits are 1/2, 5, -1 and 0; the gradient of class c with respect to A_k is `WEIGHT[c][k] / 4` everywhere."""

BY_HAND: dict[str, list[npt.NDArray[np.float64]]] = {
    "cam": [2 * A0 - A1, 3 * A1 - A0, -A0, 0 * A0],
    "gradcam": [np.array(rows) for rows in ([[1.75, 0], [0, 0]], [[0, 1.75], [2.25, 1.25]], [[0, 0.25], [0, 0]], [[0, 0], [0, 0]])],
    # alpha = 1 / (2 + S g), S = 4 and 8: class 0, g = (1/2, -1/4): 1/4, w = (4 x 1/4 x 1/2, 0); class 1, g = (-1/4, 3/4): w = (0, 3/8)
    "gradcam_plus_plus": [np.maximum(A0 / 2, 0), A1 * 3 / 8, 0 * A0, 0 * A0],
    "gradcam_elementwise": [np.maximum(A0 / 2, 0), np.array([[0.75, 1.75], [2.25, 1.5]]), np.maximum(-A0 / 4, 0), 0 * A0],
    "layercam": [np.maximum(A0 / 2, 0), A1 * 3 / 4, 0 * A0, 0 * A0],
    # class 0: y = 1/2, without a channel -3/2 and 5/2, w = (4, -4); class 1: y = 5, 6 and -1, w = (-1/5, 6/5); class 2: y = -1, 0 and -1
    "ablationcam": [np.maximum(4 * A0 - 4 * A1, 0), 1.2 * A1 - 0.2 * A0, np.maximum(-A0, 0), 0 * A0],
    "fem": [0 * A0] * 4,  # one of four positions is never two sigma above the mean
}
BY_HAND["xgradcam"] = BY_HAND["hirescam"] = BY_HAND["gradcam"]  # gradients are the same at every position
