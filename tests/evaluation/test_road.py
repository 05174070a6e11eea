"""ROAD: imputed pixels equal those computed by hand, and those of pytorch-grad-cam, which uses the authors' code."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from tlcli.evaluation.perturbation import ranking
from tlcli.evaluation.road import NOISE, SHARES, impute, noise_for, road, solve_missing


def test_a_corner_is_filled_in_from_its_three_neighbours() -> None:
    """Direct neighbours weigh 1/6, the diagonal one 1/12, together 5/12: (2 a + 2 b + c) / 5."""
    image = np.zeros((3, 4, 3), np.uint8)
    image[0, 1], image[1, 0], image[1, 1] = (10, 0, 50), (20, 0, 50), (30, 100, 50)
    missing = np.zeros((3, 4), bool)
    missing[0, 0] = True
    np.testing.assert_allclose(solve_missing(image, missing), [[18, 20, 50]])


def test_two_missing_neighbours_are_solved_together() -> None:
    """The middle two of a row of four are x = (0 + y) / 2 and y = (x + 90) / 2, so 30 and 60."""
    image = np.array([[[0] * 3, [7] * 3, [7] * 3, [90] * 3]], np.uint8)
    missing = np.array([[False, True, True, False]])
    np.testing.assert_allclose(solve_missing(image, missing), [[30] * 3, [60] * 3])


def test_a_slope_is_continued_through_any_hole() -> None:
    """Each value of a slope is the mean of its neighbours, so the slope is the solution for any hole that does not touch the edge."""
    down, across = np.mgrid[:20, :24]
    image = np.stack([3 * down, 5 * across, 2 * down + 4 * across], -1).astype(np.uint8)
    missing = np.zeros((20, 24), bool)
    missing[1:-1, 1:-1] = np.random.default_rng(0).random((18, 22)) < 0.8
    nothing = np.zeros(image.shape)
    painted = np.where(missing[..., None], 255, image).astype(np.uint8)
    np.testing.assert_array_equal(impute(painted, missing, nothing), image)


def test_known_pixels_stay_and_noise_is_added_to_the_others() -> None:
    image = np.full((40, 40, 3), 128, np.uint8)
    missing = np.zeros((40, 40), bool)
    missing[:20] = True
    filled = impute(image, missing, noise_for(image.shape, seed=3, number=1))
    assert (filled[20:] == 128).all()
    assert np.std(filled[:20].astype(float)) == pytest.approx(NOISE, rel=0.1)
    np.testing.assert_array_equal(filled, impute(image, missing, noise_for(image.shape, seed=3, number=1)))
    assert (filled != impute(image, missing, noise_for(image.shape, seed=3, number=2))).any()


def test_nothing_missing_and_everything_missing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    np.testing.assert_array_equal(impute(image, np.zeros((5, 6), bool), np.ones(image.shape)), image)
    with pytest.raises(ValueError, match="every pixel is missing"):
        solve_missing(image, np.ones((5, 6), bool))


def score(images: Iterable[np.ndarray]) -> np.ndarray:  # type: ignore[type-arg]
    """Score bright specks in the upper half."""
    return np.array([(image[:10] > 200).mean() for image in images])


def test_a_map_of_what_counts_beats_its_opposite() -> None:
    image = np.full((20, 20, 3), 30, np.uint8)
    image[2:10:2, 1::2] = 255
    good = (image[..., 0] == 255).astype(np.float32)
    nothing = np.zeros(image.shape)
    found = road(image, ranking(good), score, nothing)
    assert found.morf.max() < 0.01 < score([image])[0]
    assert found.lerf[0] == score([image])[0]
    opposite = road(image, ranking(-good), score, nothing)
    assert found.combined > 0.05 > opposite.combined
    assert found.combined == pytest.approx(np.mean(found.lerf - found.morf) / 2)


@pytest.fixture
def torch():  # type: ignore[no-untyped-def]
    pytest.importorskip("pytorch_grad_cam")
    return pytest.importorskip("torch")


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.95])
def test_the_same_as_pytorch_grad_cam_fills_in(share: float, torch) -> None:  # type: ignore[no-untyped-def]
    from pytorch_grad_cam.metrics.road import NoisyLinearImputer

    rng = np.random.default_rng(int(100 * share))
    image = rng.integers(0, 256, (19, 23, 3)).astype(np.uint8)
    missing = rng.random((19, 23)) < share
    theirs = NoisyLinearImputer(noise=0.0)(
        torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)), torch.from_numpy(np.float32(~missing))
    )
    np.testing.assert_allclose(solve_missing(image, missing), theirs.numpy().transpose(1, 2, 0)[missing], atol=1e-3)


def test_the_same_metric_as_pytorch_grad_cam(torch, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Set their noise to 0, and shift their percentiles by half a pixel's rank, so that both remove the same pixels."""
    from pytorch_grad_cam.metrics import road as peer

    monkeypatch.setattr(peer.NoisyLinearImputer.__init__, "__defaults__", (0.0, peer.neighbors_weights))
    rng = np.random.default_rng(1)
    side = 41
    image = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
    values = rng.permutation(side * side).reshape(side, side).astype(np.float32) / (side * side)
    weight = torch.from_numpy(rng.normal(size=(3, side, side)).astype(np.float32))

    class Weighted(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, batch):  # type: ignore[no-untyped-def]
            return (batch * weight).mean((1, 2, 3))[:, None]

    def ours(images: Iterable[np.ndarray]) -> np.ndarray:  # type: ignore[type-arg]
        return np.array([(torch.from_numpy(one.transpose(2, 0, 1).astype(np.float32)) * weight).mean() for one in images])

    tensor = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))[None]
    targets = [lambda output: output[0]]
    pixels = side * side
    percentiles = [100 * (pixels - round(share * pixels) - 0.5) / (pixels - 1) for share in SHARES]
    theirs = peer.ROADCombined(percentiles)(tensor, values[None], targets, Weighted())
    found = road(image, ranking(values), ours, np.zeros(image.shape))
    assert abs(found.combined) > 0.05
    assert found.combined == pytest.approx(float(theirs[0]), abs=0.005), "but for rounding to 8 bits"
    for percentile, morf in zip(percentiles, found.morf, strict=True):
        one = peer.ROADMostRelevantFirst(percentile)(tensor, values[None], targets, Weighted(), return_diff=False)
        assert morf == pytest.approx(float(one[0]), abs=0.01)
