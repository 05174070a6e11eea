"""Label files with small images for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.training.small_images import put_image
from tlcli.training.data.label_file import list_label_file
from tlcli.training.data.listing import Listing
from tlcli.training.runtime.progress import silent


def put_images(folder: Path, *names: str) -> Path:
    """Write small images below a folder, by default two cats and two dogs."""
    for name in names or ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        put_image(folder / name)
    return folder


def listing_of(path: Path, columns: dict[str, str] | None = None, group_column: str | None = None) -> Listing:
    """Return the listing of a label file."""
    return list_label_file(str(path), columns or {}, group_column, silent)


def list_text(folder: Path, content: str | bytes, name: str = "labels.csv", **options: Any) -> Listing:
    """Write a label file and return its listing."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return listing_of(path, **options)
