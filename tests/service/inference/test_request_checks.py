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
    ],
)
def test_classes_are_labels_ids_or_ranks(text: str, expected: tuple[int, ...]) -> None:
    assert parse_classes(text, LABELS) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crane", r"^query parameter 'classes': 'crane': 2 classes have this label: use one of the ids 1, 2$"),
        ("dog", r"'dog': no such class; expected a label \(cat, .*\), an id from 0 to 5, or -r for the class of rank r$"),
        ("cat,", r"'': no such class"),
        ("1.5", r"'1\.5': no such class"),
        ("6", r"'6': no such class"),
        ("\u0663", r"no such class"),  # a digit that is not ASCII
        ("9" * 101, r"'9+: no such class"),
    ],
)
def test_other_classes_are_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_classes(text, LABELS)
