"""Maps of tokens and of channels-last features equal those of the float64 reference, and networks are explained that run as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from tests.helpers.exports.reference import Reference, relative_difference
from tests.helpers.exports.small_networks import Case, Exports, blobs, make, make_whole, write_case
from tlcli.contract.errors import ExportError
from tlcli.contract.maps.method_names import IN_GRAPH
from tlcli.exports.trace.explainer import Explainer
from tlcli.training.models.network import ImageNetwork

SIZE = 160
TARGETS = np.array([[0, -1], [3, -2]])
TOLERANCES: dict[str, dict[str, float]] = {
    "blocks.1.mlp.fc1": {"ablationcam": 5e-3},
    "stages.2.blocks.1.mlp.fc1": {"xgradcam": 1e-3},
    "blocks.1.norm1": {"xgradcam": 5e-4},
}
"""Tolerances of layers at which a method divides by a sum that cancels, or subtracts nearly equal scores, so that float32 loses digits."""

GRID = (1, 10, 10)
"""Tokens of timm's small vision transformers at 160 pixels: a class token, and 10 x 10 patches."""

DEPTH: dict[str, float] = {"depth": 3}
"""Number of blocks: at least one behind the layer in the middle. More blocks are traced in the same way, and take longer."""

CASES = {
    "test_vit at its default layer": ("blocks.2.norm1", GRID, False),
    "test_vit in the middle": ("blocks.0", GRID, False),
    "test_vit in a layer of other channels": ("blocks.1.mlp.fc1", GRID, False),
    "test_vit2 pooled over the patches, with registers": ("norm", GRID, False),
    "test_vit3 pooled by attention": ("norm", GRID, False),
    "test_mambaout channels last": ("stages", None, True),
    "test_convnext channels last in the middle": ("stages.2.blocks.1.mlp.fc1", None, True),
}


def compare(network: ImageNetwork, reference: Reference, folder: Path, layer: str) -> tuple[str, ...]:
    """Compare the maps of a file with the reference, of logits and of probabilities. Return the names of the maps."""
    case = write_case(network, folder / "model.onnx", layers=[layer])
    for softmax in (False, True):
        compare_maps(case, reference, softmax)
    return case.model.description.graph_maps


def compare_maps(case: Case, reference: Reference, softmax: bool) -> None:
    """Compare the maps of a file with the reference; Ablation-CAM, which runs the network for each channel, of one image and of logits."""
    images = blobs(2, SIZE, SIZE)
    (described,) = case.model.description.layers
    tolerances = {"ablationcam": 1e-3} | TOLERANCES.get(described.name, {})
    maps = [name for name in case.model.description.graph_maps if name != "ablationcam" or not softmax]
    answer = case.model.run(images, TARGETS, maps, (described.features,), softmax=softmax)
    assert answer.classes is not None
    logits, activations, _ = (value.numpy() for value in reference.observe(images, answer.classes, softmax))
    np.testing.assert_allclose(answer.logits, logits, atol=5e-5 * np.abs(logits).max())
    np.testing.assert_allclose(answer.evidence[described.features], activations, atol=1e-4 * np.abs(activations).max())
    for method in maps:
        count = 1 if method == "ablationcam" else len(images)
        expected = reference.maps(method, images[:count], answer.classes[:count], softmax)
        assert np.abs(expected).max() > 0, method
        assert relative_difference(answer.maps[method][:count], expected) < tolerances.get(method, 5e-4 if softmax else 1e-4), method


@pytest.mark.parametrize("name", CASES)
def test_maps_equal_the_reference(name: str, tmp_path: Path) -> None:
    layer, tokens, channels_last = CASES[name]
    backbone = name.split()[0]
    network = make(backbone, "original", size=(SIZE, SIZE), **(DEPTH if "vit" in backbone else {}))
    _switch_on_residuals(network)
    assert compare(network, Reference(network, layer, tokens, channels_last), tmp_path, layer) == IN_GRAPH[1:]


def test_tokens_that_are_averaged_and_classified_by_one_linear_layer_have_a_cam(tmp_path: Path) -> None:
    network = make("test_vit_relpos", "linear", size=(SIZE, SIZE), **DEPTH)
    tokens = (0, 10, 10)
    (described,) = Explainer(network.requires_grad_(False)).layers
    maps = compare(network, Reference(network, described.name, tokens), tmp_path, described.name)
    assert ("cam" in maps) == isinstance(network.backbone.fc_norm, nn.Identity)


@pytest.mark.parametrize(
    ("backbone", "layer", "tokens", "kwargs"),
    [
        ("deit_tiny_distilled_patch16_224", "blocks.1.norm1", (2, 10, 10), {"depth": 2, "img_size": SIZE}),  # the mean of two classifiers
        ("test_vit", "blocks.2.norm1", GRID, DEPTH),
    ],
)
def test_a_network_that_runs_as_a_whole_has_maps(
    backbone: str, layer: str, tokens: tuple[int, int, int], kwargs: dict[str, float], tmp_path: Path
) -> None:
    network = make_whole(backbone, SIZE, **kwargs)
    compare(network, Reference(network, layer, tokens), tmp_path, layer)


def test_a_whole_network_has_the_maps_of_its_parts(tmp_path: Path, exported: Exports) -> None:
    parts = exported("test_vit", "original", methods=("gradcam",), size=(SIZE, SIZE), **DEPTH)
    whole = make_whole("test_vit", SIZE, **DEPTH)
    whole.backbone.load_state_dict(parts.network.backbone.state_dict())
    case, images = write_case(whole, tmp_path / "model.onnx", methods=["gradcam"]), blobs(2, SIZE, SIZE)
    assert case.model.description.layers[0].name == parts.model.description.layers[0].name
    maps = [model.run(images, TARGETS, ["gradcam"]).maps["gradcam"] for model in (case.model, parts.model)]
    assert relative_difference(maps[0], maps[1].astype(np.float64)) < 1e-5


def test_tokens_fix_the_size_of_the_images() -> None:
    with pytest.raises(ExportError, match=r"test_vit takes images of one size, .*: leave out --dynamic-size$"):
        Explainer(make("test_vit", "original", size=(SIZE, SIZE)), dynamic_size=True)


def _switch_on_residuals(network: ImageNetwork) -> None:
    """Set the scales of residual branches, which start near zero, to a half."""
    for name, parameter in network.named_parameters():
        if "gamma" in name and float(parameter.abs().max()) < 1e-3:
            parameter.data.fill_(0.5)
