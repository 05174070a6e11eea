"""Finer-CAM and Recipro-CAM of exported files equal those of the float64 reference, and cost nothing unless a request selects them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.exports.test_exporter import operators
from tests.helpers.exports.paper_network import A0, A1, BIAS, WEIGHT, make_image, toy
from tests.helpers.exports.reference import Reference, finer_score, neighbourhoods, relative_difference, similar
from tests.helpers.exports.small_networks import Exports, blobs, make
from tlcli.contract.maps.method_names import COSTLY
from tlcli.exports.trace.explainer import Explainer
from tlcli.exports.trace.map_methods import CamInputs, finercam, neighbourhood_sums, position_masks, reciprocam
from tlcli.exports.trace.similar_classes import similar_classes

METHODS = ("gradcam", "finercam", "reciprocam")
SIZE = 160
TARGETS = np.array([[0, -1], [3, -2], [-5, 4]])
CASES = {
    "test_resnet linear": ((), None),
    "test_resnet linear layer2": (("layer2",), None),
    "test_resnet mlp:16": ((), None),
    "test_vit original": (("blocks.2.norm1",), (1, 10, 10)),
    "test_vit original blocks.1": (("blocks.1",), (1, 10, 10)),
    "test_vit2 original": (("norm",), (1, 10, 10)),
}


@pytest.mark.parametrize("name", CASES)
def test_maps_equal_the_reference(name: str, exported: Exports) -> None:
    backbone, head, *_ = name.split()
    layers, tokens = CASES[name]
    size = (SIZE, SIZE) if tokens else (64, 96)
    case = exported(backbone, head, *layers, methods=METHODS, size=size, **({"depth": 3} if tokens else {}))
    images = blobs(2, *size)
    (described,) = case.model.description.layers
    reference = Reference(case.network, described.name, tokens)
    for softmax, tolerance in ((False, 1e-4), (True, 5e-4)):
        answer = case.model.run(images, TARGETS[:2], METHODS, softmax=softmax)
        assert answer.classes is not None
        for method in METHODS[1:]:
            expected = reference.maps(method, images, answer.classes, softmax)
            assert np.abs(expected).max() > 0
            assert relative_difference(answer.maps[method], expected) < tolerance, (method, softmax)


def test_any_size(exported: Exports) -> None:
    case = exported("test_resnet", "original", "layer2", methods=METHODS, dynamic_size=True)
    images = blobs(2, 96, 64)
    answer = case.model.run(images, TARGETS[:2], METHODS)
    assert answer.classes is not None
    reference = Reference(case.network, "layer2")
    for method in METHODS:
        assert relative_difference(answer.maps[method], reference.maps(method, images, answer.classes)) < 1e-4, method


def test_the_formulas_on_paper() -> None:
    """The gradient of class c is `WEIGHT[c] / 4`, for class 0 minus 0.6 times the mean of the other three."""
    reference = Reference(toy(WEIGHT, BIAS), "layer")
    image = make_image(A0.astype(int).tolist(), A1.astype(int).tolist())
    weights = (np.array(WEIGHT[0]) - 0.6 * np.mean(WEIGHT[1:], 0)) / 4
    expected = np.maximum(weights[0] * A0 + weights[1] * A1, 0)
    np.testing.assert_allclose(reference.maps("finercam", image, np.array([[0]]))[0, 0], expected, atol=1e-12)
    # at the first position, 4/16 of itself, 2/16 of its neighbours and 1/16 of the position across
    weighed = [(4 * a[0, 0] + 2 * a[0, 1] + 2 * a[1, 0] + a[1, 1]) / 16 / 4 for a in (A0, A1)]
    score = WEIGHT[0][0] * weighed[0] + WEIGHT[0][1] * weighed[1] + BIAS[0]
    np.testing.assert_allclose(reference.maps("reciprocam", image, np.array([[0]]))[0, 0, 0, 0], score, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 4, 9])
def test_the_similar_classes_have_the_closest_logits(classes: int) -> None:
    logits = torch.randn(3, classes, generator=torch.Generator().manual_seed(classes))
    explained = torch.tensor([[0, 1], [1, 0], [classes - 1, 1]])
    found = similar_classes(logits, explained)
    assert found.tolist() == [[similar(row, int(number)) for number in numbers] for row, numbers in zip(logits, explained, strict=True)]
    skipped = similar_classes(logits, explained, skip_last=True)
    assert skipped.shape == found.shape
    assert torch.equal(skipped[..., :-1], found[..., :-1])
    assert bool((skipped[..., -1] != found[..., -1]).all()) == (classes > 4)
    assert float(finer_score(logits[0], logits[0], 0, gamma=0)) == pytest.approx(float(logits[0, 0]))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4)])
def test_the_masks_and_the_sums_under_them(size: tuple[int, int]) -> None:
    height, width = size
    made = position_masks(torch.arange(height * width), height, width)
    np.testing.assert_array_equal(made, neighbourhoods(height, width))
    activations = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    sums = torch.einsum("ncij,rij->ncr", activations, made).unflatten(2, size)
    torch.testing.assert_close(neighbourhood_sums(activations), sums)


def test_maps_without_their_inputs_are_refused() -> None:
    ones = torch.ones(1, 1, 1, 1)
    inputs = CamInputs(ones, ones[:, None], ones[..., 0], None, ones[..., 0, 0])
    with pytest.raises(ValueError, match="Finer-CAM needs the gradients"):
        finercam(inputs)
    with pytest.raises(ValueError, match="Recipro-CAM needs the scores"):
        reciprocam(inputs)


def test_they_cost_nothing_unless_selected(exported: Exports, tmp_path: Path) -> None:
    both, one = (exported("test_resnet", "linear", "layer2", methods=methods).model for methods in (METHODS, METHODS[:1]))
    for wanted in ((), ("gradcam",), ("features",)):
        more, fewer = operators(both, wanted, tmp_path), operators(one, wanted, tmp_path)
        assert all(more[kind] == fewer[kind] for kind in ("Conv", "ConvTranspose", "TopK", "Loop", "MatMul", "Gemm", "Mul", "Add")), wanted
        assert more["Loop"] == 0
    finer, grad = operators(both, ["finercam"], tmp_path), operators(both, ["gradcam"], tmp_path)
    assert finer["ConvTranspose"] == grad["ConvTranspose"] > 0
    masked = operators(both, ["reciprocam"], tmp_path)
    assert (masked["Loop"], masked["ConvTranspose"]) == (1, 0)
    assert "reciprocam" in COSTLY
    closed = exported("test_resnet", "linear", methods=METHODS).model
    assert operators(closed, ["reciprocam"], tmp_path)["Loop"] == 0, "closed form"


def test_recipro_cam_of_a_large_layer_is_exported_on_request_only() -> None:
    network = make("test_resnet", "linear", size=(96, 96)).requires_grad_(False)
    explainer = Explainer(network, layers=["conv1.2"])
    assert "reciprocam" not in explainer.methods
    assert "finercam" in explainer.methods
    assert Explainer(network, ["reciprocam"], ["conv1.2"]).methods == ("reciprocam",)
