"""The pointing game and the energy inside the box, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tlcli.evaluation.baselines import centre_map, random_map
from tlcli.evaluation.localisation import energy_inside, points_at


def spot(side: int, row: int, column: int) -> np.ndarray:  # type: ignore[type-arg]
    values = np.zeros((side, side), np.float32)
    values[row, column] = 1
    return values


@pytest.mark.parametrize(("side", "margin"), [(224, 15), (448, 30), (112, 7)])
def test_a_point_counts_up_to_fifteen_pixels_of_224_beside_the_object(side: int, margin: int) -> None:
    region = np.zeros((side, side), bool)
    region[40:60, 40:60] = True
    assert points_at(spot(side, 50, 50), region)
    assert points_at(spot(side, 50, 59 + margin), region)
    assert not points_at(spot(side, 50, 59 + margin + 1), region)
    assert points_at(spot(side, 40 - margin, 50), region)
    assert not points_at(spot(side, 40 - margin, 40 - margin), region), "the distance is along the straight line"


def test_of_equal_points_the_one_in_their_middle_counts() -> None:
    """Enlarging leaves a plateau in a corner of the map; the result must not depend on the corner."""
    side = 224
    for rows, columns in ((slice(0, 61), slice(0, 61)), (slice(-61, None), slice(-61, None))):
        values = np.zeros((side, side), np.float32)
        values[rows, columns] = 1
        region = np.zeros((side, side), bool)
        region[30 if rows.start == 0 else side - 31, 30 if rows.start == 0 else side - 31] = True
        assert points_at(values, region)


def test_a_constant_map_points_at_nothing() -> None:
    assert not points_at(np.zeros((20, 20), np.float32), np.ones((20, 20), bool))


def test_energy_is_the_positive_share_inside() -> None:
    region = np.zeros((2, 3), bool)
    region[0, :2] = True
    assert energy_inside(np.array([[1, 2, 3], [4, 0, 0]], np.float32), region) == pytest.approx(3 / 10)
    assert energy_inside(np.array([[1, -2, 3], [-4, 0, 0]], np.float32), region) == pytest.approx(1 / 4)
    assert energy_inside(np.ones((2, 3), np.float32), region) == pytest.approx(2 / 6)
    assert energy_inside(-np.ones((2, 3), np.float32), region) == 0


def test_a_mask_of_any_form_is_a_region() -> None:
    ring = np.hypot(*(np.mgrid[:100, :100] - 49.5))
    region = (ring > 30) & (ring < 40)
    assert not points_at(spot(100, 50, 50), region)
    assert points_at(spot(100, 50, 85), region)


def test_the_centre_map_points_at_the_centre_and_the_random_one_anywhere() -> None:
    region = np.zeros((100, 200), bool)
    region[49:51, 99:101] = True
    assert points_at(centre_map(100, 200), region)
    assert energy_inside(centre_map(100, 200), region) > 2 * region.mean()
    np.testing.assert_array_equal(random_map(7, 7, seed=0, number=5), random_map(7, 7, seed=0, number=5))
    assert len({random_map(7, 7, seed=0, number=number).argmax() for number in range(40)}) > 10
