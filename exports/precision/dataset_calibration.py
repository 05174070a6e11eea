"""Selection of images from a run's data set, for int8 calibration and for comparing a reduced-precision file with the float file."""

from __future__ import annotations

from PIL import Image

from tlcli.contract.errors import DatasetError, ImageError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.evaluation.agreement import Images, Shown
from tlcli.evaluation.ground_truth import Truth
from tlcli.exports.precision.calibration_data import calibration_indices
from tlcli.exports.precision.convert import PrecisionTrial, SmallerNumbers
from tlcli.training.data.dataset import Dataset, Part
from tlcli.training.data.folder_source import FolderSource


def trial_on_dataset(numbers: SmallerNumbers, dataset: Dataset, name: str, preprocessing: Preprocessing) -> PrecisionTrial:
    """Create a trial that calibrates on the training split and compares on the validation split.

    Args:
        numbers: settings for reduced precision.
        dataset: data set of the run.
        name: name of the data set, recorded in the description.
        preprocessing: preprocessing of the network.

    Raises:
        DatasetError: a calibration image can no longer be read.
    """
    val = dataset.val
    truth = Truth.find(val.source.root) if isinstance(val.source, FolderSource) else None

    def show(index: int) -> Shown:
        image = _read(val, index)
        region = None if truth is None else truth.region(val.names[index], image.size, preprocessing)
        return Shown(preprocessing.apply(image), int(val.labels[index]), region)

    compared = Images(len(val), f"{name}, validation part", show)
    if numbers.precision == "fp16":
        return PrecisionTrial(numbers, compared)
    chosen = calibration_indices(len(dataset.train), numbers)
    calibration = [preprocessing.apply(_read(dataset.train, index)) for index in chosen]
    return PrecisionTrial(numbers, compared, calibration, f"{len(chosen):,} images of {name}, training part")


def _read(part: Part, index: int) -> Image.Image:
    try:
        return part.load(index)
    except (ImageError, OSError) as error:
        raise DatasetError(
            f"{part.names[index]}: can no longer be read, but is needed to calibrate or validate reduced precision: restore it ({error})"
        ) from error
