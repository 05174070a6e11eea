"""A file in smaller numbers: what is asked of it, how it is made, and when it is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from tlcli.contract.errors import ParityError
from tlcli.contract.model.description import Agreement
from tlcli.evaluation.agreement import Images
from tlcli.exports.precision.fp16 import halve
from tlcli.exports.precision.int8 import quantise

CALIBRATION_IMAGES = 256
MAX_ACCURACY_DROP = 0.5
"""Percentage points of the labelled images."""
MAX_CHANGED = 10.0
"""Percentage points of images without labels, where the float file's answers stand for them: of those that change many were wrong."""

MIN_MAP_CORRELATION = 0.9
"""Mean rank correlation of each map with the float file's. Of the files measured in docs/smaller-numbers.md, the lowest is 0.97 at the last
layer, and 0.93 at a layer in the middle (HiRes-CAM)."""

_WAYS_OUT = {"fp16": "leave it in fp32", "int8": "try more --calibration-images, or fp16 for a GPU"}


@dataclass(frozen=True)
class SmallerNumbers:
    """What is asked for.

    calibration_images: how many images int8 takes its ranges from.
    seed: which ones.
    max_accuracy_drop: in percentage points, what the file may lose; None for the defaults above.
    min_map_correlation: the least mean rank correlation of each map of the graph with the float file's; None for the default above.
    """

    precision: Literal["fp16", "int8"]
    calibration_images: int = CALIBRATION_IMAGES
    seed: int = 0
    max_accuracy_drop: float | None = None
    min_map_correlation: float | None = None


@dataclass(frozen=True)
class Trial:
    """A file in smaller numbers, and what it is tried on.

    compared: what both files are asked about.
    calibration: inputs to calibrate on, uint8 `[H, W, 3]` each; none for fp16.
    calibration_source: how many and what they are, for the record.
    """

    numbers: SmallerNumbers
    compared: Images
    calibration: Sequence[npt.NDArray[np.uint8]] = ()
    calibration_source: str | None = None

    def rewrite(self, flat: ModelProto) -> None:
        """Let a flat graph (`tlcli.exports.onnx_writer.flat_graph`) compute in these numbers; rewritten in place."""
        if self.numbers.precision == "fp16":
            halve(flat)
        else:
            quantise(flat, self.calibration)

    def require(self, found: Agreement) -> None:
        """Raises: ParityError: the file loses more than it may; the message tells both figures and the way out."""
        way_out, what = _WAYS_OUT[self.numbers.precision], f"--precision {self.numbers.precision}"
        where = f"{found.images:,} images ({found.source})"
        if found.finite < 1:
            raise ParityError(f"{what}: {1 - found.finite:.1%} of {where} have no logits, since values pass what the type holds: {way_out}")
        if found.top1 is not None and found.top1_before is not None:
            drop, allowed = 100 * (found.top1_before - found.top1), MAX_ACCURACY_DROP
            told = f"is right on {found.top1:.2%} of {where}, in fp32 on {found.top1_before:.2%}"
        else:
            drop, allowed = 100 * (1 - found.agreement), MAX_CHANGED
            told = f"has the same first class as in fp32 for {found.agreement:.2%} of {where}"
        if self.numbers.max_accuracy_drop is not None:
            allowed = self.numbers.max_accuracy_drop
        if drop > allowed + 1e-9:
            raise ParityError(
                f"{what}: the file {told}, {drop:.2f} points less; at most {allowed:g} are allowed: {way_out}, or allow more with"
                " --max-accuracy-drop"
            )
        self._require_maps(found)

    def _require_maps(self, found: Agreement) -> None:
        least = MIN_MAP_CORRELATION if self.numbers.min_map_correlation is None else self.numbers.min_map_correlation
        measured = {name: maps for name, maps in found.maps.items() if maps.rank_correlation is not None}
        below = sorted(
            (
                (maps.rank_correlation, name)
                for name, maps in measured.items()
                if maps.rank_correlation is not None and maps.rank_correlation < least
            )
        )
        if not below:
            return
        correlation, name = below[0]
        others = f" ({len(below) - 1} more of {len(measured)} maps are below the bound)" if len(below) > 1 else ""
        raise ParityError(
            f"--precision {self.numbers.precision}: the map {name} has a mean rank correlation of {correlation:.3f} with its map in fp32,"
            f" on {measured[name].images:,} images ({found.source}){others}; at least {least:g} is required:"
            f" {_WAYS_OUT[self.numbers.precision]}, or allow less with --min-map-correlation, or leave the map out with --cam"
        )
