"""The images that a file in smaller numbers takes its ranges from, and those it is compared with the float file on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.errors import DatasetError, ImageError
from tlcli.contract.images import decoding
from tlcli.contract.images.evenly_spaced import evenly_spaced
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.evaluation.agreement import Images, Shown
from tlcli.evaluation.ground_truth import Truth
from tlcli.exports.precision.convert import SmallerNumbers, Trial
from tlcli.training.data.dataset import Dataset, Part
from tlcli.training.data.folder_source import FolderSource

MOST_COMPARED = 1000
"""Images without labels."""
_FEWEST_LEFT = 16
"""Where fewer are left over by the calibration, all are compared."""


def trial_on_dataset(numbers: SmallerNumbers, dataset: Dataset, name: str, preprocessing: Preprocessing) -> Trial:
    """Calibrated on images of the training part, compared on the validation part.

    Args:
        numbers: what is asked for.
        dataset: a run's.
        name: what the record calls it.
        preprocessing: the network's.

    Raises:
        DatasetError: an image to calibrate on cannot be read any more.
    """
    val = dataset.val
    truth = Truth.find(val.source.root) if isinstance(val.source, FolderSource) else None

    def show(number: int) -> Shown:
        image = _read(val, number)
        region = None if truth is None else truth.region(val.names[number], image.size, preprocessing)
        return Shown(preprocessing.apply(image), int(val.labels[number]), region)

    compared = Images(len(val), f"{name}, validation part", show)
    if numbers.precision == "fp16":
        return Trial(numbers, compared)
    chosen = _drawn(len(dataset.train), numbers)
    calibration = [preprocessing.apply(_read(dataset.train, number)) for number in chosen]
    return Trial(numbers, compared, calibration, f"{len(chosen):,} images of {name}, training part")


def trial_on_images(
    numbers: SmallerNumbers, paths: Sequence[Path], calibration_paths: Sequence[Path], otherwise: Images, preprocessing: Preprocessing
) -> Trial:
    """With images whose classes nobody knows.

    Args:
        numbers: what is asked for.
        paths: files and folders to compare on; none: what the calibration leaves over.
        calibration_paths: files and folders to calibrate on; none for fp16.
        otherwise: what to compare on where there are neither.
        preprocessing: the network's.

    Raises:
        NotFoundError, ImageError: see `tlcli.contract.images.decoding.find` and `read`.
    """

    def input_of(path: Path) -> npt.NDArray[np.uint8]:
        return preprocessing.apply(decoding.read(path))

    there = decoding.find(calibration_paths)
    chosen = set(_drawn(len(there), numbers))
    left = [path for number, path in enumerate(there) if number not in chosen]
    found = decoding.find(paths) or (left if len(left) >= _FEWEST_LEFT else there)
    found = [found[number] for number in evenly_spaced(len(found), MOST_COMPARED)]
    source = ", ".join(path.name for path in paths or calibration_paths)
    compared = Images(len(found), source, lambda number: Shown(input_of(found[number]))) if found else otherwise
    if numbers.precision == "fp16":
        return Trial(numbers, compared)
    calibration = [input_of(there[number]) for number in sorted(chosen)]
    return Trial(numbers, compared, calibration, f"{len(chosen):,} images of {', '.join(path.name for path in calibration_paths)}")


def _drawn(available: int, numbers: SmallerNumbers) -> list[int]:
    """The indices of images to calibrate on: the same each time."""
    return [int(index) for index in np.random.default_rng(numbers.seed).permutation(available)[: numbers.calibration_images]]


def _read(part: Part, number: int) -> Image.Image:
    try:
        return part.load(number)
    except (ImageError, OSError) as error:
        raise DatasetError(f"{part.names[number]}: cannot be read any more, but smaller numbers are tried on it: {error}") from error
