"""Classes by label, id or rank."""

from __future__ import annotations

import pytest

from tlcli.contract.errors import RequestError
from tlcli.contract.model.class_choice import class_targets

LABELS = ("cat", "dog", "7")


def test_a_class_is_named_by_label_id_or_rank() -> None:
    assert class_targets(["dog", "0", "-2"], LABELS, "classes") == (1, 0, -2)
    assert class_targets(["dog", 0, -2], LABELS, "classes") == (1, 0, -2)
    assert class_targets([], LABELS, "classes") == (-1,)
    assert class_targets(["7"], LABELS, "classes") == (2,), "a text is a label before it is an id"


@pytest.mark.parametrize("name", ["cow", "3", "-4", "1.5", "", 3, -4, True])
def test_another_class_is_refused_by_name(name: str | int) -> None:
    with pytest.raises(RequestError, match=r"--x .*no such class; expected a label \(cat, dog, 7\), an id from 0 to 2, or -r"):
        class_targets([name], LABELS, "--x")


def test_a_class_is_named_in_either_unicode_form_and_never_by_a_label_of_two() -> None:
    assert class_targets(["cafe\u0301"], ("tea", "caf\u00e9"), "classes") == (1,)
    assert class_targets(["caf\u00e9"], ("tea", "cafe\u0301"), "classes") == (1,)
    with pytest.raises(RequestError, match=r"'crane': 2 classes have this label: use one of the ids 0, 2"):
        class_targets(["crane"], ("crane", "tea", "crane"), "classes")
