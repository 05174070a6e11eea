"""The reference itself: against numbers computed by hand, and against properties of each formula."""

from __future__ import annotations

import functools
from math import exp
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.exports.paper_network import A0, A1, BIAS, BY_HAND, WEIGHT, make_image, toy
from tests.helpers.exports.reference import FEATURES, METHODS, Reference, fuse, fused, relative_difference
from tests.helpers.exports.small_networks import blobs, make
from tlcli.training.models.network import Network

OF_TOKENS = ("rollout", "legrad")
OF_COPIES = ("ablationcam", "reciprocam")
OF_GRADIENTS = ("gradcam", "gradcam_plus_plus", "xgradcam", "hirescam", "gradcam_elementwise", "layercam", "eigengradcam")


class Ignored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ignored = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        self.ignored(inputs)
        return inputs


CLASSES = np.array([[0, 1, 2, 3]])


@pytest.fixture
def by_hand() -> tuple[Reference, npt.NDArray[np.uint8]]:
    return Reference(toy(WEIGHT, BIAS), "layer"), make_image(A0.astype(int).tolist(), A1.astype(int).tolist())


@pytest.mark.parametrize("method", BY_HAND)
@pytest.mark.parametrize("layer", ["layer", FEATURES])
def test_maps_worked_out_on_paper(method: str, layer: str, by_hand: tuple[Reference, npt.NDArray[np.uint8]]) -> None:
    maps = Reference(by_hand[0].network, layer).maps(method, by_hand[1], CLASSES)
    assert maps.shape == (1, 4, 2, 2)
    assert maps.dtype == np.float64
    np.testing.assert_allclose(maps[0], BY_HAND[method], atol=1e-12)


def test_observed_on_paper(by_hand: tuple[Reference, npt.NDArray[np.uint8]]) -> None:
    logits, activations, gradients = by_hand[0].observe(by_hand[1], CLASSES)
    np.testing.assert_allclose(logits, [[0.5, 5, -1, 0]], atol=1e-12)
    np.testing.assert_allclose(activations, [[A0, A1]], atol=1e-12)
    np.testing.assert_allclose(gradients, np.broadcast_to(np.array(WEIGHT)[None, :, :, None, None] / 4, (1, 4, 2, 2, 2)), atol=1e-12)


def test_score_cam_on_paper(by_hand: tuple[Reference, npt.NDArray[np.uint8]]) -> None:
    """Red is [[5, 0], [1, 2]], green [[1, 2], [3, 2]]; the masks [[1, 0], [.2, .4]] and [[0, .5], [1, .5]].

    Under the first the channels' means are 6/4 - 1 and 2.4/4, under the second 2/4 - 1 and 5/4.
    """
    reference, image = by_hand
    means = np.array([[0.5, 0.6], [-0.5, 1.25]])
    logits = means @ np.array(WEIGHT).T + BIAS
    assert logits[:, 0].tolist() == pytest.approx([0.9, -1.75])
    first = 1 / (1 + exp(-(0.9 + 1.75)))
    maps = reference.maps("scorecam", image, CLASSES)[0]
    np.testing.assert_allclose(maps[0], np.maximum(first * A0 + (1 - first) * A1, 0), atol=1e-12)
    np.testing.assert_allclose(maps[3], np.maximum((A0 + A1) / 2, 0), atol=1e-12)

    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for number, values in enumerate(reference.maps("scorecam", image, CLASSES, softmax=True)[0]):
        weights = np.exp(probabilities[:, number]) / np.exp(probabilities[:, number]).sum()
        np.testing.assert_allclose(values, np.maximum(weights[0] * A0 + weights[1] * A1, 0), atol=1e-12)

    # the variances are 3.5 and 0.5
    np.testing.assert_allclose(reference.maps("faster_scorecam", image, CLASSES, max_channels=1)[0], [np.maximum(A0, 0)] * 4, atol=1e-12)
    np.testing.assert_array_equal(reference.maps("faster_scorecam", image, CLASSES, max_channels=2)[0], maps)


