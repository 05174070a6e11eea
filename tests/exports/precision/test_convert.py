"""A file in reduced precision is put in place with its agreement, or rejected with both figures, and then nothing is left."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.helpers.exports.small_networks import LABELS, PROVENANCE, blobs, make
from tlcli.contract.errors import ParityError
from tlcli.contract.model.description import Agreement, Description, MapAgreement
from tlcli.contract.model.onnx_model import Model
from tlcli.evaluation.agreement import Images, Shown
from tlcli.exports import Exported, SmallerNumbers, export
from tlcli.exports.precision.convert import PrecisionTrial
from tlcli.exports.triton_config import config_pbtxt
from tlcli.training.models.network import Network

IMAGES = blobs(12)
FOUND = Agreement(images=400, source="pets, validation part", top1_before=0.985, top1=0.98, agreement=0.99, finite=1.0, time=0.4, maps={})


def trial(precision: Any = "int8", labels: list[int] | None = None, calibration: Any = IMAGES, **more: Any) -> PrecisionTrial:
    compared = Images(len(IMAGES), "blobs", lambda number: Shown(IMAGES[number], None if labels is None else labels[number]))
    source = "12 blobs" if precision == "int8" else None
    return PrecisionTrial(SmallerNumbers(precision, **more), compared, list(calibration) if source else (), source)


def put(network: Network, repository: Path, trial: PrecisionTrial, **more: Any) -> Exported:
    return export(
        network, name="model", labels=LABELS, repository=repository, images=list(IMAGES[:2]), source="blobs", provenance=PROVENANCE,
        methods=("gradcam", "fem", "eigencam"), trial=trial, **more,
    )  # fmt: skip


def tensors(config: str) -> str:
    """Return Triton's configuration without the description."""
    return config.partition("parameters {")[0]


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_it_is_put_in_place_with_what_was_found(precision: str, tmp_path: Path) -> None:
    network = make("test_resnet", spread=3.0)
    answers = network.predict(IMAGES).argmax(1).tolist()
    exported = put(network, tmp_path, trial(precision, answers, max_accuracy_drop=30), temperature=2.0, dynamic_size=True)
    assert sorted(path.name for path in exported.path.parent.iterdir()) == ["model.onnx"]
    model = Model.open(exported.path, "cpu")
    description = model.description
    assert (description.precision, description.temperature, description.dynamic_size) == (precision, 2.0, True)
    found = description.provenance.agreement
    assert found is not None
    assert description.provenance.parity is not None
    assert (found.images, found.source, found.top1_before) == (12, "blobs", 1.0)
    assert found.calibration == ("12 blobs" if precision == "int8" else None)
    assert found.maps.keys() == {"gradcam", "fem"}, "those of the graph"
    given = model.run(IMAGES)
    assert found.top1 == pytest.approx((given.logits.argmax(1) == answers).mean())
    np.testing.assert_allclose(given.scores, np.exp(given.logits) / np.exp(given.logits).sum(1, keepdims=True), atol=1e-5)
    kinds = {weight.data_type for weight in onnx.load(str(exported.path)).graph.initializer if np.prod(weight.dims) > 5000}
    assert kinds == {onnx.TensorProto.INT8 if precision == "int8" else onnx.TensorProto.FLOAT16}
    assert (exported.path.parents[1] / "config.pbtxt").read_text() == config_pbtxt(description)
    plain = description.model_copy(update={"precision": "fp32"})
    assert tensors(config_pbtxt(description)) == tensors(config_pbtxt(plain)), "what stands outside is what it was"


