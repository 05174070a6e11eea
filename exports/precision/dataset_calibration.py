"""Images of a run's data set to calibrate a file in reduced precision on, and to compare it with the float file on."""

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
    """Return a trial that is calibrated on images of the training part and compared on the validation part.

    Args:
        numbers: the requested precision.
        dataset: a run's.
        name: the data set's name for the record.
        preprocessing: the network's.

    Raises:
        DatasetError: an image to calibrate on cannot be read any more.
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
            f"{part.names[index]}: cannot be read any more, and reduced precision is tried on it: put it back ({error})"
        ) from error
