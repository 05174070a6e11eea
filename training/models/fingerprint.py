"""Fingerprint of a network: logits for a fixed input, which are verified when a run is loaded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tlcli.contract.errors import WeightsError
from tlcli.training.models.network import Network

TOLERANCE = 1e-3
"""Tolerance relative to the largest logit. Rounding differs by 1e-5 or less between processors and PyTorch versions, whereas a different
batch norm epsilon in `fbnetc_100` changes its logits by 2e-2."""
_LOGITS = 16


def output_of(network: Network) -> tuple[float, ...]:
    """Return the first 16 logits for a fixed noise image, computed on the CPU by a copy of the network in eval mode."""
    frozen = copy.deepcopy(network).cpu().float().eval()
    size = frozen.config.preprocessing
    image = np.random.default_rng(0).integers(0, 256, (1, size.height, size.width, 3), dtype=np.uint8)
    return tuple(frozen.predict(image)[0, :_LOGITS].tolist())


def require_output_of(network: Network, recorded: Sequence[float], path: Path) -> None:
    """Check that a loaded network reproduces the logits recorded at the end of training.

    Args:
        network: network with the weights of the run.
        recorded: logits returned by `output_of` at the end of training.
        path: run folder, for the error message.

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
            f"{path}: the loaded network is not the trained one (relative difference of the logits for a fixed input {difference:.2g},"
            f" tolerance {TOLERANCE:g}): install the version of timm named in its config.json, or fine-tune again"
        )
