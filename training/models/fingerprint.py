"""A run's network, recognised by its logits for a fixed input: a network that is read back is the one that was trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tlcli.contract.errors import WeightsError
from tlcli.training.models.network import Network

TOLERANCE = 1e-3
"""Relative to the largest logit. Other processors and versions of PyTorch round otherwise, by 1e-5 or less; another epsilon in the batch
norms of `fbnetc_100` changes its logits by 2e-2."""
_LOGITS = 16


def output_of(network: Network) -> tuple[float, ...]:
    """Return the first 16 logits for a fixed image of noise, computed in eval mode on the CPU; the network is not changed."""
    still = copy.deepcopy(network).cpu().float().eval()
    size = still.config.preprocessing
    image = np.random.default_rng(0).integers(0, 256, (1, size.height, size.width, 3), dtype=np.uint8)
    return tuple(still.predict(image)[0, :_LOGITS].tolist())


def require_output_of(network: Network, recorded: Sequence[float], path: Path) -> None:
    """Compare a network that was read back with what it returned when its training ended.

    Args:
        network: with the run's weights.
        recorded: from `output_of`.
        path: the run's folder, for the message.

    Raises:
        WeightsError: the logits differ.
    """
    logits, expected = torch.tensor(output_of(network)), torch.tensor(recorded)
    largest = float(expected.abs().max())
    difference = float((logits - expected).abs().max()) / largest if logits.shape == expected.shape and largest else float("inf")
    if logits.shape == expected.shape and torch.equal(logits, expected):
        return
    if not difference <= TOLERANCE:
        raise WeightsError(
            f"{path}: the network that was read back is not the one that was trained: its logits for a fixed input differ by"
            f" {difference:.2g} of the largest, at most {TOLERANCE:g} is allowed:"
            " use the version of timm in its config.json, or fine-tune again"
        )
