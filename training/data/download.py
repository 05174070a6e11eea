"""Downloads that end: a connection within seconds or a clear error, and a file that is whole or not there."""

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
"""For all addresses of one file together; what is left of the 15 seconds that a user waits at most is for our own start."""

STALL_SECONDS = 10.0
"""A running download in which nothing comes for so long is given up."""

_CHUNK_BYTES = 1 << 18
_MEGABYTE = 1_000_000


def download(urls: Sequence[str], target: Path, ways_out: str, progress: ProgressFactory, md5: str | None = None) -> None:
    """Fetch one file from the first of `urls` that has it.

    Args:
        urls: where it is to be had, in the order to try.
        target: where it goes; written whole or not at all.
        ways_out: what the user can do without the download, for the message.
        progress: told of megabytes.
        md5: of the whole file, as the publisher gives it.

    Raises:
        OSError: `target` cannot be written.
        HubError: no address answered within `CONNECT_SECONDS`, refused, stalled, or sent something else.
    """
    problems: list[str] = []
    for url in urls:
        try:
            with connect(url, CONNECT_SECONDS / len(urls)) as response, whole_file(target) as temporary:
                with temporary.open("wb") as file:
                    digest = _receive(response, file, target.name, progress)
                if md5 is not None and digest != md5:
                    raise OSError(f"another file than expected came (MD5 {digest}, expected {md5})")
                return
        except (OSError, http.client.HTTPException) as error:
            if is_unwritable(error):
                raise
            problems.append(f"{url}: {explain(error)}")
    raise HubError(f"{target.name} could not be downloaded: {'; '.join(problems)}. {ways_out}")


def connect(url: str, seconds: float) -> HTTPResponse:
    """Ask for `url`; the answer's body is still to be read, with `STALL_SECONDS` for each piece.

    The request runs in a thread of its own, for a resolver that hangs heeds no timeout.

    Raises:
        OSError: refused, unknown host, an HTTP error, or no answer within `seconds`.
        http.client.HTTPException: an answer that is not HTTP.
    """
    answers: queue.SimpleQueue[HTTPResponse | Exception] = queue.SimpleQueue()

    def ask() -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "tlcli"})
        try:
            response: HTTPResponse = urllib.request.urlopen(request, timeout=STALL_SECONDS)
            answers.put(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True, name=f"ask {url}").start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def unpack_zip(archive: Path, folder: Path, progress: ProgressFactory) -> None:
    """Unpack into `folder`, which is there. Checked against the archive's own checksums.

    Raises:
        HubError: not a zip, damaged, or a member that would land outside of `folder`.
    """
    try:
        with zipfile.ZipFile(archive) as packed:
            members = packed.infolist()
            for member in members:
                _refuse_outside(member, archive)
            with progress("Unpacking", len(members)) as advance:
                for member in members:
                    packed.extract(member, folder)
                    advance(1)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError) as error:
        raise HubError(f"{archive.name}: what came is no whole zip archive ({first_line(error)}): try again") from error


def _refuse_outside(member: zipfile.ZipInfo, archive: Path) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]) or is_link:
        raise HubError(f"{archive.name}: its member {member.filename!r} would land outside of the folder: nothing was unpacked")


def _receive(response: HTTPResponse, file: BinaryIO, name: str, progress: ProgressFactory) -> str:
    """Copy the body to `file`; its MD5 in hex. Raises: OSError: it ended early, or nothing came for too long."""
    expected = int(response.headers.get("Content-Length") or 0)
    received, told = 0, 0
    digest = hashlib.md5(usedforsecurity=False)
    with progress(f"Downloading {name} (MB)", math.ceil(expected / _MEGABYTE)) as advance:
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            if received // _MEGABYTE > told:
                advance(received // _MEGABYTE - told)
                told = received // _MEGABYTE
        advance(math.ceil(received / _MEGABYTE) - told)
    if received < expected:
        raise OSError(f"the connection ended after {received:,} of {expected:,} bytes")
    return digest.hexdigest()


def explain(error: Exception) -> str:
    """What went wrong with a request, in a few words: an error that `connect` raises."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"cannot be reached ({error.reason})"
    return first_line(error)
