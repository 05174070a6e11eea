"""Validation split that keeps groups together, stratified by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_STEPS = 400_000
"""Approximate number of pairs of a group and a class to visit, over all attempts and rounds."""

_MAX_ATTEMPTS, _MAX_ROUNDS = 32, 8


_NEGLIGIBLE = 1e-4
"""Mean squared relative deviation of a class, 1 %, below which no further order is tried."""


class UnsplittableError(Exception):
    """No split of the groups was found in which both parts have a class.

    label: the class. groups: number of its groups.
    """

    def __init__(self, label: int, groups: int) -> None:
        super().__init__(label, groups)
        self.label = label
        self.groups = groups


def split_groups(groups: Sequence[str], labels: npt.NDArray[np.int64], fraction: float, seed: int) -> npt.NDArray[np.bool_]:
    """Choose groups for validation, so that each class has about `fraction` of its images there.

    Minimises the sum over classes of the squared relative deviation, `((v_c - t_c) / t_c)^2` with `v_c` validation images and
    `t_c = max(1, fraction * n_c)`. Groups are taken greedily in a random order, then moved while that helps; the best of several orders is
    kept. Every class is in both parts. The result depends on the seed and the groups, not on the order of the images.

    Args:
        groups: group of each image.
        labels: class of each image, int64 `[n]`; with several labels per image, 1 for each of its classes, int64 `[n, C]`.
        fraction: fraction of the images for validation, between 0 and 1.
        seed: seed of the orders.

    Returns:
        True for each validation image, `[n]`.

    Raises:
        UnsplittableError: a class has a single group, or its groups cannot be divided.
    """
    names = sorted(set(groups))
    number = {name: index for index, name in enumerate(names)}
    indices = np.fromiter((number[group] for group in groups), dtype=np.int64, count=len(groups))
    problem = _Problem.of(indices, labels, len(names), fraction)
    lone = next((label for label, count in enumerate(problem.groups_of_class) if count == 1), None)
    if lone is not None:
        raise UnsplittableError(lone, 1)
    pairs = sum(map(len, problem.contents))
    attempts = max(1, min(_MAX_ATTEMPTS, _STEPS // max(pairs, 1)))
    best: _Attempt | None = None
    for attempt in range(attempts):
        order = np.random.default_rng([seed, attempt]).permutation(len(names)).tolist()
        candidate = _Attempt(problem)
        candidate.fill(order)
        if best is None or candidate.cost() < best.cost():
            best = candidate
        if best.cost() < _NEGLIGIBLE * len(problem.targets):
            break
    assert best is not None
    uncovered = best.uncovered()
    if uncovered is not None:
        raise UnsplittableError(uncovered, problem.groups_of_class[uncovered])
    return np.array(best.chosen, dtype=np.bool_)[indices]


@dataclass(frozen=True, eq=False)
class _Problem:
    """Numbers of images.

    contents: for each group, its classes and the number of images of each. targets: validation images wanted of each class.
    groups_of_class: number of groups with images of each class.
    """

    contents: list[list[tuple[int, int]]]
    targets: list[float]
    groups_of_class: list[int]

    @classmethod
    def of(cls, groups: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], count: int, fraction: float) -> _Problem:
        if labels.ndim == 2:
            classes = labels.shape[1]
            of_image, labels = np.nonzero(labels)
            groups = groups[of_image]
        else:
            classes = int(labels.max(initial=-1)) + 1
        pairs, images = np.unique(groups * classes + labels, return_counts=True)
        contents: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        for pair, size in zip(pairs.tolist(), images.tolist(), strict=True):
            contents[pair // classes].append((pair % classes, size))
        totals = np.bincount(labels, minlength=classes)
        return cls(
            contents,
            [max(1.0, fraction * total) for total in totals.tolist()],
            np.bincount(pairs % classes, minlength=classes).tolist(),
        )


class _Attempt:
    """Choice of groups. chosen: True for each validation group."""

    def __init__(self, problem: _Problem) -> None:
        self._problem = problem
        self.chosen = [False] * len(problem.contents)
        self._images = [0] * len(problem.targets)
        self._groups = [0] * len(problem.targets)

    def fill(self, order: Sequence[int]) -> None:
        """Choose groups in an order, add those that classes without validation images need, and move groups while that helps."""
        for group in order:
            self._move_if_better(group)
        for label, count in enumerate(self._problem.groups_of_class):
            if count and not self._groups[label]:
                self._cover(label, order)
        rounds = max(1, min(_MAX_ROUNDS, _STEPS // max(len(order), 1)))
        for _ in range(rounds):
            if sum(self._move_if_better(group) for group in order) == 0:
                break

    def cost(self) -> float:
        """Return the deviation from the targets; infinite if a class lacks validation images."""
        if self.uncovered() is not None:
            return float("inf")
        return sum(((images - target) / target) ** 2 for images, target in zip(self._images, self._problem.targets, strict=True))

    def uncovered(self) -> int | None:
        """Return a class without validation images; None if there is none."""
        return next((label for label, total in enumerate(self._problem.groups_of_class) if total and not self._groups[label]), None)

    def _move_if_better(self, group: int) -> bool:
        if self._is_movable(group) and self._change(group) < -1e-12:
            self._move(group)
            return True
        return False

    def _is_movable(self, group: int) -> bool:
        """Return True if each class of a group keeps another group in the part that the group leaves."""
        total = self._problem.groups_of_class
        if self.chosen[group]:
            return all(self._groups[label] > 1 for label, _ in self._problem.contents[group])
        return all(total[label] - self._groups[label] > 1 for label, _ in self._problem.contents[group])

    def _change(self, group: int) -> float:
        """Return the change of the cost if a group moves to the other part."""
        sign = -1 if self.chosen[group] else 1
        change = 0.0
        for label, size in self._problem.contents[group]:
            target = self._problem.targets[label]
            now, then = self._images[label] - target, self._images[label] + sign * size - target
            change += (then * then - now * now) / (target * target)
        return change

    def _move(self, group: int) -> None:
        sign = -1 if self.chosen[group] else 1
        self.chosen[group] = not self.chosen[group]
        for label, size in self._problem.contents[group]:
            self._images[label] += sign * size
            self._groups[label] += sign

    def _cover(self, label: int, order: Sequence[int]) -> None:
        holding = [group for group in order if any(own == label for own, _ in self._problem.contents[group]) and self._is_movable(group)]
        if holding:
            self._move(min(holding, key=self._change))
