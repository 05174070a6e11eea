"""Maps of `explain` equal the formulas, implemented again in PyTorch one channel at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.contract.maps.test_eigencam import decomposed
from tests.helpers.contract.small_graph import CHANNELS, CLASSES, OUTSIDE, PREPROCESSING, SILENT, STEADY, SmallNetwork, make_images
from tlcli.contract.errors import RequestError
from tlcli.contract.maps.fusion import fuse
from tlcli.contract.model.explain import channels_to_score, explain, explain_in_steps


def lively(network: SmallNetwork, images: np.ndarray, layer: str) -> np.ndarray:
    """Return the channels that vary over the positions, bool `[N, c]`."""
    with torch.no_grad():
        activations = network.forward(images)[0][layer].flatten(2)
    return (activations.amax(2) > activations.amin(2)).numpy()


TARGETS = (0, 4, -1, -CLASSES)


def naive_score_cam(network: SmallNetwork, image: np.ndarray, layer: str, class_id: int, softmax: bool, channels: list[int]) -> np.ndarray:
    """Compute Score-CAM by algorithm 1 of Wang et al., with a pass for each channel."""
    middle = 255 * torch.tensor(PREPROCESSING.mean, dtype=torch.float64)
    with torch.no_grad():
        activations = network.forward(image[None])[0][layer][0].double()[channels]
        scores = []
        for activation in activations:
            mask = functional.interpolate(activation[None, None], image.shape[:2], mode="bilinear", align_corners=False)[0, 0]
            extent = mask.max() - mask.min()
            mask = (mask - mask.min()) / extent if activation.max() > activation.min() else torch.zeros_like(mask)
            masked = middle + (torch.from_numpy(image).double() - middle) * mask[..., None]
            logits = network.forward((masked + 0.5).floor().byte().numpy()[None])[1][0]
            scores.append((logits.softmax(0) if softmax else logits)[class_id].double())
        weights = torch.stack(scores).softmax(0)
        return torch.einsum("c,chw->hw", weights, activations).relu().numpy()


def most_varied(network: SmallNetwork, image: np.ndarray, layer: str, count: int) -> list[int]:
    with torch.no_grad():
        variances = network.forward(image[None])[0][layer][0].double().flatten(1).var(1, correction=0)
    return variances.argsort(descending=True)[:count].tolist()


@pytest.mark.parametrize("softmax", [False, True])
def test_score_cam_is_a_pass_for_each_channel(softmax: bool) -> None:
    network, images = SmallNetwork(), make_images(2)
    answer = explain(network, images, TARGETS, ["scorecam"], softmax=softmax)  # type: ignore[arg-type]
    assert answer.classes is not None
    maps = answer.maps["scorecam"]
    assert (maps.shape, maps.dtype) == ((2, len(TARGETS), 5, 4), np.float32)
    for n, image in enumerate(images):
        for k, class_id in enumerate(answer.classes[n].tolist()):
            expected = naive_score_cam(network, image, "far", class_id, softmax, list(range(CHANNELS["far"])))
            np.testing.assert_allclose(maps[n, k], expected, atol=1e-4 * expected.max())
    assert np.abs(maps[:, 0] - maps[:, 1]).max() > 1e-2 * maps.max() or softmax, "classes differ"


@pytest.mark.parametrize(("method", "asked", "count"), [("faster_scorecam", None, 10), ("faster_scorecam", 4, 4), ("scorecam", 7, 7)])
def test_fewer_channels_are_those_that_vary_most_in_each_image(method: str, asked: int | None, count: int) -> None:
    network, images = SmallNetwork(), make_images(3)
    chosen = [most_varied(network, image, "far", count) for image in images]
    assert len({tuple(sorted(channels)) for channels in chosen}) > 1, "images that do not tell a union from a choice of each"
    answer = explain(network, images, (2,), [method], max_channels=asked)  # type: ignore[arg-type]
    for image, channels, maps in zip(images, chosen, answer.maps[method], strict=True):
        expected = naive_score_cam(network, image, "far", 2, False, channels)
        np.testing.assert_allclose(maps[0], expected, atol=1e-4 * expected.max())
    assert sum(map(len, network.batches[1:])) == 3 * count


def test_more_channels_than_there_are_means_all() -> None:
    network, images = SmallNetwork(), make_images(1)
    few, all_of_them = (explain(network, images, (1,), ["scorecam"], max_channels=count).maps for count in (1000, None))  # type: ignore[arg-type]
    np.testing.assert_array_equal(few["scorecam"], all_of_them["scorecam"])


@pytest.mark.parametrize("softmax", [False, True])
def test_eigen_maps_are_those_of_the_layers_evidence(softmax: bool) -> None:
    network, images = SmallNetwork(), make_images(2)
    answer = explain(network, images, TARGETS, ["eigencam", "eigengradcam"], softmax=softmax)  # type: ignore[arg-type]
    evidence = network.run(images, TARGETS, (), ("features", "gradients"), softmax).evidence
    for n in range(2):
        for k in range(len(TARGETS)):
            features, gradients = evidence["features"][n], evidence["gradients"][n, k]
            np.testing.assert_allclose(answer.maps["eigencam"][n, k], decomposed(features), atol=1e-5)
            np.testing.assert_allclose(answer.maps["eigengradcam"][n, k], decomposed(features * gradients), atol=1e-5)
    assert len(network.batches) == 2, "one run for both"


def test_a_batch_gives_what_its_images_give_alone() -> None:
    images = make_images(4)
    targets = np.array([[0, -1], [1, -2], [5, 0], [-6, 3]])
    methods = ("gradcam", *OUTSIDE)
    together = explain(SmallNetwork(), images, targets, methods, batch_size=7)  # type: ignore[arg-type]
    assert tuple(together.maps) == methods
    assert together.evidence == {}
    for n in range(4):
        alone = explain(SmallNetwork(), images[n : n + 1], targets[n : n + 1], methods)  # type: ignore[arg-type]
        np.testing.assert_array_equal(together.classes[n], alone.classes[0])  # type: ignore[index]
        for method in methods:
            largest = np.abs(alone.maps[method]).max()
            np.testing.assert_allclose(together.maps[method][n], alone.maps[method][0], atol=1e-5 * largest, err_msg=method)


def test_no_more_images_are_run_at_a_time_than_was_said_and_batches_are_full() -> None:
    network, images = SmallNetwork(), make_images(3)
    explain(network, images, (0,), ["scorecam"], batch_size=5)  # type: ignore[arg-type]
    asked, blank, *masked = map(len, network.batches)
    passes = int(lively(network, images, "far").sum())
    assert (asked, blank) == (3, 1)
    assert masked == [5] * (passes // 5) + [passes % 5] * (passes % 5 > 0)


def test_channels_that_are_the_same_everywhere_share_one_pass() -> None:
    network, images = SmallNetwork(), make_images(3)
    found = lively(network, images, "far")
    assert not found[:, [SILENT, STEADY]].any()
    explain(network, images, (0,), ["scorecam"])  # type: ignore[arg-type]
    masked = np.concatenate(network.batches[1:])
    assert (masked == masked[0, 0, 0]).all(axis=(1, 2, 3)).sum() == 1
    assert len(masked) == 1 + found.sum()


@pytest.mark.parametrize("layers", [("far",), ("near", "far")])
def test_constant_activations_give_zeros_or_a_constant_and_never_nan(layers: tuple[str, ...]) -> None:
    network = SmallNetwork(layers, constant=True)
    answer = explain(network, make_images(2), TARGETS, network.description.methods)  # type: ignore[arg-type]
    for name, maps in answer.maps.items():
        assert np.isfinite(maps).all(), name
        assert (np.ptp(maps, axis=(2, 3)) == 0).all(), name
        if name.startswith("eigen") or (len(layers) > 1 and "@" not in name):
            assert (maps == 0).all(), name


def test_several_layers_are_fused_and_each_is_computed_once() -> None:
    network, images = SmallNetwork(("near", "far")), make_images(2)
    names = network.description.methods
    answer = explain(network, images, TARGETS, names)  # type: ignore[arg-type]
    assert tuple(answer.maps) == names
    looked_through = [int(lively(network, images, layer).sum()) + 1 for layer in ("near", "far")]  # scorecam of each layer
    looked_through += [2 * 10, 2 * 10]  # faster_scorecam, which chooses no constant channel
    assert sum(map(len, network.batches[1:])) == sum(looked_through)
    for method in OUTSIDE:
        near, far = answer.maps[f"{method}@near"], answer.maps[f"{method}@far"]
        assert (near.shape[2:], far.shape[2:]) == ((10, 8), (5, 4))
        np.testing.assert_array_equal(answer.maps[method], fuse([near, far]))
        alone = explain(network, images, TARGETS, [method])  # type: ignore[arg-type]
        np.testing.assert_allclose(alone.maps[method], answer.maps[method], atol=1e-6)
    expected = naive_score_cam(network, images[0], "near", 0, False, list(range(CHANNELS["near"])))
    np.testing.assert_allclose(answer.maps["scorecam@near"][0, 0], expected, atol=1e-4 * expected.max())


def test_what_needs_no_more_than_the_graph_is_one_run() -> None:
    network = SmallNetwork()
    for methods in ((), ("gradcam",), ("eigencam", "gradcam")):
        network.batches.clear()
        steps = explain_in_steps(network, make_images(2), (0,), methods)  # type: ignore[arg-type]
        with pytest.raises(StopIteration) as end:
            next(steps)
        assert tuple(end.value.value.maps) == methods
        assert len(network.batches) == 1


@pytest.mark.parametrize(
    ("methods", "max_channels", "expected"),
    [
        ((), None, 0),
        (("gradcam@far", "eigencam"), None, 0),
        (("scorecam@far",), None, 30),
        (("scorecam@far",), 100, 30),
        (("faster_scorecam@near",), None, 10),
        (("faster_scorecam@near",), 3, 3),
        (("scorecam", "scorecam@far"), None, 42),
        (("scorecam", "faster_scorecam"), 11, 44),
        (("scorecam@near", "gradcam@far", "faster_scorecam@far"), None, 22),
    ],
)
def test_progress_is_told_up_to_the_number_that_was_foretold(methods: tuple[str, ...], max_channels: int | None, expected: int) -> None:
    network, told = SmallNetwork(("near", "far")), list[int]()
    assert channels_to_score(network.description, methods, max_channels) == expected
    explain(network, make_images(2), (0,), methods, max_channels=max_channels, batch_size=4, advance=told.append)  # type: ignore[arg-type]
    assert sum(told) == 2 * expected
    assert len(told) >= expected / 4


def test_what_progress_raises_ends_the_work() -> None:
    network = SmallNetwork()

    def stop(settled: int) -> None:
        if len(network.batches) == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        explain(network, make_images(2), (0,), ["scorecam"], batch_size=2, advance=stop)  # type: ignore[arg-type]
    assert len(network.batches) == 4


def test_images_of_another_size_where_the_model_takes_them() -> None:
    network, images = SmallNetwork(), make_images(1, height=56, width=48)
    answer = explain(network, images, (1,), OUTSIDE)  # type: ignore[arg-type]
    assert {maps.shape for maps in answer.maps.values()} == {(1, 1, 7, 6)}
    expected = naive_score_cam(network, images[0], "far", 1, False, list(range(CHANNELS["far"])))
    np.testing.assert_allclose(answer.maps["scorecam"][0, 0], expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"methods": ["lime"]},
            "model 'small' has no map method 'lime'; it has: gradcam, eigencam, eigengradcam, scorecam, faster_scorecam",
        ),
        ({"methods": ["scorecam", "scorecam@far"]}, "has no map method 'scorecam@far'"),
        ({"methods": ["gradcam"], "max_channels": 5}, "max_channels 5: only scorecam and faster_scorecam take it; requested: gradcam"),
        ({"max_channels": 5}, "requested: no map"),
        ({"methods": ["scorecam"], "max_channels": -1}, "max_channels -1: expected 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(arguments: dict[str, Any], message: str) -> None:
    network = SmallNetwork()
    with pytest.raises(RequestError, match=message):
        explain(network, make_images(1), (0,), **arguments)  # type: ignore[arg-type]
    assert network.batches == []
