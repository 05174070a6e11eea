"""Selection of images from files and folders, for int8 calibration and for comparing a reduced-precision file with the float file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlcli.contract.images import decoding
from tlcli.contract.images.evenly_spaced import evenly_spaced
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.evaluation.agreement import Images, Shown
from tlcli.exports.precision.convert import PrecisionTrial, SmallerNumbers

MOST_COMPARED = 1000
"""Maximum number of unlabelled images for the comparison."""
_FEWEST_LEFT = 16
"""Minimum number of images left after calibration. With fewer, the comparison uses all images, including those used for calibration."""


def trial_on_images(
    numbers: SmallerNumbers, paths: Sequence[Path], calibration_paths: Sequence[Path], check_inputs: Images, preprocessing: Preprocessing
) -> PrecisionTrial:
    """Create a trial from unlabelled images.

    Args:
        numbers: settings for reduced precision.
        paths: files and folders of images for the comparison; if empty, the images that calibration does not use.
        calibration_paths: files and folders of images for calibration; empty for fp16.
        check_inputs: inputs for the comparison if both `paths` and `calibration_paths` are empty.
        preprocessing: preprocessing of the network.

    Raises:
        NotFoundError, ImageError: see `tlcli.contract.images.decoding.find` and `read`.
    """

    def input_of(path: Path) -> npt.NDArray[np.uint8]:
        return preprocessing.apply(decoding.read(path))

    candidates = decoding.find(calibration_paths)
    chosen = set(calibration_indices(len(candidates), numbers))
    left = [path for index, path in enumerate(candidates) if index not in chosen]
    files = decoding.find(paths) or (left if len(left) >= _FEWEST_LEFT else candidates)
    files = [files[index] for index in evenly_spaced(len(files), MOST_COMPARED)]
    source = ", ".join(path.name for path in paths or calibration_paths)
    compared = Images(len(files), source, lambda index: Shown(input_of(files[index]))) if files else check_inputs
    if numbers.precision == "fp16":
        return PrecisionTrial(numbers, compared)
    calibration = [input_of(candidates[index]) for index in sorted(chosen)]
    calibration_source = f"{len(chosen):,} images of {', '.join(path.name for path in calibration_paths)}"
    return PrecisionTrial(numbers, compared, calibration, calibration_source)


def calibration_indices(available: int, numbers: SmallerNumbers) -> list[int]:
    """Sample the indices of the calibration images. The same seed gives the same indices."""
    return [int(index) for index in np.random.default_rng(numbers.seed).permutation(available)[: numbers.calibration_images]]
