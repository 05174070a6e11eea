"""Which versions of a model are served, and what people call them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tlcli.contract.errors import ModelFileError, SettingsError, first_line
from tlcli.contract.model.repository_layout import is_version

LABELS_FILE = "labels.toml"
"""In a model's folder: `stable = 3`, a line a label."""

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class VersionPolicy:
    """latest: so many of the highest numbers, or None for all of them. specific: these, where they are there."""

    latest: int | None = None
    specific: frozenset[int] | None = None

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """`all`, `latest`, `latest:2`, or numbers with commas between them.

        Raises:
            SettingsError: none of these.
        """
        word, _, count = text.partition(":")
        if text == "all":
            return cls()
        if word == "latest" and (not count or is_version(count)) and text != "latest:":
            return cls(latest=int(count or 1))
        numbers = [part.strip() for part in text.split(",")]
        if all(is_version(number) for number in numbers):
            return cls(specific=frozenset(map(int, numbers)))
        raise SettingsError(f"versions {text!r}: expected `all`, `latest`, `latest:N`, or numbers with commas between them, such as 1,3")

    def choose(self, versions: Iterable[int], labelled: Iterable[int] = ()) -> list[int]:
        """Of the versions that are there, those to serve, ascending: what a label names is among them."""
        there = sorted(versions)
        chosen = set(labelled)
        chosen.update(self.specific if self.specific is not None else there if self.latest is None else there[-self.latest :])
        return [version for version in there if version in chosen]


def read_labels(model: Path) -> Mapping[str, int]:
    """The labels in a model's folder; none without the file.

    Raises:
        ModelFileError: it cannot be read, or holds anything but labels and versions.
    """
    path = model / LABELS_FILE
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelFileError(f"{path}: cannot be read: {first_line(error)}") from error
    for label, version in found.items():
        if not _LABEL.fullmatch(label) or type(version) is not int or not is_version(str(version)):
            raise ModelFileError(f"{path}: {label} = {version!r}: expected a name and a version's number, such as stable = 3")
    return found
