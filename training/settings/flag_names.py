"""Names of the flags of settings."""

from __future__ import annotations

_OTHER_NAMES = {"from_run": "from"}
"""Settings whose flag has another name, because theirs is a word of Python."""


def flag_of(setting: str) -> str:
    """Return the flag of a field of `FinetuneConfig`, such as `--batch-size`."""
    return "--" + _OTHER_NAMES.get(setting, setting).replace("_", "-")