def test_softmax_on_paper(by_hand: tuple[Reference, npt.NDArray[np.uint8]]) -> None:
    """dp_c/dz_j = p_c (1[c = j] - p_j), and z is linear in A."""
    reference, image = by_hand
    weight, logits = np.array(WEIGHT), np.array([0.5, 5, -1, 0])
    probabilities = np.exp(logits) / np.exp(logits).sum()
    slopes = probabilities[:, None] * (weight - probabilities @ weight) / 4
    expected = np.maximum(slopes[:, :1, None] * A0 + slopes[:, 1:, None] * A1, 0)
    np.testing.assert_allclose(reference.maps("gradcam", image, CLASSES, softmax=True)[0], expected, atol=1e-12)
    np.testing.assert_allclose(reference.maps("hirescam", image, CLASSES, softmax=True)[0], expected, atol=1e-12)
    np.testing.assert_array_equal(reference.maps("cam", image, CLASSES, softmax=True), reference.maps("cam", image, CLASSES))

    without = np.exp(logits - weight.T * [[1], [2]])  # [k, class]
    without /= without.sum(1, keepdims=True)
    drop = ((probabilities - without) / probabilities).T
    expected = np.maximum(drop[:, :1, None] * A0 + drop[:, 1:, None] * A1, 0)
    np.testing.assert_allclose(reference.maps("ablationcam", image, CLASSES, softmax=True)[0], expected, atol=1e-12)


def test_fem_on_paper() -> None:
    """One of six positions is two sigma above the mean (6 > 1 + 2 x 2.24); of six equal steps, and of a constant, none is."""
    reference = Reference(toy([[1, 0], [0, 1]], [0, 0], size=(2, 3)), "layer")
    one, steps = [[6, 0, 0], [0, 0, 0]], [[0, 1, 2], [3, 4, 5]]
    constant = [[7] * 3] * 2
    for second in (steps, constant):
        maps = reference.maps("fem", make_image(one, second), np.array([[0, 1]]))
        np.testing.assert_allclose(maps[0], [np.array(one) / 6] * 2, atol=1e-12)
    assert not reference.maps("fem", make_image(constant, steps), np.array([[0]])).any()


def test_eigen_cam_on_paper() -> None:
    """With A1 = s A0 + 6 there is one direction, (1, s) / sqrt(1 + s^2), on which A0 lies at sqrt(1 + s^2) A0."""
    network = toy([[4.0, 1.0], [-4.0, -1.0]], [0, 0])
    away, classes = A0 - A0.mean(), np.array([[0, 1]])
    rising, falling = (make_image(A0.astype(int).tolist(), (slope * A0 + 6).astype(int).tolist()) for slope in (2, -1))
    reference = Reference(network, "layer")
    np.testing.assert_allclose(reference.maps("eigencam", rising, classes)[0], [5**0.5 * away] * 2, atol=1e-12)
    # g A = (A0, A0 / 2 + ...) for the one class, the opposite for the other
    expected = [1.25**0.5 * away, -(1.25**0.5) * away]
    np.testing.assert_allclose(reference.maps("eigengradcam", rising, classes)[0], expected, atol=1e-12)
    # the same, less steep, where the second channel falls: (A0, -A0 / 4)
    expected = [(17 / 16) ** 0.5 * away, -((17 / 16) ** 0.5) * away]
    np.testing.assert_allclose(reference.maps("eigengradcam", falling, classes)[0], expected, atol=1e-12)
    # the sum of the channels falls where A0 rises
    steep = make_image([[1, -1], [0, 0]], [[4, 8], [6, 6]])  # A1 = 6 - 2 A0
    expected_one = -(5**0.5) * np.array([[1, -1], [0, 0]])
    np.testing.assert_allclose(reference.maps("eigencam", steep, classes)[0], [expected_one] * 2, atol=1e-12)


