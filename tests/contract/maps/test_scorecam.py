"""Masked images equal PyTorch's arithmetic; constant channels share one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.helpers.contract.small_graph import make_images
from tlcli.contract.errors import RequestError
from tlcli.contract.maps.scorecam import check_max_channels, mask_images, score_cam

MEAN = (0.5, 0.4, 0.3)


def masked(image: np.ndarray, activation: np.ndarray) -> np.ndarray:
    """Compute the masked image in float64, not rounded."""
    mask = functional.interpolate(
        torch.from_numpy(activation.astype(np.float64))[None, None], image.shape[:2], mode="bilinear", align_corners=False
    )[0, 0].numpy()
    mask = (mask - mask.min()) / (mask.max() - mask.min())
    middle = 255 * np.array(MEAN)
    return middle + (image - middle) * mask[..., None]


@pytest.mark.parametrize("size", [(7, 7), (5, 9), (40, 32), (20, 16), (1, 2)])
def test_a_masked_image_is_the_normalised_one_times_the_mask(size: tuple[int, int]) -> None:
    images = make_images(3)
    activations = np.random.default_rng(5).normal(3, 10, (3, *size)).astype(np.float32)
    found = mask_images(images, activations, MEAN)
    assert (found.shape, found.dtype) == (images.shape, np.uint8)
    for image, activation, one in zip(images, activations, found, strict=True):
        expected = masked(image, activation)
        assert np.abs(one - expected).max() < 0.5 + 1e-3
    # The mask spans all of [0, 1], so where it is 1 the image is unchanged.
    assert (np.abs(found.astype(int) - images) == 0).any()


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-40, 1e30])
def test_a_channel_that_is_the_same_everywhere_leaves_the_mean_colour(value: float) -> None:
    found = mask_images(make_images(1), np.full((1, 4, 4), value, np.float32), MEAN)
    assert (found == np.array([128, 102, 77])).all()  # 127.5, 102 and 76.5: a half is rounded up


def test_ranges_near_the_smallest_float_are_scaled_too() -> None:
    ramp = np.linspace(0, 1, 16, dtype=np.float64).reshape(1, 4, 4)
    usual, tiny = (mask_images(make_images(1), (ramp * scale).astype(np.float32), MEAN) for scale in (1.0, 1e-39))
    assert np.abs(usual.astype(int) - tiny).max() <= 1


def test_the_images_are_left_as_they_are() -> None:
    images = make_images(1)
    kept, activations = images.copy(), np.random.default_rng(0).normal(size=(1, 3, 3)).astype(np.float32)
    kept_activations = activations.copy()
    mask_images(images, activations, MEAN)
    np.testing.assert_array_equal(images, kept)
    np.testing.assert_array_equal(activations, kept_activations)


def test_scores_far_apart_give_all_the_weight_to_one_channel() -> None:
    features = np.random.default_rng(6).uniform(0, 1, (1, 3, 4, 4)).astype(np.float32)
    worth = iter([0.0, 5000.0, -5000.0])

    def score(images: np.ndarray) -> np.ndarray:
        return np.array([[next(worth)] for _ in images], np.float32)

    steps = score_cam(score, make_images(1), features, np.array([[0]]), MEAN, None, 2)
    assert [next(steps), next(steps)] == [2, 1]
    with pytest.raises(StopIteration) as end:
        next(steps)
    np.testing.assert_allclose(end.value.value[0, 0], features[0, 1], rtol=1e-6)


def test_max_channels_belongs_to_score_cam() -> None:
    for names in (("scorecam",), ("gradcam", "faster_scorecam@layer3")):
        check_max_channels(4, names)
        check_max_channels(None, ("gradcam",))
        with pytest.raises(RequestError, match="max_channels 0: expected 1 or more"):
            check_max_channels(0, names)
    with pytest.raises(RequestError, match=r"^max_channels 4: only scorecam and faster_scorecam take it; requested: gradcam, cam$"):
        check_max_channels(4, ("gradcam", "cam"))
