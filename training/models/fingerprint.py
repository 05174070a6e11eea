"""Fingerprint of a network: its logits for a fixed input, compared when a run is loaded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tlcli.contract.errors import WeightsError
from tlcli.training.models.network import Network

TOLERANCE = 1e-3
"""Tolerance, relative to the largest logit. Rounding differs between processors and versions of PyTorch by 1e-5 or less; a different
epsilon in the batch norms of `fbnetc_100` changes its logits by 2e-2."""
_LOGITS = 16


def output_of(network: Network) -> tuple[float, ...]:
    """Return the first 16 logits for a fixed noise image, computed by a copy of the network in eval mode on the CPU."""
    frozen = copy.deepcopy(network).cpu().float().eval()
    size = frozen.config.preprocessing
    image = np.random.default_rng(0).integers(0, 256, (1, size.height, size.width, 3), dtype=np.uint8)
    return tuple(frozen.predict(image)[0, :_LOGITS].tolist())


def require_output_of(network: Network, recorded: Sequence[float], path: Path) -> None:
    """Check that a loaded network returns the logits recorded at the end of its training.

    Args:
        network: the network, with the run's weights.
        recorded: logits returned by `output_of` at the end of the training.
        path: the run's folder, for the message.

    Raises:
        WeightsError: the logits differ by more than `TOLERANCE`.
    """
    logits, expected = torch.tensor(output_of(network)), torch.tensor(recorded)
    largest = float(expected.abs().max())
    difference = float((logits - expected).abs().max()) / largest if logits.shape == expected.shape and largest else float("inf")
    if logits.shape == expected.shape and torch.equal(logits, expected):
        return
    if not difference <= TOLERANCE:
        raise WeightsError(
            f"{path}: the loaded network differs from the trained one: its logits for a fixed input differ by"
            f" {difference:.2g} of the largest, more than the allowed {TOLERANCE:g}:"
            " install the version of timm named in its config.json, or fine-tune again"
        )