def test_one_that_loses_too_much_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    network = make("test_resnet", spread=3.0)
    answers = network.predict(IMAGES).argmax(1).tolist()
    black = np.zeros_like(IMAGES)
    with pytest.raises(ParityError) as refused:
        put(network, tmp_path, trial("int8", answers, black))
    message = str(refused.value)
    assert re.fullmatch(
        r"--precision int8: the file is right on \d+\.\d\d% of 12 images \(blobs\), in fp32 on 100\.00%, \d+\.\d\d points less; at most"
        r" 0\.5 are allowed: use more --calibration-images, or fp16 for a GPU, or allow more with --max-accuracy-drop",
        message,
    ), message
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ParityError, match=r"has the same first class as in fp32 for \d+\.\d\d% of 12 images.* at most 1 are allowed"):
        put(network, tmp_path, trial("int8", None, black, max_accuracy_drop=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "allowed", "message"),
    [
        ({}, None, None),
        ({"top1": 0.9799}, None, r"98\.50%, 0\.51 points less; at most 0\.5 are allowed"),
        ({"top1": 0.9799}, 0.6, None),
        ({"top1": 0.99}, 0.0, None),
        ({"top1": None, "top1_before": None, "agreement": 0.9}, None, None),
        (
            {"top1": None, "top1_before": None, "agreement": 0.89},
            None,
            r"for 89\.00% of 400 images .* 11\.00 points less; at most 10 are",
        ),
        ({"top1": None, "top1_before": None, "agreement": 0.89}, 11.5, None),
        (
            {"finite": 0.75},
            100.0,
            r"no finite logits for 25\.0% of 400 images \(pets, validation part\), values exceed the type's range: use more",
        ),
    ],
)
def test_what_is_allowed(found: dict[str, Any], allowed: float | None, message: str | None) -> None:
    tried = replace(trial(), numbers=SmallerNumbers("int8", max_accuracy_drop=allowed))
    agreement = FOUND.model_copy(update=found)
    if message is None:
        tried.require(agreement)
    else:
        with pytest.raises(ParityError, match=message):
            tried.require(agreement)


def test_a_file_from_before_there_were_others_is_in_float32(tmp_path: Path) -> None:
    network = make("test_resnet")
    old = json.loads(put(network, tmp_path, trial("fp16")).description.to_json())
    del old["precision"], old["provenance"]["agreement"]
    description = Description.from_metadata({"tlcli.description": json.dumps(old)}, "old")
    assert (description.precision, description.provenance.agreement) == ("fp32", None)


def maps(**correlations: float | None) -> dict[str, MapAgreement]:
    return {name: MapAgreement(images=200, rank_correlation=value, rank_correlation_median=value) for name, value in correlations.items()}


@pytest.mark.parametrize(
    ("correlations", "least", "message"),
    [
        ({"gradcam": 0.98, "hirescam": 0.93}, None, None),
        ({"gradcam": 0.9, "hirescam": None}, None, None),
        ({"gradcam": 0.98, "hirescam": 0.34}, None, r"the map hirescam has a mean rank correlation of 0\.340 .* on 200 images \(pets"),
        (
            {"gradcam": 0.98, "hirescam": 0.34},
            None,
            r"at least 0\.9 is required: use more --calibration-images, .* --min-map-correlation",
        ),
        ({"cam": 0.5, "gradcam": 0.4, "fem": 0.99}, None, r"the map gradcam .* 0\.400 .*\(1 more of 3 maps are below the bound\)"),
        ({"gradcam": 0.98, "hirescam": 0.34}, 0.3, None),
        ({"gradcam": 0.98}, 0.99, r"at least 0\.99 is required"),
    ],
)
def test_maps_that_change_too_much_are_refused(correlations: dict[str, float | None], least: float | None, message: str | None) -> None:
    tried = replace(trial(), numbers=SmallerNumbers("int8", min_map_correlation=least))
    agreement = FOUND.model_copy(update={"maps": maps(**correlations)})
    if message is None:
        tried.require(agreement)
    else:
        with pytest.raises(ParityError, match=message):
            tried.require(agreement)


def test_a_file_whose_maps_change_too_much_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    """Calibrated on black images, with any accuracy allowed: the maps alone lead to the rejection."""
    network, black = make("test_resnet", spread=3.0), np.zeros_like(IMAGES)
    with pytest.raises(ParityError, match=r"the map \w+ has a mean rank correlation of"):
        put(network, tmp_path, trial("int8", None, black, max_accuracy_drop=100))
    assert list(tmp_path.iterdir()) == []
    put(network, tmp_path, trial("int8", None, black, max_accuracy_drop=100, min_map_correlation=-1))
    assert (tmp_path / "model/1/model.onnx").is_file()
