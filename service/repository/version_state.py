"""Identity of the files of a model's version: the graph, and external weights."""

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
    """Identity of a file, to notice that it was replaced."""

    size: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileState | None:
        """None where there is no file.

        Raises:
            OSError: it cannot be found out.
        """
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


@dataclass(frozen=True)
class VersionState:
    """The graph's file, and by name those that hold weights of it; None where one is not there."""

    graph: FileState
    weights: tuple[tuple[str, FileState | None], ...] = ()

    @classmethod
    def of(cls, path: Path) -> VersionState | None:
        """None where there is no graph.

        Raises:
            OSError: it cannot be found out.
        """
        graph = FileState.of(path)
        if graph is None:
            return None
        return cls(graph, tuple((name, FileState.of(path.parent / name)) for name in _weights_of(path, graph)))


@functools.lru_cache(maxsize=1024)
def _weights_of(path: Path, graph: FileState) -> tuple[str, ...]:
    """Names of the files of weights; read anew where the graph is another."""
    return tuple(external_files(path))


@dataclass(frozen=True)
class FolderState:
    """A model's folder at one look: its versions, with their files, and its labels' file."""

    versions: tuple[tuple[int, VersionState], ...]
    labels: FileState | None


def names_there(repository: Path) -> list[str]:
    """Names that a model may have, of what is in a repository, sorted.

    Raises:
        OSError: it cannot be read.
    """
    with os.scandir(repository) as found:
        return sorted(one.name for one in found if is_model_name(one.name))


def versions_there(model: Path) -> list[int]:
    """The versions in a model's folder that hold a graph, ascending; none where it is no folder.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with os.scandir(model) as found:
            numbers = sorted(int(one.name) for one in found if is_version(one.name))
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