def test_constant_maps_are_zeros_never_nan() -> None:
    reference = Reference(toy(WEIGHT, BIAS), "layer")
    image = make_image([[3, 3], [3, 3]], [[0, 0], [0, 0]])
    for method in (name for name in METHODS if name not in OF_TOKENS):
        for softmax in (False, True):
            maps = reference.maps(method, image, CLASSES, softmax)
            assert np.isfinite(maps).all(), method
            assert not fuse([maps, maps]).any(), method
    dark = reference.maps("xgradcam", make_image([[0, 0], [0, 0]], [[0, 0], [0, 0]]), CLASSES)
    assert not dark.any()


def test_fused_on_paper() -> None:
    small = np.array([[[[2.0, 4.0]]]])  # scaled 0, 1; on four columns 0, 1/4, 3/4, 1
    large = np.array([[[[0.0, 1.0, 0.0, 0.0], [0.0, 5.0, 0.0, 4.0]]]])
    expected = [[0, 0.25, 0.75, 1], [0, 1, 0.75, 1]]
    np.testing.assert_allclose(fuse([small, large])[0, 0], expected, atol=1e-12)
    np.testing.assert_allclose(fuse([small, np.full((1, 1, 2, 4), 9.0)])[0, 0], [[0, 0.25, 0.75, 1]] * 2, atol=1e-12)
    peak = np.array([[[[0.0, 1.0, 0.0]]]])  # scaled before it is resized, which takes its top off
    np.testing.assert_allclose(fuse([peak, np.zeros((1, 1, 1, 4))])[0, 0], [[0, 0.625, 0.625, 0]], atol=1e-12)
    tall = np.zeros((1, 1, 3, 1))
    assert fuse([small, tall]).shape == (1, 1, 3, 2)


def test_max_pooling_sends_a_gradient_to_the_first_maximum() -> None:
    reference = Reference(toy([[1, 0], [0, 1]], [0, 0], behind=nn.MaxPool2d(2), size=(4, 4)), "layer")
    first = [[1, 2, 7, 7], [3, 0, 7, 7], [0, 0, 1, 2], [0, 0, 4, 4]]
    _, _, gradients = reference.observe(make_image(first, first), np.array([[0, 1]]))
    expected = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]) / 4
    np.testing.assert_allclose(gradients[0, 0, 0], expected, atol=1e-12)
    np.testing.assert_allclose(gradients[0, 1, 1], expected, atol=1e-12)
    assert not gradients[0, 0, 1].any()
    hires = reference.maps("hirescam", make_image(first, first), np.array([[0]]))[0, 0]
    np.testing.assert_allclose(hires, expected * first, atol=1e-12)
    # all that Grad-CAM needs is the sum: four windows' 1/4, over sixteen positions
    np.testing.assert_allclose(reference.maps("gradcam", make_image(first, first), np.array([[0]]))[0, 0], np.array(first) / 16, atol=1e-12)


@pytest.mark.parametrize("inplace", [False, True])
def test_what_follows_in_place_does_not_change_what_is_seen(inplace: bool) -> None:
    network = toy([[2, -1], [-1, 3]], [0, 0], behind=nn.ReLU(inplace))
    first, second = [[4, -1], [3, 1]], [[1, 2], [3, 2]]
    image = make_image(first, second)
    before, behind = Reference(network, "layer"), Reference(network, "behind")
    _, activations, gradients = before.observe(image, np.array([[0]]))
    np.testing.assert_allclose(activations[0], [first, second], atol=1e-12)
    np.testing.assert_allclose(gradients[0, 0, 0], [[0.5, 0], [0.5, 0.5]], atol=1e-12)
    _, activations, gradients = behind.observe(image, np.array([[0]]))
    np.testing.assert_allclose(activations[0, 0], [[4, 0], [3, 1]], atol=1e-12)
    np.testing.assert_allclose(gradients[0, 0, 0], np.full((2, 2), 0.5), atol=1e-12)
    # y = -2 + 6, without the first channel 6, without the second -2
    expected = np.maximum(-0.5 * np.array(first) + 1.5 * np.array(second), 0)
    np.testing.assert_allclose(before.maps("ablationcam", image, np.array([[1]]))[0, 0], expected, atol=1e-12)


