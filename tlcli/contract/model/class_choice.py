"""Conversion of the classes that users name, as labels, ids or ranks, to targets of the graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tlcli.contract.errors import RequestError
from tlcli.contract.model.description import Description
from tlcli.contract.model.labels import LabelIndex

FIRST_RANKED = -1
"""Target for the class with the highest score; -r is the target for the class of rank r."""


def class_targets(classes: Iterable[str | int], labels: Sequence[str], where: str) -> tuple[int, ...]:
    """Convert classes to targets: the class id, or -r for the class of rank r.

    Args:
        classes: labels, ids from 0, or ranks -1, -2, ...; a string is matched against the labels first, then parsed as a number. If
            empty, the result is rank -1.
        labels: labels of the model, in the order of its class ids.
        where: name of the flag or argument, for error messages.

    Raises:
        RequestError: the model does not have a class, or several of its classes share a label.
    """
    index = LabelIndex(labels)
    targets = tuple(_target(name, labels, index, where) for name in classes)
    return targets or (FIRST_RANKED,)


def chosen_targets(classes: Iterable[str | int], description: Description, where: str) -> tuple[int, ...]:
    """Convert classes to targets like `class_targets`, but to none if a model with several labels per image explains those it assigns.

    Raises:
        RequestError: see `class_targets`.
    """
    chosen = tuple(classes)
    return () if description.task == "multi-label" and not chosen else class_targets(chosen, description.labels, where)


def _target(name: str | int, labels: Sequence[str], index: LabelIndex, where: str) -> int:
    ids = index.find(name) if isinstance(name, str) else []
    if len(ids) > 1:
        raise RequestError(f"{where} {name!r:.60}: {len(ids)} classes have this label: use one of the ids {', '.join(map(str, ids))}")
    if ids:
        return ids[0]
    is_number = isinstance(name, int) and not isinstance(name, bool)
    if (is_number or re.fullmatch(r"-?[0-9]{1,9}", str(name))) and -len(labels) <= int(name) < len(labels):
        return int(name)
    some = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
    raise RequestError(
        f"{where} {name!r:.60}: no such class; expected a label ({some}), an id from 0 to {len(labels) - 1}, or -r for the class of rank r"
    )
