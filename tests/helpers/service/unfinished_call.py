"""gRPC call over plain HTTP/2 whose message lacks its last byte; gRPC's own clients cannot send it."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence

SETTINGS, WINDOW_UPDATE, PING, HEADERS, DATA, RESET = 4, 8, 6, 1, 0, 3
ACK, END_HEADERS = 1, 4
INITIAL_WINDOW = 65_535
FRAME_BYTES = 16_384


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """Encode an HTTP/2 frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def header_block(path: str) -> bytes:
    """Encode headers as literal fields without indexing (RFC 7541, 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in fields.items())


class UnfinishedCall:
    """Call that sends as much as the server's windows allow.

    left: bytes of the message still to send.
    ended: whether the server has ended the call or the connection.
    """

    def __init__(self, port: int, size: int, path: str = "/tlcli.v1.Classifier/Classify") -> None:
        """Open the call. size: announced bytes of the message."""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, b"") + frame(HEADERS, END_HEADERS, 1, header_block(path))
        )
        self._prefix = b"\x00" + struct.pack(">I", size)
        self._received = b""
        self._windows = {0: INITIAL_WINDOW, 1: INITIAL_WINDOW}
        self._initial = INITIAL_WINDOW
        self.left = size - 1
        self.ended = False

    def move(self) -> int:
        """Read from the server, send as much as its windows allow, and return the number of bytes sent."""
        self._read()
        sent = 0
        while self.left > 0 and not self.ended and (room := min(*self._windows.values(), FRAME_BYTES)) > len(self._prefix):
            body = self._prefix + bytes(min(self.left, room - len(self._prefix)))
            self._send(frame(DATA, 0, 1, body))
            self.left -= len(body) - len(self._prefix)
            self._prefix = b""
            for stream in self._windows:
                self._windows[stream] -= len(body)
            sent += len(body)
        return sent

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> None:
        self._socket.setblocking(False)
        try:
            while part := self._socket.recv(65_536):
                self._received += part
            self.ended = True
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True
        finally:
            self._socket.setblocking(True)
        while len(self._received) >= 9 and len(self._received) >= 9 + (length := int.from_bytes(self._received[:3], "big")):
            kind, flags, stream = self._received[3], self._received[4], int.from_bytes(self._received[5:9], "big")
            body, self._received = self._received[9 : 9 + length], self._received[9 + length :]
            self._take(kind, flags, stream, body)

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            settings = dict(struct.iter_unpack(">HI", body))
            initial = settings.get(4, self._initial)
            self._windows[1] += initial - self._initial
            self._initial = initial
            self._send(frame(SETTINGS, ACK, 0, b""))
        elif kind == WINDOW_UPDATE:
            self._windows[stream] += int.from_bytes(body, "big")
        elif kind == PING and not flags & ACK:
            self._send(frame(PING, ACK, 0, body))
        elif kind in (HEADERS, RESET):
            self.ended = True

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError:
            self.ended = True


def send_unfinished(calls: Sequence[UnfinishedCall], timeout_s: float) -> None:
    """Send all messages except their last bytes concurrently, until each is sent or ended."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and any(call.left and not call.ended for call in calls):
        if not sum(call.move() for call in calls):
            time.sleep(0.005)
    for call in calls:
        call.move()
