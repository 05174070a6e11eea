"""Rows of Label Studio's JSON export: image tasks with annotations of the type `choices`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tlcli.training.data.label_files.label_row import LabelFile, LabelRow, check_path, shorten
from tlcli.training.data.label_files.row_parser import labels_of


def is_task(item: object) -> bool:
    """Return True for an item of Label Studio's JSON export."""
    return isinstance(item, dict) and isinstance(item.get("data"), dict) and ("annotations" in item or "completions" in item)


def read_tasks(items: Iterator[tuple[int, Any]], file: LabelFile, chosen: Mapping[str, str]) -> Iterator[LabelRow]:
    """Yield a row for each task. Cancelled annotations are ignored, and a task without annotations has no label.

    Args:
        items: tasks with the lines in which they start.
        file: file that they are in.
        chosen: names given by the user: `path` is the field of the data that holds the image, `label` the name of the choices, and
            `split`, `group` are fields of the data.

    Raises:
        DatasetError: a task has no image, the choices are ambiguous, or annotators disagree.
    """
    for line, item in items:
        if not is_task(item):
            raise file.error(f"{shorten(item)}: expected a task of Label Studio, with data and annotations", line)
        try:
            data = item["data"]
            yield LabelRow(
                line,
                check_path(_image(data, chosen.get("path"))),
                _labels(item, chosen.get("label", chosen.get("labels"))),
                _field(data, chosen.get("split", "split")),
                _field(data, chosen.get("group", "group")),
            )
        except ValueError as error:
            raise file.error(f"task {item.get('id', '?')}: {error}", line) from error


def _image(data: Mapping[str, Any], name: str | None) -> object:
    """Return the value of the task's data that names the image."""
    if name is not None:
        return data.get(name)
    if "image" in data:
        return data["image"]
    texts = [key for key, value in data.items() if isinstance(value, str) and ("/" in value or "." in value)]
    if len(texts) != 1:
        raise ValueError(f"cannot tell which of its data is the image ({', '.join(data) or 'none'}): name it with --columns path=NAME")
    return data[texts[0]]


def _labels(item: Mapping[str, Any], name: str | None) -> tuple[str, ...]:
    """Return the labels on which the annotations agree.

    Raises:
        ValueError: annotations differ, or there are several choices to select from.
    """
    answers: list[tuple[str, ...]] = []
    for annotation in item.get("annotations", item.get("completions")) or ():
        if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
            continue
        results = [result for result in annotation.get("result") or () if isinstance(result, dict) and result.get("type") == "choices"]
        names = list(dict.fromkeys(str(result.get("from_name")) for result in results))
        if name is None and len(names) > 1:
            raise ValueError(f"answers to several questions ({', '.join(names)}): choose one with --columns label=NAME")
        values = [result.get("value") for result in results if name in (None, result.get("from_name"))]
        labels = tuple(dict.fromkeys(label for value in values for label in labels_of(value, "the answer")))
        if labels:
            answers.append(labels)
    differing = next((labels for labels in answers if set(labels) != set(answers[0])), None)
    if differing is not None:
        raise ValueError(f"its annotations disagree ({', '.join(answers[0])} and {', '.join(differing)}): resolve it, or remove one")
    return answers[0] if answers else ()


def _field(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    return "" if value is None or isinstance(value, dict | list) else str(value).strip()
