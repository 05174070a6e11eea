"""Rows of Datumaro's JSON, the format in which CVAT exports the classes of images (its annotations of the type `label`, or tags)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tlcli.training.data.label_files.label_row import LabelFile, LabelRow, check_path
from tlcli.training.data.label_files.row_parser import labels_of
from tlcli.training.data.label_files.text_lines import read_chunks

MAX_BYTES = 512 * 1024**2
"""Maximum size of a document. It is read into memory as a whole, unlike all other kinds of label files."""

_SUFFIXES = (".jpg", ".png", ".jpeg", ".webp", ".bmp")
"""Suffixes that are tried for an item without the path of its image, which exports without images lack."""

_EXPECTED = "expected an array of objects with path and label, Label Studio's JSON, or CVAT's export in the format Datumaro 1.0"


def read_document(file: LabelFile, chosen: Mapping[str, str]) -> Iterator[LabelRow]:
    """Yield a row for each item of a Datumaro document. An item without an annotation of the type `label` has no label.

    Image paths start in `images/<subset>` next to the folder of the document, where CVAT puts them, or at the document.

    Args:
        file: file to read.
        chosen: names of attributes given by the user for `split` and `group`.

    Raises:
        DatasetError: the document is not Datumaro's, or is larger than 512 MiB.
    """
    labels, items = _parts(_document(file), file)
    if not any(_is_tag(annotation) for item in items for annotation in _annotations(item)):
        raise file.error("none of its items has a tag (an annotation of the type label), such as boxes have none: tag the images in CVAT")
    for number, item in enumerate(items, start=1):
        try:
            image = item.get("image") if isinstance(item.get("image"), dict) else item.get("media")
            path = image.get("path") if isinstance(image, dict) else None
            names = [check_path(path)] if path else [f"{check_path(item.get('id'))}{suffix}" for suffix in _SUFFIXES]
            subset = file.path.stem
            places = [
                f"{folder}{name}" for name in names for folder in (f"../images/{subset}/", "../images/", f"images/{subset}/", "images/")
            ]
            attributes = item.get("attr")
            yield LabelRow(
                number,
                names[0],
                _labels(item, labels),
                _attribute(attributes, chosen.get("split", "split")),
                _attribute(attributes, chosen.get("group", "group")),
                others=(*places, *names[1:]),
            )
        except ValueError as error:
            raise file.error(str(error), number, "item") from error


def _document(file: LabelFile) -> Any:
    if file.path.stat().st_size > MAX_BYTES:
        raise file.error(f"more than {MAX_BYTES:,} bytes: export the task in parts, or convert it to .csv or .jsonl")
    try:
        return json.loads("".join(read_chunks(file)))
    except json.JSONDecodeError as error:
        raise file.error(f"not valid JSON ({error.msg}): {_EXPECTED}", error.lineno) from error
    except (ValueError, RecursionError) as error:
        raise file.error(f"not JSON that can be read: {_EXPECTED}") from error


def _parts(document: Any, file: LabelFile) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the names of the labels and the items of a document."""
    match document:
        case {"categories": {"label": {"labels": list(labels)}}, "items": list(items)}:
            names = [label["name"] for label in labels if isinstance(label, dict) and isinstance(label.get("name"), str)]
            if len(names) == len(labels) and all(isinstance(item, dict) for item in items):
                return names, items
        case {"images": list(), "annotations": list()}:
            raise file.error(f"is in COCO's format, which has boxes and no classes of images: {_EXPECTED}")
    raise file.error(f"an object of an unknown kind: {_EXPECTED}")


def _annotations(item: Mapping[str, Any]) -> list[Any]:
    annotations = item.get("annotations")
    return annotations if isinstance(annotations, list) else []


def _is_tag(annotation: Any) -> bool:
    return isinstance(annotation, dict) and annotation.get("type") == "label"


def _labels(item: Mapping[str, Any], labels: list[str]) -> tuple[str, ...]:
    ids = [annotation.get("label_id") for annotation in _annotations(item) if _is_tag(annotation)]
    for label_id in ids:
        if not isinstance(label_id, int) or isinstance(label_id, bool) or not 0 <= label_id < len(labels):
            raise ValueError(f"label_id {label_id!r}: expected 0 to {len(labels) - 1}, for the {len(labels)} labels of the categories")
    return labels_of([labels[label_id] for label_id in dict.fromkeys(ids)], "label")


def _attribute(attributes: Any, name: str) -> str:
    value = attributes.get(name) if isinstance(attributes, dict) else None
    return "" if value is None or isinstance(value, dict | list) else str(value).strip()
