"""Policy that chooses which versions of a model to serve, and reader for version labels."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tlcli.contract.errors import ModelFileError, SettingsError, first_line
from tlcli.contract.model.repository_layout import is_version

LABELS_FILE = "labels.toml"
"""Name of the file in a model's folder that holds the labels, one per line: `stable = 3`."""

_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class VersionPolicy:
    """Version policy of a repository.

    latest: serve this many of the highest versions; None for all.
    specific: serve exactly these versions where they exist; None to use `latest`.
    """

    latest: int | None = None
    specific: frozenset[int] | None = None

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """Parse `all`, `latest`, `latest:2`, or comma-separated version numbers.

        Raises:
            SettingsError: the text has none of these formats.
        """
        word, _, count = text.partition(":")
        if text == "all":
            return cls()
        if word == "latest" and (not count or is_version(count)) and text != "latest:":
            return cls(latest=int(count or 1))
        numbers = [part.strip() for part in text.split(",")]
        if all(is_version(number) for number in numbers):
            return cls(specific=frozenset(map(int, numbers)))
        raise SettingsError(f"versions {text!r}: expected `all`, `latest`, `latest:N`, or numbers separated by commas, such as 1,3")

    def choose(self, versions: Iterable[int], labelled: Iterable[int] = ()) -> list[int]:
        """Return the existing versions to serve, in ascending order. Labelled versions are always served."""
        existing = sorted(versions)
        chosen = set(labelled)
        chosen.update(self.specific if self.specific is not None else existing if self.latest is None else existing[-self.latest :])
        return [version for version in existing if version in chosen]


def read_labels(model: Path) -> Mapping[str, int]:
    """Read the version labels in a model's folder. Return an empty mapping if the file does not exist.

    Raises:
        ModelFileError: the file cannot be read, or an entry is not a valid label and version number.
    """
    path = model / LABELS_FILE
    try:
        labels = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelFileError(f"{path}: cannot be read: {first_line(error)}: expected TOML with lines such as stable = 3") from error
    for label, version in labels.items():
        if not _LABEL.fullmatch(label) or type(version) is not int or not is_version(str(version)):
            raise ModelFileError(f"{path}: {label} = {version!r}: expected a name and a version number, such as stable = 3")
    return labels
