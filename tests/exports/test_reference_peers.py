"""The reference agrees with pytorch-grad-cam wherever the formula is the same."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pytest

from tests.helpers.exports.pytorch_grad_cam import like_pytorch_grad_cam, pytorch_grad_cam_maps
from tests.helpers.exports.reference import Reference, relative_difference
from tests.helpers.exports.small_networks import blobs, make
from tlcli.training.models.network import Network

CLASS_IDS = np.array([[0, 3], [4, 1]])


@functools.cache
def made(head: str) -> Network:
    """Return a network of `make`, built once, for tests that do not change it."""
    return make(head=head)


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    return blobs(2)


def agree(
    method: str, network: Network, layer: str, images: npt.NDArray[np.uint8], class_ids: npt.NDArray[np.int64], softmax: bool
) -> None:
    """Compare maps. Its maps are float32 in [0, 1]; they differ by more than rounding only where a ReLU's input is almost zero."""
    theirs = pytorch_grad_cam_maps(method, network, layer, images, class_ids, softmax)
    ours = Reference(network, layer).maps(method, images, class_ids, softmax)
    assert theirs.shape == (*class_ids.shape, 64, 96)
    signs = (1, -1) if method.startswith("eigen") else (1,)
    candidates = np.stack([like_pytorch_grad_cam(sign * ours, 64, 96) for sign in signs])
    assert (theirs.max((-2, -1)) > 0.99).mean() >= 0.75  # a map that is rectified away shows little
    difference = np.abs(candidates - theirs).max((-2, -1)).min(0)
    assert difference.max() < 2e-3, difference


SAME = ("gradcam", "xgradcam", "hirescam", "gradcam_elementwise", "layercam")
LAYERS = [("conv1", "linear"), ("layer1.0.act1", "mlp:16"), ("layer2", "linear"), ("layer4", "mlp:16")]
PEER_CASES = [
    *((method, *case) for case in LAYERS for method in SAME),
    *(("fem", *case) for case in LAYERS[:3]),  # of layer4's six positions hardly any is two sigma above the mean
    *((method, *case) for case in LAYERS[2:] for method in ("eigencam", "eigengradcam")),  # before them it takes seconds
]


@pytest.mark.parametrize(("method", "layer", "head"), PEER_CASES)
def test_agrees_with_pytorch_grad_cam(method: str, layer: str, head: str, images: npt.NDArray[np.uint8]) -> None:
    agree(method, made(head), layer, images, CLASS_IDS, softmax=False)


@pytest.mark.parametrize("method", [*SAME, "eigengradcam"])
def test_agrees_with_pytorch_grad_cam_of_probabilities(method: str, images: npt.NDArray[np.uint8]) -> None:
    agree(method, made("mlp:16"), "layer3", images, CLASS_IDS, softmax=True)


@pytest.mark.parametrize(("layer", "head"), [("layer2", "linear"), ("layer4", "mlp:16")])
def test_grad_cam_plus_plus_agrees_where_its_epsilon_is_small(layer: str, head: str, images: npt.NDArray[np.uint8]) -> None:
    """It adds 1e-6 to a denominator of squared gradients: a last layer of large weights makes these large."""
    agree("gradcam_plus_plus", make(head=head, spread=300), layer, images, CLASS_IDS, softmax=False)


@pytest.mark.parametrize("layer", ["layer2", "layer4"])
def test_score_cam_agrees(layer: str, images: npt.NDArray[np.uint8]) -> None:
    """It upsamples with corners aligned, and is made to upsample as we do. Large logits keep the weights from being equal."""
    network = make("test_resnet", spread=8)
    images, class_ids = images[:1], CLASS_IDS[:1]
    agree("scorecam", network, layer, images, class_ids, softmax=False)
    reference = Reference(network, layer)
    every = reference.maps("scorecam", images, class_ids)
    few = reference.maps("faster_scorecam", images, class_ids, max_channels=5)
    assert relative_difference(few, every) > 0.01  # type: ignore[arg-type]
    all_of_them = reference.maps("faster_scorecam", images, class_ids, max_channels=1000)
    np.testing.assert_allclose(all_of_them, every, atol=1e-9 * every.max())


@pytest.mark.parametrize("layer", ["layer2", "layer4"])
def test_ablation_cam_agrees(layer: str, images: npt.NDArray[np.uint8]) -> None:
    """Its layer is rectified and its classes have positive logits: it divides by y, not by |y|."""
    network = make("test_resnet", "mlp:16")
    logits = Reference(network, layer).observe(images, CLASS_IDS)[0].numpy()
    best = logits.argmax(1)[:, None]
    assert (np.take_along_axis(logits, best, 1) > 0).all()
    agree("ablationcam", network, layer, images, best, softmax=False)
