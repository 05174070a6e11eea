"""What is exported: a finished run, or a backbone as its makers left it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tlcli.contract.errors import DatasetError, ImageError, SettingsError
from tlcli.contract.images import decoding
from tlcli.contract.images.evenly_spaced import evenly_spaced
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.description import Provenance
from tlcli.evaluation.agreement import Images, Shown
from tlcli.exports.exporter import Exported, Say, export
from tlcli.exports.fold_temperature import Temperature, expected_error, logits_of, require_temperature
from tlcli.exports.precision.calibration_data import trial_on_dataset, trial_on_images
from tlcli.exports.precision.convert import SmallerNumbers
from tlcli.exports.timm_reference import TimmReference
from tlcli.training.data.dataset import Part
from tlcli.training.data.shapes import draw
from tlcli.training.metrics.temperature_scaling import fit_temperature
from tlcli.training.models.backbone_names import with_timms_name
from tlcli.training.models.network import CutError, ImageNetwork, Network, NetworkConfig, WholeNetwork
from tlcli.training.models.pretrained_preprocessing import resolve_preprocessing
from tlcli.training.models.weights import load_backbone
from tlcli.training.reports.model_card import write_model_card
from tlcli.training.runs.load_run import Run
from tlcli.training.runs.run_folder import now
from tlcli.training.runtime.progress import ProgressFactory, silent
from tlcli.training.settings.config import FinetuneConfig

DEFAULT_CHECK_IMAGES = 16


def export_run(
    run: Run,
    *,
    name: str,
    repository: Path,
    methods: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    dynamic_size: bool = False,
    temperature: Temperature = 1.0,
    numbers: SmallerNumbers | None = None,
    check_images: int = DEFAULT_CHECK_IMAGES,
    progress: ProgressFactory = silent,
    say: Say = lambda _: None,
) -> Exported:
    """Export a finished run's best network, checked on images of its validation part.

    Args:
        run: see `tlcli.training.runs.load_run.load_run`.
        name: the model's.
        repository: the folder of models.
        methods, layers, dynamic_size: see `tlcli.exports.exporter.export`.
        temperature: what the logits are divided by; `fit` finds it on the validation part.
        numbers: smaller than float32; calibrated on images of the training part, and compared with the float file on the validation part.
        check_images: how many to check the file on.
        progress: told of what lasts.
        say: is told each step, and of a temperature what it does to the scores.

    Raises:
        DatasetError: the run's images cannot be read any more.
        Others: see `tlcli.exports.exporter.export`.
    """
    require_temperature(temperature)
    dataset = run.dataset()
    spec = Path(dataset.spec).name if Path(dataset.spec).is_absolute() else dataset.spec  # where it lies is nobody's business
    images = []
    for index in evenly_spaced(len(dataset.val), check_images):
        try:
            images.append(run.network.config.preprocessing.apply(dataset.val.load(index)))
        except (ImageError, OSError) as error:
            raise DatasetError(f"{dataset.val.names[index]}: cannot be read any more, but the export is checked on it: {error}") from error
    if temperature != 1:
        temperature = _settle(temperature, run, dataset.val, progress, say)
    exported = export(
        run.network,
        name=name,
        labels=run.classes,
        repository=repository,
        images=images,
        source=f"{spec}, validation part",
        provenance=Provenance(
            created=now(),
            versions=_versions(),
            backbone=run.network.config.backbone,
            head=run.network.config.head,
            weights=Path(run.config.weights).name,
            run=run.path.name,
            dataset=spec,
            dataset_fingerprint=dataset.fingerprint,
            metrics=run.metrics,
        ),
        methods=methods,
        layers=layers,
        dynamic_size=dynamic_size,
        temperature=temperature,
        trial=None if numbers is None else trial_on_dataset(numbers, dataset, spec, run.network.config.preprocessing),
        say=say,
    )
    write_model_card(exported.path.parents[1], run, exported.description)
    return exported


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
    calibration_paths: Sequence[Path] = (),
    check_images: int = DEFAULT_CHECK_IMAGES,
    say: Say = lambda _: None,
) -> Exported:
    """Export a backbone with the classifier it was published with: no run is needed.

    Args:
        config: its backbone, weights, model arguments and preprocessing count.
        name: the model's.
        repository: the folder of models.
        labels: the classes' names; None takes ImageNet's where there are 1000, else `class_0`, ...
        image_paths: files and folders to check on; none: images that the project draws.
        methods, layers, dynamic_size, temperature, check_images, say: see `export_run`; there is nothing to fit a temperature on.
        numbers: smaller than float32; compared with the float file on the images to check on, and where there are none on those of
            `calibration_paths` that were left over.
        calibration_paths: files and folders to calibrate int8 on.

    Raises:
        WeightsError, HubError: see `tlcli.training.models.weights.load_backbone`.
        SettingsError: the weights hold no classifier, maps are requested of a backbone that cannot have them, or int8 came without
            images to calibrate on.
        Others: see `tlcli.exports.exporter.export`.
    """
    _check_calibration(numbers, calibration_paths)
    config = with_timms_name(config, say)
    network = published_network(config) if methods is None or methods else published_as_it_is(config)
    preprocessing, classes = network.config.preprocessing, network.config.num_classes
    if labels is None:
        labels = imagenet_labels() if classes == 1000 else [f"class_{number}" for number in range(classes)]
    if len(labels) != classes:
        raise SettingsError(
            f"--labels: {len(labels)} labels, but the classifier of {config.backbone} has {classes} classes: give a label for each"
        )
    if image_paths:
        found = decoding.find(image_paths)
        images = [preprocessing.apply(decoding.read(found[index])) for index in evenly_spaced(len(found), check_images)]
        source = ", ".join(map(str, image_paths))
    else:
        images, source = _drawn(preprocessing, check_images, config.seed), "drawn shapes"
    trial = None
    if numbers is not None:
        otherwise = Images(len(images), source, lambda number: Shown(images[number]))
        trial = trial_on_images(numbers, image_paths, calibration_paths, otherwise, preprocessing)
    return export(
        network,
        name=name,
        labels=labels,
        repository=repository,
        images=images,
        source=source,
        provenance=Provenance(
            created=now(), versions=_versions(), backbone=config.backbone, head="original", weights=Path(config.weights).name
        ),
        methods=methods,
        layers=layers,
        dynamic_size=dynamic_size,
        temperature=temperature,
        trial=trial,
        say=say,
    )


def _check_calibration(numbers: SmallerNumbers | None, paths: Sequence[Path]) -> None:
    calibrated = numbers is not None and numbers.precision == "int8"
    if calibrated and not paths:
        raise SettingsError(
            "--precision int8 takes its ranges from images such as the model will see: give a few hundred with --calibration FOLDER"
        )
    if paths and not calibrated:
        raise SettingsError("--calibration: nothing but --precision int8 is calibrated: add it, or leave the images out")


def _settle(temperature: Temperature, run: Run, val: Part, progress: ProgressFactory, say: Say) -> float:
    """The temperature as a number; says what it does to the scores on the validation part."""
    logits, labels = logits_of(run, val, progress), torch.from_numpy(val.labels)
    how = "as given"
    if temperature == "fit":
        temperature, how = fit_temperature(logits, labels), f"fitted on {len(val):,} validation images"
    before, after = expected_error(logits, labels), expected_error(logits / temperature, labels)
    say(f"temperature {temperature:.4g}, {how}: their expected calibration error is {after:.2%} with it, {before:.2%} without")
    return temperature


def published_network(config: FinetuneConfig) -> Network:
    """Build a backbone with the classifier it was published with, in eval mode, and compare it with timm's own model.

    Args:
        config: its backbone, weights, model arguments and preprocessing count.

    Raises:
        WeightsError, HubError: see `tlcli.training.models.weights.load_backbone`.
        SettingsError: the weights hold no classifier.
        CutError: the network cannot be cut into features and a head.
        ParityError: the network's logits differ from those of timm's model.
    """
    backbone, described = _load_published(config)
    reference = TimmReference.of(backbone, described)
    network = Network(described, backbone, keep_classifier=True).eval()
    reference.require(network)
    return network


def published_as_it_is(config: FinetuneConfig) -> ImageNetwork:
    """Likewise, for an export without maps: a network that cannot be cut is run as timm runs it."""
    backbone, described = _load_published(config)
    reference = TimmReference.of(backbone, described)
    try:
        network: ImageNetwork = Network(described, backbone, keep_classifier=True)
    except CutError:
        network = WholeNetwork(described, backbone)
    reference.require(network.eval())
    return network


def _load_published(config: FinetuneConfig) -> tuple[nn.Module, NetworkConfig]:
    config = with_timms_name(config)
    backbone, _ = load_backbone(config.model_copy(update={"head": "original"}))
    classes = int(getattr(backbone, "num_classes", 0))
    if classes < 2:
        raise SettingsError(
            f"{config.weights}: the weights hold no classifier, so there are no scores to serve: fine-tune first (tlcli finetune)"
        )
    described = NetworkConfig(
        backbone=config.backbone,
        model_kwargs=config.model_kwargs,
        head="original",
        num_classes=classes,
        preprocessing=resolve_preprocessing(config, backbone),
        pretrained=config.weights != "none",
    )
    return backbone, described


def imagenet_labels() -> list[str]:
    """The 1,000 classes of ILSVRC 2012 in their order, the first name of each synset."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(index).split(",")[0] for index in range(1000)]


def _drawn(preprocessing: Preprocessing, count: int, seed: int) -> list[npt.NDArray[np.uint8]]:
    size = max(preprocessing.height, preprocessing.width)
    return [preprocessing.apply(draw(index, seed, size=size).image) for index in range(count)]


def _versions() -> dict[str, str]:
    found = {package: metadata.version(package) for package in ("tlcli", "torch", "timm", "onnx", "onnxscript")}
    return found | {"python": platform.python_version()}
