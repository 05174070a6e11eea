"""Reduced precision: settings, conversion, and the acceptance bounds for a converted file."""

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
from tlcli.exports.precision.fp16 import convert_to_fp16
from tlcli.exports.precision.int8 import quantise

CALIBRATION_IMAGES = 256
MAX_ACCURACY_DROP = 0.5
"""Maximum drop in accuracy on labelled images, in percentage points."""
MAX_CHANGED = 10.0
"""Maximum fraction of unlabelled images whose top-1 class changes, in percentage points. The float file's predictions take the place of
labels, so the bound is looser than `MAX_ACCURACY_DROP`: many of the predictions that change were wrong."""

MIN_MAP_CORRELATION = 0.9
"""Minimum mean rank correlation of each map with the float file's map. The lowest values measured in docs/smaller-numbers.md are 0.97 at
the last layer and 0.93 at a middle layer (HiRes-CAM)."""

_REMEDIES = {"fp16": "use fp32", "int8": "use more --calibration-images, or fp16 for a GPU"}


@dataclass(frozen=True)
class SmallerNumbers:
    """Settings for reduced precision.

    precision: number format of the forward pass.
    calibration_images: maximum number of images for int8 calibration.
    seed: seed for sampling the calibration images.
    max_accuracy_drop: maximum drop in accuracy in percentage points; None uses `MAX_ACCURACY_DROP` for labelled images and `MAX_CHANGED`
        for unlabelled ones.
    min_map_correlation: minimum mean rank correlation of each of the graph's maps with the float file's map; None uses
        `MIN_MAP_CORRELATION`.
    """

    precision: Literal["fp16", "int8"]
    calibration_images: int = CALIBRATION_IMAGES
    seed: int = 0
    max_accuracy_drop: float | None = None
    min_map_correlation: float | None = None


@dataclass(frozen=True)
class PrecisionTrial:
    """Conversion to reduced precision, with images for calibration and for the acceptance check.

    numbers: settings for reduced precision.
    compared: images for comparing the converted file with the float file.
    calibration: calibration inputs, uint8 `[H, W, 3]` each; empty for fp16.
    calibration_source: number and origin of the calibration inputs, recorded in the description.
    """

    numbers: SmallerNumbers
    compared: Images
    calibration: Sequence[npt.NDArray[np.uint8]] = ()
    calibration_source: str | None = None

    def rewrite(self, flat: ModelProto) -> None:
        """Convert a flat graph (`tlcli.exports.onnx_writer.flat_graph`) in place."""
        if self.numbers.precision == "fp16":
            convert_to_fp16(flat)
        else:
            quantise(flat, self.calibration)

    def require(self, agreement: Agreement) -> None:
        """Check that the converted file agrees closely enough with the float file.

        Raises:
            ParityError: the accuracy drops too far, a map's rank correlation is too low, or some logits are not finite.
        """
        remedy, flag = _REMEDIES[self.numbers.precision], f"--precision {self.numbers.precision}"
        where = f"{agreement.images:,} images ({agreement.source})"
        if agreement.finite < 1:
            raise ParityError(
                f"{flag}: no finite logits for {1 - agreement.finite:.1%} of {where}, values exceed the type's range: {remedy}"
            )
        if agreement.top1 is not None and agreement.top1_before is not None:
            drop, allowed = 100 * (agreement.top1_before - agreement.top1), MAX_ACCURACY_DROP
            measured = f"is right on {agreement.top1:.2%} of {where}, in fp32 on {agreement.top1_before:.2%}"
        else:
            drop, allowed = 100 * (1 - agreement.agreement), MAX_CHANGED
            measured = f"has the same first class as in fp32 for {agreement.agreement:.2%} of {where}"
        if self.numbers.max_accuracy_drop is not None:
            allowed = self.numbers.max_accuracy_drop
        if drop > allowed + 1e-9:
            raise ParityError(
                f"{flag}: the file {measured}, {drop:.2f} points less; at most {allowed:g} are allowed: {remedy}, or allow more with"
                " --max-accuracy-drop"
            )
        self._require_maps(agreement)

    def _require_maps(self, agreement: Agreement) -> None:
        least = MIN_MAP_CORRELATION if self.numbers.min_map_correlation is None else self.numbers.min_map_correlation
        measured = {name: maps for name, maps in agreement.maps.items() if maps.rank_correlation is not None}
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
            f" on {measured[name].images:,} images ({agreement.source}){others}; at least {least:g} is required:"
            f" {_REMEDIES[self.numbers.precision]}, or allow less with --min-map-correlation, or leave the map out with --cam"
        )
