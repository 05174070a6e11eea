"""Files are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from contract.errors import SettingsError


def sweep(folder: Path) -> None:
    """Remove what a `whole_file` that was killed, and safetensors within it, has left in a folder that nobody else writes to."""
    for pattern in (".*.*", ".tmp*"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an error.

    The rename is atomic (POSIX rename(2)), so a reader sees the old file or the new one, never a part.
    The temporary name keeps the suffix of `path`, for writers that choose a format by it.

    Raises:
        OSError: the folder cannot be made or written to (a full disk included); `path` is then untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}.", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def fresh_folder(path: str | Path) -> Path:
    """Make and return an empty folder: `path`, or where that holds something already `path-2`, `path-3`, ...: nothing is overwritten.

    Raises:
        SettingsError: `path` is a file.
        OSError: it cannot be made.
    """
    wanted = Path(path)
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError as error:
            if not folder.is_dir():
                if number == 1:
                    raise SettingsError(f"{wanted}: is a file, a folder was expected: name another") from error
            elif number == 1 and not any(folder.iterdir()):
                return folder
    raise AssertionError("there is always another number")
