"""Closed-loop client for HTTP servers with as little overhead as possible: requests are built beforehand, one connection per client."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence


def multipart(path: str, name: str, data: bytes) -> bytes:
    """Return a complete request that uploads one file."""
    border = b"a-border-that-no-image-holds"
    head = f'Content-Disposition: form-data; name="{name}"; filename="image.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'.encode()
    body = b"--" + border + b"\r\n" + head + data + b"\r\n--" + border + b"--\r\n"
    return post(path, body, f"multipart/form-data; boundary={border.decode()}")


def post(path: str, body: bytes, content_type: str) -> bytes:
    """Return a complete request with a body."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(lines).encode() + body


def asking(port: int, requests: Sequence[bytes]) -> Callable[[int], Awaitable[str]]:
    """Return a function for `tlcli.service.client.load_test.measure` that takes connections from a pool."""
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    numbers = itertools.count()

    async def ask(_: int) -> str:
        reader, writer = free.pop() if free else await asyncio.open_connection("127.0.0.1", port)
        writer.write(requests[next(numbers) % len(requests)])
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        free.append((reader, writer))
        status = int(head.split(b" ", 2)[1])
        return "OK" if status == 200 else str(status)

    return ask
