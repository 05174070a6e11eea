"""File identity of a model version, including its graph and external weights, to detect changes."""

from __future__ import annotations

import errno
import functools
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from tlcli.contract.model.external_weights import external_files
from tlcli.contract.model.repository_layout import MODEL_FILE, is_model_name, is_version


@dataclass(frozen=True)
class FileState:
    """Identity of a file, used to detect that it was replaced."""

    size: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileState | None:
        """Return the identity of a file; None if it does not exist.

        Raises:
            OSError: the path cannot be read.
        """
        try:
            stats = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise
        return cls(stats.st_size, stats.st_mtime_ns, stats.st_ino)


@dataclass(frozen=True)
class VersionState:
    """Identity of a version's files.

    graph: identity of the graph's file.
    weights: name and identity of each external weights file; the identity is None for a missing file.
    """

    graph: FileState
    weights: tuple[tuple[str, FileState | None], ...] = ()

    @classmethod
    def of(cls, path: Path) -> VersionState | None:
        """Return the identity of a version's files; None if the graph does not exist.

        Raises:
            OSError: a path cannot be read.
        """
        graph = FileState.of(path)
        if graph is None:
            return None
        return cls(graph, tuple((name, FileState.of(path.parent / name)) for name in _weights_of(path, graph)))


@functools.lru_cache(maxsize=1024)
def _weights_of(path: Path, graph: FileState) -> tuple[str, ...]:
    """Return the names of the external weights files. `graph` is part of the cache key so that a changed graph is read again."""
    return tuple(external_files(path))


@dataclass(frozen=True)
class FolderState:
    """Snapshot of a model's folder: the identity of each version's files and of the labels file."""

    versions: tuple[tuple[int, VersionState], ...]
    labels: FileState | None


def list_models(repository: Path) -> list[str]:
    """Return the sorted names of the repository's entries that are valid model names.

    Raises:
        OSError: the repository cannot be read.
    """
    with os.scandir(repository) as entries:
        return sorted(entry.name for entry in entries if is_model_name(entry.name))


def list_versions(model: Path) -> list[int]:
    """Return the versions in a model's folder that hold a graph, in ascending order; empty if the path is not a folder.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        with os.scandir(model) as entries:
            numbers = sorted(int(entry.name) for entry in entries if is_version(entry.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [number for number in numbers if _is_file(model / str(number) / MODEL_FILE)]


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise
