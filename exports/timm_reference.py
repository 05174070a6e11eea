"""Check of a network against timm's own model before export, when no maps have been added yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from tlcli.contract.errors import ParityError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.models.network import ImageNetwork, Network, NetworkConfig, WholeNetwork, try_at_size

TOLERANCE = 1e-5
"""Maximum difference of the logits relative to the largest logit. Both networks run the same operators in the same order."""


@dataclass(frozen=True)
class TimmReference:
    """Reference logits of timm's model for two fixed inputs, `[2, 3, H, W]`: a smooth image and noise."""

    inputs: Tensor
    logits: Any

    @classmethod
    def of(cls, backbone: nn.Module, config: NetworkConfig) -> TimmReference:
        """Run timm's model in eval mode and store its logits. The model's training mode is restored afterwards.

        Raises:
            SettingsError: the model does not accept images of the configured size.
        """
        inputs = _inputs(config.preprocessing)
        return cls(inputs, try_at_size(backbone, config, backbone, inputs))

    def require(self, network: ImageNetwork) -> None:
        """Check that a network's logits match the reference.

        Raises:
            ParityError: the network's logits differ from those of timm's model.
        """
        with torch.no_grad():
            logits: Tensor = network(self.inputs)
        if not isinstance(self.logits, Tensor) or logits.shape != self.logits.shape:
            raise ParityError(_refusal(network, "have another shape"))
        largest = float(self.logits.abs().max())
        difference = float((logits - self.logits).abs().max()) / largest if largest else float(logits.abs().max())
        if not difference <= TOLERANCE:
            raise ParityError(_refusal(network, f"differ by {difference:.2g} of the largest, more than {TOLERANCE:g}"))


def require_as_timm(network: ImageNetwork) -> None:
    """Check that a network's logits match those of the timm model that it wraps, provided that both use the same classifier.

    The network must be in eval mode on the CPU.

    Raises:
        ParityError: the network's logits differ from those of timm's model.
    """
    if isinstance(network, WholeNetwork) or cast("Network", network).has_own_head:
        TimmReference.of(network.backbone, network.config).require(network)


def _refusal(network: ImageNetwork, what: str) -> str:
    return (
        f"the network built of {network.config.backbone} differs from timm's own model of the same weights (its logits {what}):"
        " use another backbone, or --cam none"
    )


def _inputs(preprocessing: Preprocessing) -> Tensor:
    height, width = preprocessing.height, preprocessing.width
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None]
    waves = np.stack([np.sin(7 * rows + 2 * columns), np.sin(5 * columns - 3 * rows), np.sin(20 * rows * columns)], -1)
    smooth = np.rint(255 * (waves + 1) / 2).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mean, std = (np.array(values, dtype=np.float32) for values in (preprocessing.mean, preprocessing.std))
    return torch.from_numpy((np.stack([smooth, noise]).astype(np.float32) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
