"""Layout of a model repository on disk: `<models>/<name>/<version>/model.onnx`, as in Triton and KServe."""

from __future__ import annotations

import re
from pathlib import Path

from tlcli.contract.errors import NotFoundError, SettingsError

MODEL_FILE = "model.onnx"
_CHECKPOINTS = frozenset({".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".th"})
_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"})
_RUN_FILES = ("checkpoint.safetensors", "results.json", "split.json", "metrics.csv")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


def is_model_name(name: str) -> bool:
    """Return True if a name is a valid model name.

    It may have up to 128 letters, digits, `.`, `_` and `-`, and must start with a letter or digit so that it cannot be a path or a flag.
    """
    return _NAME.fullmatch(name) is not None


def is_version(text: str) -> bool:
    """Return True if a string is a valid version: a positive integer without leading zeros."""
    return _VERSION.fullmatch(text) is not None


def require_model_name(name: str) -> str:
    """Return `name` if it is a valid model name.

    Raises:
        SettingsError: the name is not valid.
    """
    if not is_model_name(name):
        raise SettingsError(f"{name!r} is not a model name: expected letters, digits, '.', '_' and '-', starting with a letter or digit")
    return name


def model_names(repository: Path) -> list[str]:
    """Return the sorted names of all models in a repository that have at least one version.

    Raises:
        NotFoundError: the repository folder does not exist.
    """
    if not repository.is_dir():
        raise NotFoundError(f"{repository}: no such folder: give the model repository with --models, or create one with `tlcli finetune`")
    return sorted(child.name for child in repository.iterdir() if is_model_name(child.name) and versions(child))


def versions(model: Path) -> list[int]:
    """Return the versions of a model that contain a `model.onnx`, in ascending order. The list is empty if the folder does not exist."""
    if not model.is_dir():
        return []
    return sorted(int(child.name) for child in model.iterdir() if is_version(child.name) and (child / MODEL_FILE).is_file())


def find_model_file(path: Path) -> Path:
    """Return the ONNX file for a path: the file itself, the file in a version's folder, or the latest version in a model's folder.

    Raises:
        NotFoundError: the path is none of these; the message explains what the path is and suggests what to type.
    """
    if path.is_file():
        if path.suffix.lower() in _CHECKPOINTS:
            raise NotFoundError(
                f"{path} is a checkpoint, not an exported model: `tlcli export --backbone NAME --weights {path}` exports it"
            )
        if path.suffix.lower() in _IMAGES:
            raise NotFoundError(f"{path} is an image, not a model: give the model first, such as models/NAME")
        return path
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    if available := versions(path):
        return path / str(available[-1]) / MODEL_FILE
    if is_run(path):
        raise NotFoundError(f"{path} is a run, not an exported model: `tlcli export {path}` exports it to models/")
    if path.is_dir() and (names := model_names(path)):
        examples = ", ".join(str(path / name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
        raise NotFoundError(f"{path} is a model repository: give one of its models: {examples}")
    if not path.exists() and is_model_name(str(path)) and versions(Path("models") / path):
        raise NotFoundError(f"{path}: no such file or folder: did you mean {Path('models') / path}?")
    raise NotFoundError(f"{path}: no model found: expected a {MODEL_FILE}, or a folder <name>/ or <name>/<version>/ that contains one")


def is_run(path: Path) -> bool:
    """Return True if a path is the folder of a training run, finished or not."""
    return (path / "config.json").is_file() and any((path / name).is_file() for name in _RUN_FILES)


def not_a_run(path: Path) -> str | None:
    """Return a message that explains why a path is not a run's folder and what to type instead, or None if it may be a run."""
    expected = "give a run's folder, such as one under runs/"
    if not path.exists():
        suggestion = Path("runs") / path
        hint = f"did you mean {suggestion}?" if is_run(suggestion) else expected
        return f"{path}: no such folder: {hint}"
    if is_run(path) or (path / "config.json").is_file():
        return None
    if path.is_file():
        if path.suffix.lower() in _CHECKPOINTS:
            return f"{path} is a checkpoint, not a run: use it with --backbone NAME --weights {path}"
        return f"{path} is a file, not a run: {expected}"
    if versions(path) or (path / MODEL_FILE).is_file():
        return f"{path} is an exported model, not a run: {expected}; predict, evaluate and serve take models"
    if model_names(path):
        return f"{path} is a model repository, not a run: {expected}"
    if runs := sorted(child for child in path.iterdir() if is_run(child)):
        return f"{path} is a folder of runs: give one of them: {', '.join(map(str, runs[:3]))}{', ...' if len(runs) > 3 else ''}"
    return None


def not_a_repository(path: Path) -> str | None:
    """Return a message that explains why a path is not a model repository and what to type instead.

    Returns None if the path may be a model repository, which may also be empty.
    """
    if path.is_file():
        if path.name == MODEL_FILE and is_version(path.parent.name):
            return f"{path}: one file of a model repository: give the repository: {_above(path, 3)}"
        return f"{path} is a file, not a model repository: put it at models/NAME/1/{MODEL_FILE} and give models"
    if not path.is_dir():
        return f"{path}: no such folder: give a model repository; `tlcli finetune` and `tlcli export` create one"
    if (path / MODEL_FILE).is_file() and is_version(path.name):
        return f"{path} is a version of one model: give the repository: {_above(path, 2)}"
    if (path / MODEL_FILE).is_file():
        return f"{path} is a folder with a {MODEL_FILE}, not a model repository: put the file at models/NAME/1/{MODEL_FILE} and give models"
    if versions(path):
        return f"{path}: one model of a repository: give the repository: {_above(path, 1)}"
    if is_run(path):
        return f"{path} is a run, not a model repository: `tlcli export {path}` exports it to models/"
    if not model_names(path) and any(is_run(child) for child in path.iterdir()):
        return f"{path} is a folder of runs, not a model repository: `tlcli export {path}/NAME` exports a run to models/"
    return None


def _above(path: Path, levels: int) -> Path:
    """Return the ancestor `levels` above a path, as an absolute path if the relative path is too short."""
    parents = path.parents if len(path.parts) > levels else path.absolute().parents
    return parents[min(levels, len(parents)) - 1]
