"""Export of a published backbone with its original classifier.

The code for training and data sets is not imported, except to draw synthetic check images when none are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import SettingsError
from tlcli.contract.images import decoding
from tlcli.contract.images.evenly_spaced import evenly_spaced
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.description import Plain
from tlcli.evaluation.agreement import Images, Shown
from tlcli.exports.exporter import export
from tlcli.exports.precision.calibration_data import trial_on_images
from tlcli.exports.precision.convert import SmallerNumbers
from tlcli.exports.provenance import new_provenance
from tlcli.exports.publication import DEFAULT_CHECK_IMAGES, Exported, Say
from tlcli.exports.published_backbone import imagenet_labels, published_network
from tlcli.training.models.backbone_names import built_for_size, with_timms_name
from tlcli.training.settings.config import FinetuneConfig


def export_backbone(
    config: FinetuneConfig,
    *,
    name: str,
    repository: Path,
    labels: Sequence[str] | None = None,
    image_paths: Sequence[Path] = (),
    methods: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    dynamic_size: bool = False,
    temperature: float = 1.0,
    numbers: SmallerNumbers | None = None,
    plain: Plain | None = None,
    calibration_paths: Sequence[Path] = (),
    check_images: int = DEFAULT_CHECK_IMAGES,
    say: Say = lambda _: None,
) -> Exported:
    """Export a published backbone with its original classifier, without a training run.

    Args:
        config: fine-tuning settings, of which the backbone, weights, model arguments and preprocessing are used.
        name: name of the model.
        repository: model repository folder.
        labels: class names; None uses ImageNet's names for 1000 classes, and `class_0`, `class_1`, ... otherwise.
        image_paths: files and folders of images for the parity check; if empty, the check uses synthetic images of drawn shapes.
        methods, layers, dynamic_size, temperature, plain: see `tlcli.exports.exporter.export`.
        numbers: settings for reduced precision. The reduced-precision file is compared with the float file on `image_paths` or, if that
            is empty, on the images of `calibration_paths` that are not used for calibration.
        calibration_paths: files and folders of images for int8 calibration.
        check_images: maximum number of images for the parity check.
        say: callback that receives one progress line per step.

    Raises:
        WeightsError, HubError: see `tlcli.training.models.weights.load_backbone`.
        SettingsError: the weights contain no classifier, the backbone does not support the requested maps, the number of labels is wrong,
            int8 is requested without calibration images, or calibration images are given without int8.
        Others: see `tlcli.exports.exporter.export`.
    """
    _require_calibration(numbers, calibration_paths)
    config = built_for_size(with_timms_name(config, say), say)
    network = published_network(config)
    preprocessing, classes = network.config.preprocessing, network.config.num_classes
    if labels is None:
        labels = imagenet_labels() if classes == 1000 else [f"class_{index}" for index in range(classes)]
    if len(labels) != classes:
        raise SettingsError(
            f"--labels: {len(labels)} labels, but the classifier of {config.backbone} has {classes} classes: give a label for each"
        )
    if image_paths:
        files = decoding.find(image_paths)
        images = [preprocessing.apply(decoding.read(files[index])) for index in evenly_spaced(len(files), check_images)]
        source = ", ".join(map(str, image_paths))
    else:
        images, source = _drawn_images(preprocessing, check_images, config.seed), "drawn shapes"
    trial = None
    if numbers is not None:
        check_inputs = Images(len(images), source, lambda index: Shown(images[index]))
        trial = trial_on_images(numbers, image_paths, calibration_paths, check_inputs, preprocessing)
    return export(
        network,
        name=name,
        labels=labels,
        repository=repository,
        images=images,
        source=source,
        provenance=new_provenance(network.config, config.weights),
        methods=methods,
        layers=layers,
        dynamic_size=dynamic_size,
        temperature=temperature,
        trial=trial,
        plain=plain,
        say=say,
    )


def _require_calibration(numbers: SmallerNumbers | None, paths: Sequence[Path]) -> None:
    calibrated = numbers is not None and numbers.precision == "int8"
    if calibrated and not paths:
        raise SettingsError(
            "--precision int8 needs a few hundred images like those that the model will see: give them with --calibration FOLDER"
        )
    if paths and not calibrated:
        raise SettingsError("--calibration applies only to --precision int8: add that, or leave --calibration out")


def _drawn_images(preprocessing: Preprocessing, count: int, seed: int) -> list[npt.NDArray[np.uint8]]:
    from tlcli.training.data.drawing.draw_shape import draw

    size = max(preprocessing.height, preprocessing.width)
    return [preprocessing.apply(draw(index, seed, size=size).image) for index in range(count)]
