"""Networks and images at the limits: no map is NaN, maps defined as zero are zero, and sizes may be left open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.exports.paper_network import A0, A1, BIAS, BY_HAND, WEIGHT, make_image, toy
from tests.helpers.exports.reference import Reference, relative_difference
from tests.helpers.exports.small_networks import PROVENANCE, Case, Exports, blobs, make, write, write_case
from tlcli.contract.errors import ExportError, RequestError, TlcliError
from tlcli.contract.maps.method_names import METHODS, OF_ATTENTION
from tlcli.contract.model.explain import explain
from tlcli.contract.model.onnx_model import Model
from tlcli.exports import export

CLASSES = np.array([[0, 1, 2, 3]])
TOLERANCE = 1e-4
SAMPLED = ("scorecam", "faster_scorecam")
"""These mask images of 8 bits; the reference's are not rounded."""


@pytest.fixture(scope="module")
def on_paper(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Export a network of two channels of two by two: all sizes are equal."""
    return write(toy(WEIGHT, BIAS), tmp_path_factory.mktemp("toy") / "model.onnx", layers=["layer"])


@pytest.mark.parametrize("method", BY_HAND)
def test_maps_worked_out_on_paper(method: str, on_paper: Model) -> None:
    """One of the classes has a score, weights and gradients of zero."""
    image = make_image(A0.astype(int).tolist(), A1.astype(int).tolist())
    maps = on_paper.run(np.concatenate([image, image, image]), CLASSES, [method]).maps[method]
    for row in maps:
        np.testing.assert_allclose(row, BY_HAND[method], atol=2e-5)  # 8 bits, times 255


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(
    "image",
    [make_image([[-1, -1]] * 2, [[0, 0]] * 2), make_image([[3, 3]] * 2, [[0, 0]] * 2), make_image([[2, -1], [0, 0]], [[7, 7]] * 2)],
    ids=["black", "constant", "a channel alone"],
)
def test_images_without_anything_in_them(image: np.ndarray, softmax: bool, on_paper: Model) -> None:
    reference = Reference(toy(WEIGHT, BIAS), "layer")
    answer = explain(on_paper, image, CLASSES, on_paper.description.methods, softmax=softmax)
    assert set(answer.maps) == set(METHODS) - set(OF_ATTENTION)
    for method, values in answer.maps.items():
        assert np.isfinite(values).all(), method
        expected = reference.maps(method, image, CLASSES, softmax)
        if method not in SAMPLED:
            np.testing.assert_allclose(values, expected, atol=1e-4 * max(1, np.abs(expected).max()), err_msg=method)
        if not expected.any():
            assert not values.any(), method


def layer_silenced(network: torch.nn.Module, layer: str, bias: float) -> None:
    """Let a batch norm return the same number everywhere."""
    norm = network.backbone.get_submodule(layer)  # type: ignore[union-attr,operator]
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.fill_(bias)


@pytest.fixture(scope="module", params=[0.0, 0.3], ids=["zeros", "constants"])
def constant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return a network whose layer has the same output at every position of every image, with live layers behind it."""
    network = make("test_resnet", "mlp:16")
    layer_silenced(network, "layer2.0.bn1", request.param)
    return write_case(network, tmp_path_factory.mktemp("constant") / "model.onnx", layers=["layer2.0.bn1"])


@pytest.mark.parametrize("softmax", [False, True])
def test_constant_activations(constant: Case, softmax: bool) -> None:
    images, classes = blobs(2), np.array([[0, 3], [4, 1]])
    reference = Reference(constant.network, "layer2.0.bn1")
    answer = explain(constant.model, images, classes, constant.model.description.methods, softmax=softmax, max_channels=5)
    for method, values in answer.maps.items():
        assert np.isfinite(values).all(), method
        if method not in SAMPLED:
            expected = reference.maps(method, images, classes, softmax)
            assert relative_difference(values, expected) < 1e-3, method
        if method in ("fem", "eigencam"):
            assert not values.any(), f"{method}: nothing stands out"


@pytest.mark.parametrize("layer", ["layer4", "layer2"])
def test_a_class_of_probability_0_or_1(layer: str, exported: Exports) -> None:
    """The derivative of a saturated probability is zero, and so is the effect of removing a channel, unless that ends the saturation."""
    case = exported("test_resnet", "mlp:16", layer, spread=1e4)
    images = blobs(2)
    targets = np.array([[-1, -2, -5], [-1, -2, -5]])
    maps = case.model.description.graph_maps
    scores = case.model.run(images).scores
    assert (np.sort(scores, 1)[:, [0, -1]] == [0, 1]).all()
    for softmax in (False, True):
        answer = explain(case.model, images, targets, case.model.description.methods, softmax=softmax, max_channels=5)
        assert answer.classes is not None
        reference = Reference(case.network, layer)
        for method, values in answer.maps.items():
            assert np.isfinite(values).all(), method
            if method in maps and method not in ("fem", "ablationcam", "reciprocam") and softmax:
                assert not values.any(), method
            elif method in maps and method != "ablationcam" and not (softmax and method == "reciprocam"):
                assert relative_difference(values, reference.maps(method, images, answer.classes)) < TOLERANCE, method
        if softmax:
            assert not answer.maps["ablationcam"][:, 2].any(), "a probability of zero cannot fall"
            assert not answer.maps["eigengradcam"].any()


@pytest.fixture(scope="module")
def half_dead(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return a network in which every second channel of the layer is zero."""
    network = make("test_resnet", "mlp:16")
    norm = network.backbone.layer3[0].bn1  # type: ignore[index,union-attr]
    with torch.no_grad():
        norm.weight[::2] = 0
        norm.bias[::2] = 0
    return write_case(network, tmp_path_factory.mktemp("dead") / "model.onnx", layers=["layer3.0.bn1"])


@pytest.mark.parametrize("softmax", [False, True])
def test_dead_channels(half_dead: Case, softmax: bool) -> None:
    images, classes = blobs(2), np.array([[0, 3], [4, 1]])
    answer = explain(half_dead.model, images, classes, half_dead.model.description.methods, softmax=softmax, max_channels=5)
    reference = Reference(half_dead.network, "layer3.0.bn1")
    _, activations, _ = reference.observe(images, classes, softmax)
    assert not activations[:, ::2].any()
    assert activations[:, 1::2].abs().amax((-2, -1)).min() > 0
    for method, values in answer.maps.items():
        assert np.isfinite(values).all(), method
        if method not in SAMPLED:
            assert relative_difference(values, reference.maps(method, images, classes, softmax)) < 1e-3, method


@pytest.mark.parametrize(
    ("backbone", "layers", "chosen"),
    [
        ("test_resnet", (), None),
        ("test_efficientnet", ("blocks.2",), None),
        ("test_resnet", ("layer2", "layer4"), ("gradcam", "layercam", "ablationcam")),
    ],
)
def test_another_size_answers_what_pytorch_answers_at_that_size(
    backbone: str, layers: tuple[str, ...], chosen: tuple[str, ...] | None, exported: Exports
) -> None:
    """Traced at 64 x 96; with odd sizes, strides leave positions over."""
    case = exported(backbone, "linear", *layers, methods=chosen, dynamic_size=True)
    assert case.model.description.dynamic_size
    methods = [one for one in case.model.description.maps if one.in_graph and (one.method != "ablationcam" or backbone == "test_resnet")]
    for height, width in ((64, 96), (96, 64), (128, 128), (75, 101)):
        images, targets = blobs(2, height, width), np.array([[0, -1], [3, 2]])
        answer = case.model.run(images, targets, [one.name for one in methods])
        assert answer.classes is not None
        references = {layer.name: Reference(case.network, layer.name) for layer in case.model.description.layers}
        for one in methods:
            if one.layer not in references:
                continue
            reference = references[one.layer]
            np.testing.assert_allclose(answer.logits, reference.observe(images, answer.classes)[0], atol=1e-4)
            expected = reference.maps(one.method, images, answer.classes)
            tolerance = 1e-3 if one.method == "ablationcam" else TOLERANCE
            assert relative_difference(answer.maps[one.name], expected) < tolerance, (one.name, height, width)


def test_a_head_that_needs_one_size_is_refused_in_a_line(tmp_path: Path) -> None:
    for layers in (None, ["layer4.0.bn1"]):
        network = make("test_resnet", "mlp:16")
        with pytest.raises(ExportError, match="--dynamic-size") as refused:
            export(
                network,
                name="model",
                labels=[f"class_{number}" for number in range(network.config.num_classes)],
                repository=tmp_path,
                images=list(blobs(2)),
                source="blobs",
                provenance=PROVENANCE,
                layers=layers,
                methods=["gradcam"],
                dynamic_size=True,
            )
        assert "\n" not in str(refused.value)
    assert issubclass(ExportError, TlcliError)


def test_a_wrong_size_is_refused_unless_any_will_do(exported: Exports) -> None:
    fixed, open_ = exported("test_resnet").model, exported("test_resnet", dynamic_size=True).model
    with pytest.raises(RequestError, match=r"takes uint8 \[N, 64, 96, 3\], not uint8 \[2, 96, 64, 3\]$"):
        fixed.run(blobs(2, 96, 64))
    with pytest.raises(RequestError, match=r"takes uint8 \[N, H, W, 3\], not float32 \[2, 96, 64, 3\]$"):
        open_.run(blobs(2, 96, 64).astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"not uint8 \[0, 64, 96, 3\]$"):
        fixed.run(blobs(2)[:0])
    open_.run(blobs(2, 96, 64))
