"""Splits that keep groups together, compared with the best of all splits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tlcli.training.data.label_files.group_split import UnsplittableError, split_groups


def deviation(labels: np.ndarray, is_val: np.ndarray, fraction: float) -> float:  # type: ignore[type-arg]
    """Return the sum over classes of the squared relative deviation; infinite if a part lacks a class."""
    total = np.bincount(labels)
    val = np.bincount(labels[is_val], minlength=len(total))
    if (val == 0).any() or (val == total).any():
        return float("inf")
    target = np.maximum(1, fraction * total)
    return float((((val - target) / target) ** 2).sum())


@pytest.mark.parametrize("case", range(12))
def test_the_split_is_as_stratified_as_the_best_of_all_or_nearly(case: int) -> None:
    rng = np.random.default_rng(case)
    count = int(rng.integers(6, 12))
    groups = rng.integers(0, count, 80)
    labels = rng.integers(0, 3, 80)
    names = [f"g{group}" for group in groups]
    ours = deviation(labels, split_groups(names, labels, 0.25, case), 0.25)
    every = (np.isin(groups, np.flatnonzero(chosen)) for chosen in itertools.product((False, True), repeat=count))
    best = min(deviation(labels, is_val, 0.25) for is_val in every)
    assert ours <= best + 0.05


def test_no_group_is_divided_and_every_class_is_in_both_parts() -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 400, 5000)
    labels = rng.choice(50, 5000, p=np.arange(50, 0, -1) / np.arange(50, 0, -1).sum())
    is_val = split_groups([str(group) for group in groups], labels, 0.2, 0)
    assert not set(groups[is_val]) & set(groups[~is_val])
    assert set(labels[is_val]) == set(labels[~is_val]) == set(range(50))
    assert is_val.mean() == pytest.approx(0.2, abs=0.01)
    shares = np.bincount(labels[is_val], minlength=50) / np.bincount(labels)
    assert np.abs(shares - 0.2).mean() < 0.05


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_the_images() -> None:
    rng = np.random.default_rng(2)
    groups, labels = rng.integers(0, 30, 300), rng.integers(0, 3, 300)
    names = [str(group) for group in groups]
    first = split_groups(names, labels, 0.2, 5)
    order = rng.permutation(300)
    again = split_groups([names[index] for index in order], labels[order], 0.2, 5)
    assert (first[order] == again).all()
    assert (first != split_groups(names, labels, 0.2, 6)).any()


def test_a_class_with_one_group_is_named() -> None:
    with pytest.raises(UnsplittableError) as caught:
        split_groups(["a", "b", "c", "c"], np.array([0, 0, 1, 1]), 0.5, 0)
    assert (caught.value.label, caught.value.groups) == (1, 1)


def test_groups_that_cannot_be_divided_are_refused() -> None:
    """Three classes in pairs of three groups: whichever part has one group, the other lacks nothing, but one group lacks a class."""
    with pytest.raises(UnsplittableError) as caught:
        split_groups(["a", "a", "b", "b", "c", "c"], np.array([0, 1, 1, 2, 2, 0]), 0.4, 0)
    assert caught.value.groups == 2


def test_a_million_images_are_divided_in_seconds() -> None:
    import time

    labels = np.random.default_rng(0).integers(0, 100, 200_000)
    groups = [str(number // 5) for number in range(200_000)]
    began = time.process_time()
    is_val = split_groups(groups, labels, 0.2, 0)
    assert time.process_time() - began < 10
    assert is_val.mean() == pytest.approx(0.2, abs=0.001)
