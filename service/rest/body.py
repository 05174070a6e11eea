"""A request's body, read no further than it may be long."""

from __future__ import annotations

import io
import zlib

from starlette.exceptions import HTTPException
from starlette.requests import Request

from tlcli.contract.errors import RequestError
from tlcli.service.decoding.memory_budget import Lease

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_ENCODINGS = ("gzip", "deflate")
_OTHER_NAMES = {"x-gzip": "gzip"}  # RFC 9110, 8.4.1.3
_MOST_MEMBERS = 4096
"""Members of a gzip file (RFC 1952, 2.2): parallel compressors write one for each of their blocks."""

_COPIES = 2
"""Copies of a body in memory at a time: a growing buffer, and then the bytes read from it."""


_FIRST_BYTES = 4096
"""Bytes of a body that are reserved before any of it arrives. An announced length reserves no more: it costs a client nothing."""

_TRUSTED_SHARE = 8
"""When an 8th of a body has arrived, all of its memory is taken: many bodies that grow together would keep each other from their ends."""


async def read_body(request: Request, max_bytes: int, lease: Lease) -> bytes:
    """All of it, unpacked where it came compressed. `max_bytes` holds for what comes and for what it unpacks to.

    Args:
        request: no part of its body is read before there is memory for it.
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
    encoding = _OTHER_NAMES.get(encoding, encoding)
    if encoding not in ("identity", *_ENCODINGS):
        raise HTTPException(415, f"the body is encoded with {encoding!r:.60}: expected {' or '.join(_ENCODINGS)}, or nothing")
    unpacking = _Unpacking(encoding) if encoding in _ENCODINGS else None
    most = _COPIES * (length if length and unpacking is None else max_bytes)
    lease.check(_COPIES * length)
    await lease.grow_to(_COPIES * min(length, _FIRST_BYTES))
    body = io.BytesIO()  # which an exception's traceback may keep, so it is emptied below
    try:
        async for part in request.stream():
            unpacked = part if unpacking is None else unpacking.take(part, max_bytes - body.tell() + 1)
            size = body.tell() + len(unpacked)
            if size > max_bytes:
                raise _too_long("more", max_bytes)
            if _COPIES * size > lease.bytes:
                whole_now = length and unpacking is None and _TRUSTED_SHARE * size >= length
                await lease.grow_to(max(_COPIES * size, most if whole_now else min(2 * _COPIES * size, most)))
            body.write(unpacked)
        if unpacking is not None and not unpacking.whole:
            raise RequestError(f"the body is no whole {encoding} data")
        whole = body.getvalue()
    finally:
        body.close()
    lease.shrink_to(_COPIES * len(whole))
    return whole


class _Unpacking:
    """Compressed data, part by part. whole: whether all that came is complete."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._member = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._members = 1
        self.whole = False

    def take(self, part: bytes, max_bytes: int) -> bytes:
        """Unpack a part, cut off at `max_bytes`.

        Raises:
            RequestError: it is broken.
        """
        unpacked = bytearray()
        try:
            while True:
                unpacked += self._member.decompress(part, max_bytes - len(unpacked))
                part = self._member.unused_data
                if not part or len(unpacked) >= max_bytes:
                    self.whole = self._member.eof and not part
                    return bytes(unpacked)
                self._begin_next()
        except zlib.error as error:
            raise RequestError(f"the body cannot be unpacked: {error}") from error

    def _begin_next(self) -> None:
        self._members += 1
        if self._encoding != "gzip" or self._members > _MOST_MEMBERS:
            raise RequestError(f"the body is no whole {self._encoding} data: something follows its end")
        self._member = zlib.decompressobj(_GZIP_OR_ZLIB)


def _too_long(came: str, max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body has {came}, at most {max_bytes:,} bytes are read: send less at a time")
