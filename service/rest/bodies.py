"""A request's body, read no further than it may be long."""

from __future__ import annotations

import zlib

from starlette.exceptions import HTTPException
from starlette.requests import Request

from contract.errors import RequestError

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_ENCODINGS = ("gzip", "deflate")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """All of it, unpacked where it came compressed. `max_bytes` holds for what comes and for what it unpacks to.

    Raises:
        HTTPException: 413: it is longer; 415: compressed otherwise than with gzip or deflate.
        RequestError: what is compressed is broken.
        ClientDisconnect: the client left before its end.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_long(f"{int(announced):,} bytes", max_bytes)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *_ENCODINGS):
        raise HTTPException(415, f"the body is encoded with {encoding!r:.60}: expected {' or '.join(_ENCODINGS)}, or nothing")
    unpacking = zlib.decompressobj(_GZIP_OR_ZLIB) if encoding in _ENCODINGS else None
    parts: list[bytes] = []
    left = max_bytes
    async for part in request.stream():
        unpacked = part if unpacking is None else _unpack(unpacking, part, left + 1)
        left -= len(unpacked)
        if left < 0:
            raise _too_long("more", max_bytes)
        parts.append(unpacked)
    if unpacking is not None and (not unpacking.eof or unpacking.unused_data):
        raise RequestError(f"the body is no whole {encoding} data")
    return b"".join(parts)


def _unpack(unpacking: zlib._Decompress, part: bytes, max_bytes: int) -> bytes:
    try:
        return unpacking.decompress(part, max_bytes)
    except zlib.error as error:
        raise RequestError(f"the body cannot be unpacked: {error}") from error


def _too_long(came: str, max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body has {came}, at most {max_bytes:,} bytes are read: send less at a time")