@functools.cache
def made(head: str) -> Network:
    """Return a network of `make`, built once, for tests that do not change it."""
    return make(head=head)


@pytest.fixture(scope="module")
def images() -> npt.NDArray[np.uint8]:
    return blobs(2)


CLASS_IDS = np.array([[0, 3], [4, 1]])


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2_100"])
def test_a_linear_head_on_the_mean_makes_the_gradient_methods_one(backbone: str, images: npt.NDArray[np.uint8]) -> None:
    network = make(backbone)
    reference = Reference(network, FEATURES)
    maps = {method: reference.maps(method, images, CLASS_IDS) for method in ("cam", "gradcam", "hirescam", "xgradcam", "ablationcam")}
    positions = maps["cam"].shape[-2] * maps["cam"].shape[-1]
    assert positions == 6
    assert maps["cam"].min() < 0
    np.testing.assert_allclose(maps["gradcam"], np.maximum(maps["cam"], 0) / positions, atol=1e-12)
    np.testing.assert_allclose(maps["hirescam"], maps["gradcam"], atol=1e-12)
    np.testing.assert_allclose(maps["xgradcam"], maps["gradcam"], atol=1e-10)

    # without channel k the logit is less by W[c, k] mean(A_k)
    logits, activations, _ = reference.observe(images, CLASS_IDS)
    weight = network.classifier.weight.detach().double()[torch.from_numpy(CLASS_IDS)]  # type: ignore[union-attr,index]
    drops = weight * activations.mean((-2, -1))[:, None] / logits.gather(1, torch.from_numpy(CLASS_IDS)).abs()[..., None]
    expected = torch.einsum("nkc,nchw->nkhw", drops, activations).relu()
    np.testing.assert_allclose(maps["ablationcam"], expected, atol=1e-10)
    np.testing.assert_array_equal(reference.cam(images, CLASS_IDS, network.classifier.weight.detach()), maps["cam"])  # type: ignore[union-attr,arg-type]


def test_cam_is_refused_where_it_is_not_defined(images: npt.NDArray[np.uint8]) -> None:
    for network, layer in [(make(), "layer3"), (make(head="mlp:8"), "layer4"), (make("mobilenetv3_small_050", "original"), FEATURES)]:
        with pytest.raises(ValueError, match="spatial mean"):
            Reference(network, layer).maps("cam", images, CLASS_IDS)
    np.testing.assert_array_equal(Reference(make(), "layer4").cam(images, CLASS_IDS), Reference(make(), FEATURES).cam(images, CLASS_IDS))


def test_what_cannot_be_explained_is_refused(images: npt.NDArray[np.uint8]) -> None:
    network = make("test_resnet")
    with pytest.raises(ValueError, match="no method"):
        Reference(network, "layer4").maps("saliency", images, CLASS_IDS)
    with pytest.raises(ValueError, match="0 to 4"):
        Reference(network, "layer4").maps("gradcam", images, CLASS_IDS - 1)
    with pytest.raises(ValueError, match="does not return"):
        Reference(network, "global_pool").maps("gradcam", images, CLASS_IDS)
    with pytest.raises(ValueError, match="does not run"):
        Reference(network, "").maps("gradcam", images, CLASS_IDS)
    with pytest.raises(ValueError, match="does not reach"):
        Reference(toy(WEIGHT, BIAS, behind=Ignored()), "behind.ignored").maps("gradcam", make_image([[1]], [[1]]), CLASS_IDS)
    network.backbone.layer4[0].act1 = network.backbone.layer3[0].act1  # type: ignore[index,union-attr]
    with pytest.raises(ValueError, match="more than once"):
        Reference(network, "layer3.0.act1").maps("gradcam", images, CLASS_IDS)


