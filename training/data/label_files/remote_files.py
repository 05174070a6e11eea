"""Files at a URL (`https://`, `s3://`, `gs://`, `az://`, `hf://`), copied to the cache through fsspec's drivers."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from tlcli.contract.errors import HubError, first_line
from tlcli.contract.files.atomic_file import is_unwritable, named_errors
from tlcli.contract.images.decoding import DEFAULT_LIMITS
from tlcli.training.runtime.progress import ProgressFactory
from tlcli.training.settings.config import cache_dir

_PACKAGES = {
    "http": "'tlcli[remote]'",
    "https": "'tlcli[remote]'",
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
}
"""Schemes that are opened, with the packages of their drivers. Others are not: fsspec also opens archives and shells on other machines."""

SCHEMES = ", ".join(f"{scheme}://" for scheme in _PACKAGES)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")

_CONNECT_SECONDS, _STALL_SECONDS = 12.0, 30.0
_CONNECTIONS = 16
_CHUNK = 1 << 18


def scheme_of(text: str) -> str | None:
    """Return the scheme of a URL in lower case; None for a path."""
    matched = _SCHEME.match(text)
    return None if matched is None else matched[1].lower()


def is_remote(text: str) -> bool:
    """Return True for a URL that can be opened if its driver is installed."""
    return scheme_of(text) in _PACKAGES


def mirror_of(url: str) -> Path:
    """Return the place of a URL's copy in the cache: a path that no URL can leave, with a hash of a query."""
    parts = urlsplit(url)
    names = [parts.scheme.lower(), parts.netloc.rpartition("@")[2], *map(unquote, parts.path.split("/"))]
    safe = [re.sub(r"[^\w.,=@ ()+-]", "_", name)[-150:] for name in names if name not in ("", ".", "..")]
    if parts.query:
        stem, suffix = os.path.splitext(safe[-1])
        safe[-1] = f"{stem}-{hashlib.sha256(parts.query.encode()).hexdigest()[:12]}{suffix}"
    return cache_dir().joinpath("remote", *safe)


def fetch(url: str, target: Path, max_bytes: int) -> None:
    """Copy a file from a URL. The write is atomic.

    Raises:
        HubError: the driver is not installed, the file does not exist, cannot be reached, or is larger than `max_bytes`.
        OSError: `target` cannot be written.
    """
    try:
        filesystem, path = _open_filesystem(url)
        options = {"block_size": 0} if scheme_of(url) in ("http", "https") else {}  # a stream, in one request
        with filesystem.open(path, "rb", **options) as source, _whole_file(target) as copy:
            received = 0
            while chunk := source.read(_CHUNK):
                received += len(chunk)
                if received > max_bytes:
                    raise HubError(f"more than {max_bytes:,} bytes")
                copy.write(chunk)
    except HubError:
        raise
    except FileNotFoundError as error:
        if isinstance(error.__cause__, OSError):  # fsspec reports a refused connection as a missing file
            raise HubError(f"cannot be reached: {first_line(error.__cause__)[:200]}") from error
        raise HubError("no such file") from error
    except Exception as error:  # each driver raises its own exceptions
        if is_unwritable(error):
            raise
        raise HubError(f"cannot be read: {first_line(error)[:200]}") from error


def fetch_images(urls: Mapping[str, str], progress: ProgressFactory) -> dict[str, str]:
    """Copy images to the cache. Images that are there already are not fetched again.

    Args:
        urls: URL of each image, by the path of its copy.
        progress: progress bar, in images.

    Returns:
        The reason for each image that could not be fetched, by the path of its copy.

    Raises:
        HubError: a driver is not installed.
        OSError: the cache cannot be written.
    """
    missing = [(copy, url) for copy, url in urls.items() if not os.path.isfile(copy)]
    for scheme in {scheme_of(url) for _, url in missing}:
        _open_filesystem(next(url for _, url in missing if scheme_of(url) == scheme))

    def copy_one(entry: tuple[str, str]) -> tuple[str, str | None]:
        try:
            fetch(entry[1], Path(entry[0]), DEFAULT_LIMITS.max_bytes)
        except HubError as error:
            return entry[0], str(error)
        return entry[0], None

    problems: dict[str, str] = {}
    with progress("Fetching images", len(missing)) as advance, ThreadPoolExecutor(_CONNECTIONS) as pool:
        for copy, problem in pool.map(copy_one, missing):
            if problem is not None:
                problems[copy] = problem
            advance(1)
    return problems


@contextmanager
def _whole_file(target: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that replaces `target` at the end. Unlike `atomic_file.whole_file`, threads may use it at the same time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid4().hex}{target.suffix}")
    try:
        with named_errors(target), temporary.open("xb") as opened:
            yield opened
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _open_filesystem(url: str) -> tuple[Any, str]:
    scheme = scheme_of(url)
    assert scheme is not None, "callers check the URL"
    needed = f"{scheme}:// needs a driver that is not installed: pip install {_PACKAGES.get(scheme, scheme)}"
    try:
        from fsspec.core import url_to_fs

        options = {}
        if scheme in ("http", "https"):
            from aiohttp import ClientTimeout

            options = {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_STALL_SECONDS)}}
        filesystem, path = url_to_fs(url, **options)
    except ImportError as error:
        raise HubError(needed) from error
    except ValueError as error:
        raise HubError(f"{first_line(error)}: {needed}" if "rotocol" in str(error) else first_line(error)) from error
    return filesystem, str(path)
