"""Downloads with timeouts and atomic writes: a stalled or failed download raises an error within seconds and leaves no file."""

from __future__ import annotations

import hashlib
import http.client
import math
import queue
import stat
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from http.client import HTTPResponse
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tlcli.contract.errors import HubError, first_line
from tlcli.contract.files.atomic_file import is_unwritable, whole_file
from tlcli.training.runtime.progress import ProgressFactory

CONNECT_SECONDS = 12.0
"""Total connection timeout in seconds, shared by all URLs of a file. With startup, a user waits at most 15 seconds."""

STALL_SECONDS = 10.0
"""Read timeout in seconds: maximum time without new data during a download."""

_CHUNK_BYTES = 1 << 18
_MEGABYTE = 1_000_000


def download(urls: Sequence[str], target: Path, advice: str, progress: ProgressFactory, md5: str | None = None) -> None:
    """Download a file from the first URL that provides it.

    Args:
        urls: URLs of the file, tried in order.
        target: output file, written atomically.
        advice: advice for the user, appended to the error message.
        progress: progress bar, in megabytes.
        md5: published MD5 of the file, in hex; None to skip the check.

    Raises:
        OSError: `target` cannot be written.
        HubError: every URL failed: no response within its share of `CONNECT_SECONDS`, refused, stalled, or wrong content.
    """
    problems: list[str] = []
    for url in urls:
        try:
            with connect(url, CONNECT_SECONDS / len(urls)) as response, whole_file(target) as temporary:
                with temporary.open("wb") as file:
                    digest = _receive(response, file, target.name, progress)
                if md5 is not None and digest != md5:
                    raise OSError(f"wrong content (expected MD5 {md5}, got {digest})")
                return
        except (OSError, http.client.HTTPException) as error:
            if is_unwritable(error):
                raise
            problems.append(f"{url}: {explain(error)}")
    raise HubError(f"{target.name} could not be downloaded: {'; '.join(problems)}. {advice}")


def connect(url: str, seconds: float) -> HTTPResponse:
    """Request `url` and return the response before its body is read. Each later read has a timeout of `STALL_SECONDS`.

    The request runs in its own thread, because socket timeouts do not cover name resolution.

    Raises:
        OSError: the connection was refused, the host is unknown, the status is an error, or there was no response within `seconds`.
        http.client.HTTPException: the response is not HTTP.
    """
    outcomes: queue.SimpleQueue[HTTPResponse | Exception] = queue.SimpleQueue()

    def send() -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "tlcli"})
        try:
            response: HTTPResponse = urllib.request.urlopen(request, timeout=STALL_SECONDS)
            outcomes.put(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcomes.put(error)

    threading.Thread(target=send, daemon=True, name=f"request {url}").start()
    try:
        outcome = outcomes.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no response within {seconds:.0f} s") from None
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def unpack_zip(archive: Path, folder: Path, progress: ProgressFactory) -> None:
    """Unpack a zip archive into an existing folder and verify the archive's checksums.

    Raises:
        HubError: the file is not a zip archive, is damaged, or contains a path outside of `folder` or a symbolic link.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = packed.infolist()
            for member in members:
                _reject_outside(member, archive)
            with progress("Unpacking", len(members)) as advance:
                for member in members:
                    packed.extract(member, folder)
                    advance(1)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        raise HubError(f"{archive.name}: the download is not a complete zip archive ({first_line(error)}): try again") from error


def _reject_outside(member: zipfile.ZipInfo, archive: Path) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]) or is_link:
        raise HubError(f"{archive.name}: unsafe path of the member {member.filename!r}, outside of the folder: nothing was unpacked")


def _receive(response: HTTPResponse, file: BinaryIO, name: str, progress: ProgressFactory) -> str:
    """Copy the response body to `file` and return its MD5 in hex.

    Raises:
        OSError: the connection closed early or stalled.
    """
    expected = int(response.headers.get("Content-Length") or 0)
    received, reported = 0, 0
    digest = hashlib.md5(usedforsecurity=False)
    with progress(f"Downloading {name} (MB)", math.ceil(expected / _MEGABYTE)) as advance:
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            if received // _MEGABYTE > reported:
                advance(received // _MEGABYTE - reported)
                reported = received // _MEGABYTE
        advance(math.ceil(received / _MEGABYTE) - reported)
    if received < expected:
        raise OSError(f"the connection ended after {received:,} of {expected:,} bytes")
    return digest.hexdigest()


def explain(error: Exception) -> str:
    """Return a short description of an error raised by `connect`."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"cannot be reached ({error.reason})"
    return first_line(error)
