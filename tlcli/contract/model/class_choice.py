"""Classes as users name them: labels, ids and ranks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tlcli.contract.errors import RequestError
from tlcli.contract.model.labels import LabelIndex

FIRST_RANKED = -1
"""Target of the class with the highest score; -r is the class of rank r."""


def class_targets(classes: Iterable[str | int], labels: Sequence[str], where: str) -> tuple[int, ...]:
    """Return a target for each class: its id, or -r for rank r.

    Args:
        classes: labels, ids from 0, or ranks -1, -2, ...; a text is read as a label first, then as a number. Empty: rank -1.
        labels: labels of the model, in the order of its ids.
        where: name of the flag or argument, for messages.

    Raises:
        RequestError: a class that the model does not have, or a label that several of its classes share.
    """
    index = LabelIndex(labels)
    targets = tuple(_target(name, labels, index, where) for name in classes)
    return targets or (FIRST_RANKED,)


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