def test_gradients_are_those_of_differences(images: npt.NDArray[np.uint8]) -> None:
    """A bias added to a whole channel of the layer's output changes y by the sum of the channel's gradient."""
    reference = Reference(make("test_resnet", "mlp:16"), "layer2.0.bn1")  # an in-place operation follows
    network, step = reference.network, 1e-6
    bias = network.backbone.layer2[0].bn1.bias  # type: ignore[index,union-attr]
    for softmax in (False, True):
        _, _, gradients = reference.observe(images, CLASS_IDS, softmax)
        for channel in range(0, len(bias), 7):
            shifted = []
            for change in (step, -step):
                with torch.no_grad():
                    bias[channel] += change
                    logits = Reference(network, "layer4").observe(images, CLASS_IDS)[0]
                    bias[channel] -= change
                target = logits.softmax(1) if softmax else logits
                shifted.append(target.gather(1, torch.from_numpy(CLASS_IDS)))
            slope = (shifted[0] - shifted[1]) / (2 * step)
            np.testing.assert_allclose(gradients[:, :, channel].sum((-2, -1)), slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("softmax", [False, True])
def test_ablation_is_removing_a_channel(softmax: bool, images: npt.NDArray[np.uint8]) -> None:
    """A batch norm without scale and shift of one channel gives zeros there: a way to remove it that needs no hook."""
    network = make("test_resnet", "mlp:16").double()
    reference = Reference(network, "layer2.0.bn1")
    logits, activations, _ = reference.observe(images, CLASS_IDS)
    norm, weights = network.backbone.layer2[0].bn1, []  # type: ignore[index,union-attr]
    picked = torch.from_numpy(CLASS_IDS)
    inputs = (torch.from_numpy(images).double().permute(0, 3, 1, 2) / 255 - torch.tensor([0.485, 0.456, 0.406]).double().view(3, 1, 1)) / (
        torch.tensor([0.229, 0.224, 0.225]).double().view(3, 1, 1)
    )
    with torch.no_grad():
        whole = (logits.softmax(1) if softmax else logits).gather(1, picked)
        for channel in range(activations.shape[1]):
            kept = norm.weight[channel].clone(), norm.bias[channel].clone()
            norm.weight[channel] = norm.bias[channel] = 0
            without = network(inputs)
            norm.weight[channel], norm.bias[channel] = kept
            weights.append((whole - (without.softmax(1) if softmax else without).gather(1, picked)) / whole.abs())
    expected = torch.einsum("cnk,nchw->nkhw", torch.stack(weights), activations).relu()
    assert expected.amax((-2, -1)).min() > 0
    assert relative_difference(reference.maps("ablationcam", images, CLASS_IDS, softmax), expected.numpy()) < 1e-5  # the mean is a float32


def test_only_the_head_runs_again_where_it_takes_the_layer(images: npt.NDArray[np.uint8]) -> None:
    network = make("test_resnet", "mlp:16")
    of_features, of_module, whole = (Reference(network, layer) for layer in (FEATURES, "layer4", "layer4"))
    expected = of_features.maps("ablationcam", images, CLASS_IDS)
    np.testing.assert_allclose(of_module.maps("ablationcam", images, CLASS_IDS), expected, atol=1e-12)
    seen = whole._look(images, CLASS_IDS)
    assert seen.is_features
    seen.is_features = False
    np.testing.assert_allclose(whole.maps("ablationcam", images, CLASS_IDS), expected, atol=1e-12)
    assert not Reference(network, "layer3")._look(images, CLASS_IDS).is_features


def test_one_forward_and_a_backward_a_class_serve_all_methods(images: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference(make("test_resnet"), "layer3")
    counts = {"forward": 0, "backward": 0}
    features, grad = reference.network.features, torch.autograd.grad

    def count_forward(inputs: Tensor) -> Tensor:
        counts["forward"] += 1
        return features(inputs)

    def count_backward(*arguments: Any, **options: Any) -> Any:
        counts["backward"] += 1
        return grad(*arguments, **options)

    monkeypatch.setattr(reference.network, "features", count_forward)
    monkeypatch.setattr(torch.autograd, "grad", count_backward)
    first = {method: reference.maps(method, images, CLASS_IDS) for method in (*OF_GRADIENTS, "fem", "eigencam")}
    assert counts == {"forward": 1, "backward": 2}
    reference.maps("gradcam", images, CLASS_IDS, softmax=True)
    assert counts == {"forward": 1, "backward": 4}
    reference.maps("gradcam", images, CLASS_IDS[:, ::-1])
    assert counts == {"forward": 2, "backward": 6}
    reference.maps("gradcam", images[::-1], CLASS_IDS)
    assert counts == {"forward": 3, "backward": 8}
    for method, values in first.items():
        np.testing.assert_array_equal(reference.maps(method, images, CLASS_IDS), values)


@pytest.mark.parametrize("layer", ["conv1.0", "layer1", "layer2.0.conv2", "layer4", FEATURES])
def test_a_batch_is_its_images_alone(layer: str, images: npt.NDArray[np.uint8]) -> None:
    network = make("test_resnet", "mlp:16")
    reference = Reference(network, layer)
    methods = [
        method
        for method in METHODS
        if method != "cam" and method != "scorecam" and method not in OF_TOKENS and (method not in OF_COPIES or layer == FEATURES)
    ]
    for softmax in (False, True):
        together = {method: reference.maps(method, images, CLASS_IDS, softmax, max_channels=4) for method in methods}
        for row in range(2):
            alone = Reference(network, layer)
            for method, values in together.items():
                assert values.shape[:2] == (2, 2)
                one = alone.maps(method, images[row : row + 1], CLASS_IDS[row : row + 1, 1:], softmax, max_channels=4)
                assert relative_difference(one, values[row : row + 1, 1:]) < 1e-9, (method, softmax)  # type: ignore[arg-type]


def test_maps_of_several_layers(images: npt.NDArray[np.uint8]) -> None:
    network = make("test_resnet")
    references = [Reference(network, layer) for layer in ("layer4", "layer2", FEATURES)]
    for method in ("layercam", "eigencam"):
        layers = [reference.maps(method, images, CLASS_IDS) for reference in references]
        together = fused(references, method, images, CLASS_IDS)
        assert together.shape == layers[1].shape
        assert together.min() >= 0
        assert (together.max((-2, -1)) == 1).all()
        low, high = layers[1].min((-2, -1), keepdims=True), layers[1].max((-2, -1), keepdims=True)
        assert (together >= (layers[1] - low) / (high - low)).all()


def test_relative_difference_of_nothing() -> None:
    nothing = np.zeros((1, 2, 2, 2))
    assert relative_difference(nothing.astype(np.float32), nothing) == 0
    assert relative_difference(nothing.astype(np.float32) + 1, nothing) == float("inf")


@pytest.mark.parametrize("layer", ["conv1.0", "layer2", "layer4"])
def test_eigen_maps_rise_with_what_they_are_of(layer: str, images: npt.NDArray[np.uint8]) -> None:
    """The sign of pytorch-grad-cam's maps is arbitrary. The maps are projections on the unit vector of the largest variance."""
    reference = Reference(make("test_resnet", "mlp:16"), layer)
    _, activations, gradients = reference.observe(images, CLASS_IDS)
    products = {"eigencam": activations[:, None].expand_as(gradients), "eigengradcam": activations[:, None] * gradients}
    for method, values in products.items():
        maps = torch.from_numpy(reference.maps(method, images, CLASS_IDS))
        centred = values - values.mean((-2, -1), keepdim=True)
        assert ((maps * centred.sum(2)).sum((-2, -1)) > 0).all()
        assert maps.mean((-2, -1)).abs().max() < 1e-9 * maps.abs().max()
        columns = centred.flatten(3)
        largest = torch.linalg.eigvalsh(columns @ columns.mT)[..., -1]
        torch.testing.assert_close(maps.square().sum((-2, -1)), largest)
