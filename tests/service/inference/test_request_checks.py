"""Classes of a request: labels, ids and ranks, and the errors for what is none of them."""

from __future__ import annotations

import pytest

from tlcli.contract.errors import RequestError
from tlcli.service.inference.request_checks import parse_classes

LABELS = ("cat", "crane", "crane", "tabby, tabby cat", "7", "caf\u00e9")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", (0,)),
        ("0,-1,5", (0, -1, 5)),
        ("cat,-2,1", (0, -2, 1)),
        ("tabby, tabby cat", (3,)),
        ("7", (4,)),  # the label comes before the id
        ("cafe\u0301", (5,)),  # decomposed letters
        ("99", (99,)),  # checked against the model later
    ],
)
def test_classes_are_labels_ids_or_ranks(text: str, expected: tuple[int, ...]) -> None:
    assert parse_classes(text, LABELS) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crane", r"^class 'crane': 2 classes have this label: use one of the ids 1, 2$"),
        ("dog", r"^class 'dog' does not exist: expected a label \(cat, crane, .*\), an id from 0 to 5, or -r for the r-th ranked$"),
        ("cat,", r"^class '' does not exist"),
        ("1.5", r"^class '1\.5' does not exist"),
        ("9" * 101, r"^class '9+' does not exist"),
    ],
)
def test_other_classes_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_classes(text, LABELS)
