"""Logits and maps of the exported file equal those of the float64 reference, for every head, at the last layer and before it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers.exports.reference import Reference, fused, relative_difference
from tests.helpers.exports.small_networks import Case, Exports, blobs, make, of_three_layers
from tlcli.contract.maps.method_names import IN_GRAPH
from tlcli.exports.trace.explainer import is_pooled_linear
from tlcli.exports.trace.map_methods import MAX_MASKED_POSITIONS
from tlcli.training.models.network import Network
from tlcli.training.models.target_layers import resolve_layers

TARGETS = np.array([[0, -1], [3, -2], [-5, 4]])
"""Targets that differ between images, by class id and by rank."""

SMALL_HEAD = {"mlp_ratio": 1 / 32}
"""The first of VGG's own hidden layers, of 4096 units on 7 x 7 positions, would take most of the time."""

KWARGS: dict[str, dict[str, Any]] = {"vgg16": SMALL_HEAD, "resnet18": {}, "mobilenetv2_100": {}}
COMBINATIONS = [*((backbone, head) for backbone in KWARGS for head in ("linear", "mlp:256")), ("vgg16", "original")]
"""The own heads of the other two are `linear`: see the test of that."""

MIDDLE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet18": ("layer1.1", "linear", {"size": (32, 48)}),  # Recipro-CAM runs the network for each of its 8 x 12 positions
    "resnet18 before an in-place operation": ("layer3.0.bn1", "mlp:256", {}),
    "mobilenetv2_100": ("blocks.0.0.bn1", "linear", {"depth_multiplier": 0.5}),  # rectified: elsewhere Grad-CAM++ has poles
    "vgg11": ("features.1", "mlp:256", {"size": (32, 48)} | SMALL_HEAD),  # max-pooling behind
    "test_resnet": ("layer2", "mlp:16", {}),
    "test_resnet before the end of its last block": ("layer4.0.bn2", "linear", {}),  # the block goes on in the same tensor
}

TOLERANCE = {False: 1e-4, True: 5e-4}
"""Of logits and of probabilities, whose gradients are differences of the logits'."""

ABLATION_TOLERANCE = 1e-3
"""Tolerance of Ablation-CAM, which subtracts nearly equal scores and so loses digits of float32."""


@functools.lru_cache(maxsize=1)
def reference_of(network: Network, layer: str) -> Reference:
    """Return the reference of a network; the tests of logits and of probabilities, one after the other, take the same runs of it."""
    return Reference(network, layer)


def compare(case: Case, layer: str, images: npt.NDArray[np.uint8], softmax: bool) -> None:
    """Compare all maps that the graph computes, and the gradients that it returns."""
    (described,) = case.model.description.layers
    assert described.name == layer
    reference, maps = reference_of(case.network, layer), case.model.description.graph_maps
    targets = TARGETS[: len(images)]
    answer = case.model.run(images, targets, maps, (described.features, described.gradients), softmax=softmax)

    classes = answer.classes
    assert classes is not None
    logits, activations, gradients = (value.numpy() for value in reference.observe(images, classes, softmax))
    ranking = np.argsort(-logits, 1)
    np.testing.assert_array_equal(classes, np.where(targets < 0, np.take_along_axis(ranking, np.maximum(-targets - 1, 0), 1), targets))
    np.testing.assert_allclose(answer.logits, logits, atol=5e-5 * np.abs(logits).max())
    powers = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(answer.scores, powers / powers.sum(1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(answer.evidence[described.features], activations, atol=1e-4 * np.abs(activations).max())
    given = answer.evidence[described.gradients]
    assert given.shape == gradients.shape
    for image in range(len(images)):
        for k in range(targets.shape[1]):
            expected = gradients[image, k]
            np.testing.assert_allclose(given[image, k], expected, atol=TOLERANCE[softmax] * np.abs(expected).max())
    # Where a network runs again for each channel, that is most of the time: one image is enough.
    differences = {
        method: relative_difference(answer.maps[method], reference.maps(method, images, classes, softmax))
        for method in maps
        if method != "ablationcam"
    }
    assert max(differences.values()) < TOLERANCE[softmax], differences
    ablated = reference.maps("ablationcam", images[:1], classes[:1], softmax)
    assert relative_difference(answer.maps["ablationcam"][:1], ablated) < ABLATION_TOLERANCE


@pytest.mark.parametrize("softmax", [False, True], ids=["logit", "probability"])
@pytest.mark.parametrize(("backbone", "head"), COMBINATIONS)
def test_every_head_on_every_backbone(backbone: str, head: str, softmax: bool, exported: Exports) -> None:
    case = exported(backbone, head, **KWARGS[backbone])
    assert case.model.description.graph_maps == (IN_GRAPH if head == "linear" else IN_GRAPH[1:])
    compare(case, case.model.description.layers[0].name, blobs(), softmax)


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2_100"])
def test_the_original_head_is_linear_where_it_has_no_hidden_layers(backbone: str) -> None:
    images = blobs(1)
    np.testing.assert_array_equal(make(backbone, "original").predict(images), make(backbone, "linear").predict(images))
    assert is_pooled_linear(make(backbone, "original"), *resolve_layers(make(backbone, "original"), None))


@pytest.mark.parametrize("softmax", [False, True], ids=["logit", "probability"])
@pytest.mark.parametrize("name", MIDDLE)
def test_a_layer_in_the_middle(name: str, softmax: bool, exported: Exports) -> None:
    layer, head, others = MIDDLE[name]
    case = exported(name.split()[0], head, layer, **others)
    (described,) = case.model.description.layers
    small = described.height * described.width <= MAX_MASKED_POSITIONS
    expected = tuple(method for method in IN_GRAPH[1:] if small or method != "reciprocam")
    assert case.model.description.graph_maps == expected, "CAM is not defined there"
    compare(case, layer, blobs(2, *others.get("size", (64, 96))), softmax)


SEVERAL = ("conv1.2", "layer2", "layer4")


@pytest.mark.parametrize("softmax", [False, True], ids=["logit", "probability"])
def test_maps_of_several_layers_and_the_one_that_is_fused_of_them(softmax: bool, exported: Exports) -> None:
    case = of_three_layers(exported)
    description, images = case.model.description, blobs(1)
    assert [layer.name for layer in description.layers] == list(SEVERAL)
    methods = [method for method in IN_GRAPH[1:] if method != "reciprocam"]  # the first layer is too large
    in_graph = [name for method in methods for name in (*(f"{method}@{layer}" for layer in SEVERAL), method)]
    assert list(description.graph_maps) == in_graph
    answer = case.model.run(images, TARGETS[:1], description.graph_maps, softmax=softmax)
    assert answer.classes is not None
    references = {layer: Reference(case.network, layer) for layer in SEVERAL}
    for one in description.maps:
        if not one.in_graph:
            continue
        given = answer.maps[one.name]
        assert given.shape == (1, 2, one.height, one.width)
        tolerance = ABLATION_TOLERANCE if one.method == "ablationcam" else TOLERANCE[softmax]
        if one.layer in references:
            expected = references[one.layer].maps(one.method, images, answer.classes, softmax)
        else:
            assert one.layer == "+".join(SEVERAL)
            expected = fused(list(references.values()), one.method, images, answer.classes, softmax)
        assert relative_difference(given, expected) < tolerance, one.name
