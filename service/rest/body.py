"""Reading and decompression of request bodies within size and memory limits."""

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
"""Maximum number of members in gzip data (RFC 1952, 2.2). Parallel compressors write one member per block."""

_COPIES = 2
"""Number of copies of a body in memory at the same time: the growing buffer and the bytes read from it."""

_FIRST_BYTES = 4096
"""Bytes reserved for a body before any of it arrives. An announced length does not reserve more, because announcing one costs nothing."""

_TRUSTED_SHARE = 8
"""Divisor of the announced length. When an eighth of a body has arrived, memory for the whole body is reserved. Otherwise, many bodies that
grow at the same time could block each other from completing."""


async def read_body(request: Request, max_bytes: int, lease: Lease) -> bytes:
    """Read a request's body and decompress it if it is compressed.

    Args:
        request: the request. Memory is reserved before its body is read.
        max_bytes: maximum size of the body in bytes, both as received and decompressed.
        lease: memory lease that holds the memory of the body after the call.

    Raises:
        HTTPException: 413: the body is too long. 415: the body is compressed with an encoding other than gzip or deflate.
        RequestError: the compressed data is broken, or the body needs more memory than the total budget.
        MemoryLimitError: not enough memory is free.
        ClientDisconnect: the client disconnected before the end of the body.
    """
    announced = request.headers.get("content-length", "")
    length = int(announced) if announced.isdecimal() else 0
    if length > max_bytes:
        raise _too_long(f"{length:,} bytes", max_bytes)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    encoding = _OTHER_NAMES.get(encoding, encoding)
    if encoding not in ("identity", *_ENCODINGS):
        raise HTTPException(415, f"unsupported content encoding {encoding!r:.60}: use {' or '.join(_ENCODINGS)}, or none")
    decompressor = _Decompressor(encoding) if encoding in _ENCODINGS else None
    limit = _COPIES * (length if length and decompressor is None else max_bytes)
    lease.check(_COPIES * length)
    await lease.grow_to(_COPIES * min(length, _FIRST_BYTES))
    body = io.BytesIO()  # closed explicitly below, because an exception's traceback may keep it alive
    try:
        async for chunk in request.stream():
            data = chunk if decompressor is None else decompressor.decompress(chunk, max_bytes - body.tell() + 1)
            size = body.tell() + len(data)
            if size > max_bytes:
                raise _too_long(f"more than {max_bytes:,} bytes", max_bytes)
            if _COPIES * size > lease.bytes:
                reserve_all = length and decompressor is None and _TRUSTED_SHARE * size >= length
                await lease.grow_to(max(_COPIES * size, limit if reserve_all else min(2 * _COPIES * size, limit)))
            body.write(data)
        if decompressor is not None and not decompressor.complete:
            raise RequestError(f"the {encoding} body is truncated: send the complete body")
        whole = body.getvalue()
    finally:
        body.close()
    lease.shrink_to(_COPIES * len(whole))
    return whole


class _Decompressor:
    """Incremental decompressor.

    complete: True if the data received so far ends at the end of a member.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._member = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._members = 1
        self.complete = False

    def decompress(self, chunk: bytes, max_bytes: int) -> bytes:
        """Decompress a chunk and return at most `max_bytes`.

        Raises:
            RequestError: the data is broken.
        """
        data = bytearray()
        try:
            while True:
                data += self._member.decompress(chunk, max_bytes - len(data))
                chunk = self._member.unused_data
                if not chunk or len(data) >= max_bytes:
                    self.complete = self._member.eof and not chunk
                    return bytes(data)
                self._begin_next()
        except zlib.error as error:
            raise RequestError(f"the body cannot be decompressed: {error}: compress it again, or send it uncompressed") from error

    def _begin_next(self) -> None:
        self._members += 1
        if self._encoding != "gzip" or self._members > _MOST_MEMBERS:
            raise RequestError(f"the body continues after the end of its {self._encoding} data: remove the extra bytes")
        self._member = zlib.decompressobj(_GZIP_OR_ZLIB)


def _too_long(size: str, max_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body has {size}: at most {max_bytes:,} are accepted; send a smaller request")
