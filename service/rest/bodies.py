"""A request's body, read no further than it may be long."""

from __future__ import annotations

import io
import zlib

from starlette.exceptions import HTTPException
from starlette.requests import Request

from contract.errors import RequestError
from service.memory_budget import Lease

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_ENCODINGS = ("gzip", "deflate")

_COPIES = 2
"""Of a body that are in memory at a time: a buffer that grows, and then what is read of it."""


async def read_body(request: Request, max_bytes: int, lease: Lease) -> bytes:
    """All of it, unpacked where it came compressed. `max_bytes` holds for what comes and for what it unpacks to.

    Args:
        request: its body is not read before there is memory for it.
        max_bytes: of the body.
        lease: has the memory afterwards.

    Raises:
        HTTPException: 413: it is longer; 415: compressed otherwise than with gzip or deflate.
        RequestError: what is compressed is broken.
        RequestError, MemoryLimitError: there is no memory for it.
        ClientDisconnect: the client left before its end.
    """
    announced = request.headers.get("content-length", "")
    length = int(announced) if announced.isdecimal() else 0
    if length > max_bytes:
        raise _too_long(f"{length:,} bytes", max_bytes)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *_ENCODINGS):
        raise HTTPException(415, f"the body is encoded with {encoding!r:.60}: expected {' or '.join(_ENCODINGS)}, or nothing")
    unpacking = zlib.decompressobj(_GZIP_OR_ZLIB) if encoding in _ENCODINGS else None
    await lease.grow_to(_COPIES * length)
    body = io.BytesIO()  # which an exception's traceback may keep, so it is emptied below
    try:
        async for part in request.stream():
            unpacked = part if unpacking is None else _unpack(unpacking, part, max_bytes - body.tell() + 1)
            size = body.tell() + len(unpacked)
            if size > max_bytes:
                raise _too_long("more", max_bytes)
            if _COPIES * size > lease.bytes:
                await lease.grow_to(min(2 * _COPIES * size, _COPIES * max_bytes))
            body.write(unpacked)
        if unpacking is not None and (not unpacking.eof or unpacking.unused_data):
            raise RequestError(f"the body is no whole {encoding} data")
        whole = body.getvalue()
    finally:
        body.close()
    lease.shrink_to(_COPIES * len(whole))
    return whole


def _unpack(unpacking: zlib._Decompress, part: bytes, max_bytes: int) -> bytes:
    try:
        return unpacking.decompress(part, max_bytes)
    except zlib.error as error:
        raise RequestError(f"the body cannot be unpacked: {error}") from error


def _too_long(came: str, max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body has {came}, at most {max_bytes:,} bytes are read: send less at a time")
