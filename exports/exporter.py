"""Export of a network as a new version in the model repository. The version appears only after the file has passed all checks."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import ModelProto
from PIL import Image

from tlcli.contract.errors import ExportError, SettingsError, first_line
from tlcli.contract.files.atomic_folder import temporary_folder
from tlcli.contract.model.description import Agreement, Description, Plain, Provenance
from tlcli.contract.model.onnx_model import Model
from tlcli.contract.model.repository_layout import MODEL_FILE, require_model_name
from tlcli.evaluation.agreement import compare
from tlcli.exports import parity
from tlcli.exports.fold_temperature import require_temperature
from tlcli.exports.onnx_writer import flat_graph, plain_maps, write_graph
from tlcli.exports.plain_settings import require_plain, require_same_form
from tlcli.exports.precision.convert import PrecisionTrial
from tlcli.exports.publication import Exported, Say, model_folder, publish
from tlcli.exports.rewrite.closed_graph import check_graph, describe
from tlcli.exports.timm_reference import require_as_timm
from tlcli.exports.trace.explainer import Explainer
from tlcli.training.models.network import ImageNetwork

_IMAGES_AT_ANOTHER_SIZE = 2


def export(
    network: ImageNetwork,
    *,
    name: str,
    labels: Sequence[str],
    repository: Path,
    images: Sequence[npt.NDArray[np.uint8]],
    source: str,
    provenance: Provenance,
    methods: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    dynamic_size: bool = False,
    temperature: float = 1.0,
    trial: PrecisionTrial | None = None,
    plain: Plain | None = None,
    thresholds: Sequence[float] = (),
    say: Say = lambda _: None,
) -> Exported:
    """Export `network` as the next version of model `name`. A file that fails a check is deleted.

    Args:
        network: network with loaded weights; it is copied, not modified.
        name: name of the model.
        labels: names of the C classes.
        repository: model repository folder; created if it does not exist.
        images: inputs for the parity check, uint8 `[H, W, 3]` each, at least one.
        source: origin of these images, recorded in the description.
        provenance: origin of the network; the parity figures are added to it.
        methods: map methods by name; None selects all that the head supports; an empty sequence exports a model without maps.
        layers: names of the backbone modules to explain; None selects the last one with a spatial extent.
        dynamic_size: accept images of any height and width, if the network does.
        temperature: divisor of the network's logits; see `tlcli.exports.fold_temperature`.
        trial: settings for reduced precision, with the images on which the reduced-precision and the float file are compared.
        plain: form of a plain graph, without branches, loops and optional inputs; None writes the graph with optional inputs.
        thresholds: score of each class from which on an image has its label, for a network with several labels per image: its scores are
            sigmoids. Empty for one label per image, with a softmax.
        say: callback that receives one progress line per step.

    Raises:
        SettingsError: the name or the temperature is invalid, or does not apply to several labels per image.
        ExportError: a layer does not exist, the head does not support a method, the network has no ONNX form, or the file is invalid.
        ParityError: the network's logits differ from those of timm's own model, the file's outputs differ from PyTorch's by more than
            the tolerance, or the reduced-precision file loses too much accuracy or map quality.
    """
    require_model_name(name)
    require_temperature(temperature)
    if thresholds:
        _require_float_scores(temperature, trial)
        if plain is not None and plain.classes == "top":
            raise SettingsError("--classes top explains one label of an image, and this model can give it several: use --classes input")
    if len(labels) != network.config.num_classes:
        raise ExportError(f"{len(labels)} labels for a network of {network.config.num_classes} classes: give one for each class")
    network = copy.deepcopy(network).cpu().float().eval().requires_grad_(False)
    require_as_timm(network)
    _with_plain_attention(network)
    network.divide_logits(temperature)
    require_same_form(repository / name, plain)
    with model_folder(repository, name) as folder, temporary_folder(folder, ".export-") as partial:
        explainer = Explainer(network, methods, layers, dynamic_size, "multi-label" if thresholds else "single-label")
        say(f"writing {network.config.backbone}{_explained(explainer)}")
        if plain is not None:
            require_plain(explainer, methods, plain, reduced=trial is not None)
        description = describe_explainer(explainer, name, labels, provenance, temperature, plain, thresholds)
        path = partial / MODEL_FILE
        flat = None if trial is None else flat_graph(explainer)
        write_graph(explainer, path, flat, plain)
        describe(path, description)
        check_graph(path)
        say(f"checking against PyTorch on {len(images)} images ({source})")
        model = Model.open(path, device="cpu")
        measured = parity.measure(network, model, images, source)
        parity.require(measured)
        if dynamic_size:
            _require_other_sizes(network, model, images, source)
        provenance = provenance.model_copy(update={"parity": measured})
        if trial is not None and flat is not None:
            provenance = provenance.model_copy(update={"agreement": _reduce_precision(explainer, flat, model, trial, say)})
            description = description.model_copy(update={"precision": trial.numbers.precision})
        description = description.model_copy(update={"provenance": provenance})
        describe(path, description)
        version = publish(partial, folder, description)
    return Exported(folder / str(version) / MODEL_FILE, name, version, description, measured)


def _require_float_scores(temperature: float, trial: PrecisionTrial | None) -> None:
    """Check that the scores are those to which the thresholds of several labels per image were fitted.

    Raises:
        SettingsError: a temperature or reduced precision would change them.
    """
    if temperature != 1:
        raise SettingsError(
            f"--temperature {temperature:g} needs one label per image: thresholds are fitted to the scores of several: leave it out"
        )
    if trial is not None:
        raise SettingsError(f"--precision {trial.numbers.precision} needs one label per image, whose top-1 is compared: leave it out")


def _with_plain_attention(network: ImageNetwork) -> None:
    """Switch timm's attention to plain matrix products and a softmax.

    PyTorch's fused attention operator has no ONNX form for inputs of more than four dimensions.
    """
    for module in network.modules():
        if getattr(module, "fused_attn", False):
            module.fused_attn = False  # type: ignore[assignment]


def _reduce_precision(explainer: Explainer, flat: ModelProto, model: Model, trial: PrecisionTrial, say: Say) -> Agreement:
    """Replace the float file with a reduced-precision file.

    Returns:
        Agreement of the two files on the trial's images.

    Raises:
        ParityError: see `PrecisionTrial.require`.
    """
    calibrated = f", calibrated on {trial.calibration_source}" if trial.calibration_source else ""
    say(f"writing it in {trial.numbers.precision}{calibrated}")
    trial.rewrite(flat)
    path = model.path.with_name(f"{trial.numbers.precision}.onnx")
    write_graph(explainer, path, flat, model.description.plain)
    describe(path, model.description)
    check_graph(path)
    say(f"comparing with fp32 on {trial.compared.count:,} images ({trial.compared.source})")
    agreement = compare(model, Model.open(path, device="cpu"), trial.compared)
    trial.require(agreement)
    os.replace(path, model.path)
    return agreement.model_copy(update={"calibration": trial.calibration_source})


def _require_other_sizes(network: ImageNetwork, model: Model, images: Sequence[npt.NDArray[np.uint8]], source: str) -> None:
    """Run the parity check on images of a different size.

    Raises:
        ExportError: the network or the file accepts only one image size.
        ParityError: see `tlcli.exports.parity.require`.
    """
    try:
        measured = parity.measure(network, model, _at_another_size(images), f"{source}, at another size")
    except Exception as error:  # of PyTorch or ONNX Runtime, whose exceptions share no base class
        raise ExportError(
            f"{network.config.backbone} with the head {network.config.head!r} takes images of one size only ({first_line(error)}):"
            " leave out --dynamic-size"
        ) from error
    parity.require(measured)


def _at_another_size(images: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.uint8]]:
    """Return the first two images, enlarged by 32 pixels in height and 64 in width."""
    return [
        np.asarray(Image.fromarray(image).resize((image.shape[1] + 64, image.shape[0] + 32), Image.Resampling.BILINEAR))
        for image in images[:_IMAGES_AT_ANOTHER_SIZE]
    ]


def _explained(explainer: Explainer) -> str:
    if not explainer.layers:
        return " without maps"
    return f" with maps of {' and '.join(layer.name for layer in explainer.layers)}"


def describe_explainer(
    explainer: Explainer,
    name: str,
    labels: Sequence[str],
    provenance: Provenance,
    temperature: float = 1.0,
    plain: Plain | None = None,
    thresholds: Sequence[float] = (),
) -> Description:
    """Return the description of the graph that `write_graph` writes for this explainer."""
    return Description(
        name=name,
        labels=tuple(labels),
        preprocessing=explainer.network.config.preprocessing,
        layers=explainer.layers,
        maps=explainer.maps if plain is None else plain_maps(explainer),
        switches=explainer.switches if plain is None else (),
        dynamic_size=explainer.dynamic_size,
        temperature=temperature,
        task="multi-label" if thresholds else "single-label",
        thresholds=tuple(thresholds),
        plain=plain,
        provenance=provenance,
    )
