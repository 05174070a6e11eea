"""Class labels: reader for label files in common formats, and lookup of classes by label."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlcli.contract.errors import SettingsError, first_line
from tlcli.contract.files.text_file import read_text

MAX_LABEL_FILE_BYTES = 4 * 1024 * 1024
"""Maximum size of a label file. ImageNet-21k's 21,841 labels with their synonyms take 0.8 MB."""

_EXPECTED = 'expected one label per line, a JSON list ["cat", "dog"] or a JSON map {"0": "cat", "1": "dog"}'
_NUMBERED = re.compile(r"(\d+)(?:\s*[:,;]\s*|\s+)(.+)")
_SYNSET = re.compile(r"n\d{8}\s*[,:;\s]\s*(.+)")
_WORDNET_ID = re.compile(r"n\d{8}")


def read_labels(path: Path) -> list[str]:
    """Read the labels of a classifier, in the order of its classes.

    A text file has one label per line. Each line may start with the class id (`0 cat`, as in files from Teachable Machine) or the WordNet
    id. A JSON file or Python literal is one of the following: a list of labels, a map from id to label (its values may be
    `[WordNet id, label]`, as in Keras' ImageNet index), a map from label to id (Keras' `class_indices`), or an object with `id2label` (a
    Hugging Face `config.json`). Spaces around labels and empty lines at the end are removed.

    Raises:
        SettingsError: the file is not text (see `text_file.read_text`), or has a different structure, an empty line between labels, a
            missing or repeated id, or a label that is empty or contains control characters.
    """
    text = read_text(path, MAX_LABEL_FILE_BYTES)
    document = _parse_document(text, path)
    labels = _from_lines(text, path) if document is None else _from_document(document, path)
    if not labels:
        raise SettingsError(f"{path}: contains no labels: {_EXPECTED}")
    for class_id, label in enumerate(labels):
        if problem := _problem(label):
            raise SettingsError(f"{path}: class {class_id}: {label!r} {problem}: {_EXPECTED}")
    return labels


class LabelIndex:
    """Index of classes by label. If there is no exact match, labels are compared in Unicode's NFC form."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._exact = _ids(labels)
        self._composed = _ids([_composed(label) for label in labels])

    def find(self, name: str) -> list[int]:
        """Return the ids of all classes with the given label; the list may be empty."""
        return self._exact.get(name) or self._composed.get(_composed(name), [])

    def repeated(self) -> dict[str, list[int]]:
        """Return the labels that several classes share, mapped to the ids of those classes."""
        return {label: ids for label, ids in self._exact.items() if len(ids) > 1}


def _ids(labels: Sequence[str]) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {}
    for class_id, label in enumerate(labels):
        ids.setdefault(label, []).append(class_id)
    return ids


def _composed(label: str) -> str:
    return unicodedata.normalize("NFC", label)


def _problem(label: str) -> str | None:
    if not label:
        return "is empty"
    if any(unicodedata.category(letter) == "Cc" for letter in label):
        return "has a control character"
    if any(unicodedata.category(letter) == "Cs" for letter in label):
        return "has half of a surrogate pair"
    return "has a byte order mark inside" if "\ufeff" in label else None


def _from_lines(text: str, path: Path) -> list[str]:
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line:
            raise SettingsError(f"{path}: line {number} is empty, and lines with labels follow: expected one label per line")
    return _without_ids(lines)


def _without_ids(lines: list[str]) -> list[str]:
    """Remove the ids if every line starts with one.

    The ids are WordNet ids or class ids 0, 1, ... in any order. Class ids determine the order of the labels.
    """
    synsets = [match for line in lines if (match := _SYNSET.fullmatch(line))]
    if lines and len(synsets) == len(lines):
        return [match[1] for match in synsets]
    matches = [match for line in lines if (match := _NUMBERED.fullmatch(line))]
    if len(matches) < max(2, len(lines)):
        return lines
    by_id = {match[1].lstrip("0") or "0": match[2].strip() for match in matches}
    labels = [by_id.get(str(number)) for number in range(len(lines))]
    known = [label for label in labels if label is not None]
    return known if len(set(known)) == len(lines) else lines


def _parse_document(text: str, path: Path) -> Any:
    """Parse text that contains a list or map as JSON or a Python literal. Return None for plain lines."""
    stripped = text.strip()
    if (
        path.suffix.lower() != ".json"
        and not re.match(r"\{|\[\s*[\"'\[{]", stripped)
        and not (stripped[:1] == "[" and stripped[-1:] == "]")
    ):
        return None
    try:
        return json.loads(stripped, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        try:
            return ast.literal_eval(stripped)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            if path.suffix.lower() != ".json" and stripped[0] == "[" and stripped.partition("\n")[0].rstrip().endswith("]"):
                return None  # lines, the first of which is a label such as [UNK]
            raise SettingsError(f"{path}: cannot be read as JSON: {error}: {_EXPECTED}") from error
    except (ValueError, RecursionError) as error:  # a repeated key, or a number with thousands of digits
        raise SettingsError(f"{path}: cannot be read as JSON: {first_line(error)}: {_EXPECTED}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"the key {_short(key)} is repeated")
        unique[key] = value
    return unique


def _from_document(document: Any, path: Path) -> list[str]:
    if isinstance(document, dict):
        document = _from_map(document.get("id2label", document), path)
    if not isinstance(document, list | tuple):
        raise SettingsError(f"{path}: holds {type(document).__name__}: {_EXPECTED}")
    labels = []
    for number, value in enumerate(document):
        if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str) and _WORDNET_ID.fullmatch(value[0]):
            value = value[1]
        if not isinstance(value, str):
            raise SettingsError(f"{path}: class {number}: {_short(value)} is not a string: {_EXPECTED}")
        labels.append(value.strip())
    return labels


def _from_map(mapping: Any, path: Path) -> list[Any]:
    """Return the labels in a map in the order of their ids. Either the keys or the values of the map are the ids."""
    if not isinstance(mapping, dict):
        raise SettingsError(f"{path}: id2label: {_short(mapping)}: {_EXPECTED}")
    if mapping and all(type(value) is int for value in mapping.values()):
        pairs = [(value, key) for key, value in mapping.items()]
    else:
        pairs = []
        for key, value in mapping.items():
            if not re.fullmatch(r"\d{1,9}", str(key)):
                raise SettingsError(f"{path}: {_short(key)}: {_short(value)}: neither key nor value is a class id: {_EXPECTED}")
            pairs.append((int(key), value))
    by_id = dict(pairs)
    missing = next((number for number in range(len(pairs)) if number not in by_id), None)
    if missing is not None:
        raise SettingsError(f"{path}: no label for class {missing} of {len(pairs)}: expected each id from 0 to {len(pairs) - 1} once")
    return [by_id[number] for number in range(len(pairs))]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
