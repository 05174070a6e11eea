"""Exceptions of other libraries, quoted in one-line messages."""

from __future__ import annotations

from tlcli.contract.errors import first_line


def test_first_line() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("\n  one \r\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"
