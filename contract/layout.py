"""The model repository on disk: `<models>/<name>/<version>/model.onnx`, as Triton and KServe read it."""

from __future__ import annotations

import re
from pathlib import Path

from contract.errors import NotFoundError, SettingsError

MODEL_FILE = "model.onnx"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


def is_model_name(name: str) -> bool:
    """Letters, digits, `.`, `_`, `-`; not beginning with a sign, so it can be neither a path nor a flag."""
    return _NAME.fullmatch(name) is not None


def is_version(text: str) -> bool:
    """A whole number from 1 on, without leading zeros."""
    return _VERSION.fullmatch(text) is not None


def require_model_name(name: str) -> str:
    """Raises: SettingsError: not a model's name."""
    if not is_model_name(name):
        raise SettingsError(f"{name!r} is no model name: letters, digits, '.', '_' and '-' were expected, beginning with a letter or digit")
    return name


def model_names(repository: Path) -> list[str]:
    """The models in a repository that have a version, sorted.

    Raises:
        NotFoundError: there is no such folder.
    """
    if not repository.is_dir():
        raise NotFoundError(f"{repository}: no such folder: give the model repository with --models, or make one with `tlcli finetune`")
    return sorted(child.name for child in repository.iterdir() if is_model_name(child.name) and versions(child))


def versions(model: Path) -> list[int]:
    """The versions of a model's folder that hold a `model.onnx`, ascending. Empty if there is no folder."""
    if not model.is_dir():
        return []
    return sorted(int(child.name) for child in model.iterdir() if is_version(child.name) and (child / MODEL_FILE).is_file())


def find_model_file(path: Path) -> Path:
    """The ONNX file that a user means by a file, a version's folder, or a model's folder (its latest version).

    Raises:
        NotFoundError: none of these.
    """
    if path.is_file():
        return path
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    found = versions(path)
    if found:
        return path / str(found[-1]) / MODEL_FILE
    raise NotFoundError(f"{path}: no model here: a {MODEL_FILE}, or a folder <name>/ or <name>/<version>/ with one, was expected")
