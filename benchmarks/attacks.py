"""Attacks that a server must survive: each is one function, which `benchmarks/hostile.py` runs again and again."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import random
import socket
import struct
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from PIL import Image

from tests.helpers.contract import hostile_images
from tests.helpers.service.unfinished_call import UnfinishedCall, send_unfinished
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb

CLASSIFY = "/tlcli.v1.Classifier/Classify"
CLASSIFY_STREAM = "/tlcli.v1.Classifier/ClassifyStream"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
WAIT_S = 60.0


@dataclass(frozen=True)
class Target:
    """Server under attack, and the size of the attacks.

    model: name of a model with a fixed input size.
    dynamic: name of a model that takes images of any size.
    scale: 1 for the full attacks, less for short tests.
    cases: additional encoded images to send.
    """

    grpc_port: int
    http_port: int
    model: str
    dynamic: str
    scale: float = 1.0
    cases: tuple[Path, ...] = ()

    @property
    def classify(self) -> str:
        """Return the path and query of an HTTP request for scores."""
        return f"/v1/classify?model={self.model}"

    def some(self, count: int) -> int:
        """Return `count` scaled down, at least one."""
        return max(1, round(self.scale * count))


Outcome = Iterator[str]
"""Answers of the server: HTTP statuses, gRPC codes, or the fate of a connection."""


# Images


def scan_bombs(target: Target) -> Outcome:
    """Send progressive JPEGs with a hundred thousand empty scans, over both protocols."""
    bomb = hostile_images.scan_bomb(7000, target.some(100_000))
    yield from _together([lambda: _post(target, target.classify, bomb), lambda: _classify(target, bomb)] * 2)


def odd_images(target: Target) -> Outcome:
    """Send images that cost more than their size suggests, or that claim contents they do not have."""
    for image in _odd_images(target):
        yield _post(target, target.classify, image)
        yield _classify(target, image)


def _odd_images(target: Target) -> Iterator[bytes]:
    yield from (path.read_bytes() for path in target.cases)
    yield hostile_images.jpeg_with_segments(target.some(500_000))
    yield hostile_images.jpeg_with_exif(2000)
    yield hostile_images.png_with(b"".join(hostile_images.png_chunk(b"tEXt", b"a\x00b") for _ in range(target.some(200_000))))
    yield hostile_images.gif_with_comment(target.some(20_000_000))
    yield hostile_images.lying_avif(64, target.some(6000))
    flat = Image.new("L", (7000, 7000), 90)
    yield hostile_images.encoded(flat, "PNG")
    yield hostile_images.encoded(flat, "WEBP", quality=1)
    yield hostile_images.encoded(flat, "TIFF", compression="tiff_lzw")
    small = Image.new("P", (64, 64), 1)
    frames = [Image.new("P", (64, 64), number % 256) for number in range(target.some(3000))]
    yield hostile_images.encoded(small, "GIF", save_all=True, append_images=frames)
    header = bytearray(hostile_images.encoded(Image.new("L", (8, 8)), "PNG"))
    header[16:24] = struct.pack(">II", 60_000, 60_000)
    yield bytes(header)
    noise = np.random.default_rng(0).integers(0, 256, target.some(2_000_000), dtype=np.uint8).tobytes()
    jpeg = hostile_images.encoded(hostile_images.photo(), "JPEG")
    for start in (
        b"",
        jpeg[:200],
        b"GIF89a",
        b"RIFF\xff\xff\xff\xffWEBP",
        b"\x00\x00\x00\x20ftypavif",
        b"BM",
        b"II*\x00",
        b"8BPS",
        b"%!PS-Adobe",
    ):
        yield start + noise
    for _ in range(20):
        broken = bytearray(jpeg)
        for place in random.Random(len(broken)).sample(range(len(broken)), 30):
            broken[place] ^= 255
        yield bytes(broken)


def overlays(target: Target) -> Outcome:
    """Request overlays of 49-megapixel images, many at a time."""
    image = hostile_images.encoded(Image.new("L", (7000, 7000), 90), "PNG")
    path = target.classify + "&cam=gradcam&format=overlay"
    yield from _together([lambda: _post(target, path, image)] * target.some(60))


def dynamic_sizes(target: Target) -> Outcome:
    """Send large inputs to a model that takes any size."""
    side = 3300 if target.scale >= 1 else 800
    described = {"name": "images", "datatype": "UINT8", "shape": [1, side, side, 3], "parameters": {"binary_data_size": side * side * 3}}
    head = json.dumps({"inputs": [described]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    body = head + b"\x55" * (side * side * 3)
    yield from _together([lambda: _post(target, f"/v2/models/{target.dynamic}/infer", body, headers)] * 4)


def score_cams(target: Target) -> Outcome:
    """Request a flood of Score-CAMs; the clients disconnect after some seconds."""
    image = hostile_images.encoded(hostile_images.photo(), "PNG")
    path = target.classify + "&cam=scorecam"
    yield from _together([lambda: _post(target, path, image, timeout_s=10)] * target.some(200))


# Messages


def field_bombs(target: Target) -> Outcome:
    """Send messages of 32 MiB that consist of many small fields."""
    for path, message in _field_bombs(target.some(32 << 20) - 200):
        yield _raw_call(target, path, message)


def _field_bombs(size: int) -> Iterator[tuple[str, bytes]]:
    for tag in (b"\x2a\x00", b"\x32\x00", b"\x3a\x00", b"\x22\x00"):  # inputs, outputs, raw contents, parameters
        yield MODEL_INFER, tag * (size // 2)
    for path in (MODEL_INFER, CLASSIFY):
        yield path, b"\xf8\x7f\x01" * (size // 3)  # unknown fields
        yield path, b"\x83\x01" * (size // 2)  # unknown groups that are never closed
    images = _field(1, b"images") + _field(2, b"UINT8")
    yield MODEL_INFER, _field(5, images + _field(3, b"\x01" * (size - 100)))  # a shape of millions of dimensions
    encoded = _field(1, b"encoded") + _field(2, b"BYTES") + _field(3, b"\x01")
    yield MODEL_INFER, _field(5, encoded + _field(5, b"\x42\x00" * ((size - 100) // 2)))
    number = pb.ClassifyRequest.DESCRIPTOR.fields_by_name
    classes = pb.MapRequest.DESCRIPTOR.fields_by_name["classes"].number
    yield CLASSIFY, _field(number["map"].number, _field(1, b"gradcam") + _field(classes, b"\x01" * (size - 100))) + _field(3, b"x")
    yield CLASSIFY, _field(number["request_id"].number, b"a" * (size - 100)) + _field(3, b"x")
    yield CLASSIFY, _field(number["model"].number, b"a" * (size - 100)) + _field(3, b"x")


def json_bombs(target: Target) -> Outcome:
    """Send JSON that is deeply nested, long, or full of large numbers."""
    path = f"/v2/models/{target.model}/infer"
    size = target.some(30_000_000)
    digits = "9" * 4200
    shaped = '{"inputs":[{"name":"images","datatype":"UINT8","shape":[%s],"data":[%s]}]}'
    bodies = (
        b"[" * size,
        b'{"a":' * (size // 5),
        b'{"inputs":[' + b"{}," * (size // 3) + b"{}]}",
        (shaped % ("1,64,64,3", "1," * (size // 2) + "1")).encode(),
        (shaped % (digits, "")).encode(),
        (shaped % (f"{digits},{digits}", "")).encode(),
        (shaped % ("1e300", "")).encode(),
        (shaped % ("1", digits)).encode(),
        (shaped % ("1", "NaN")).encode(),
        b'{"id":"' + b"\\u0041" * (size // 6) + b'"}',
        b'{"inputs":[],"inputs":5}',
        '{"inputs":[]}'.encode("utf-16"),
        b'{"id":"\\ud800","inputs":[]}',
    )
    for body in bodies:
        yield _post(target, path, body)


def compressed_bombs(target: Target) -> Outcome:
    """Send bodies that decompress to a thousand times their size."""
    zeros = gzip.compress(bytes(target.some(200_000_000)))
    for body in (zeros, zeros * 20, gzip.compress(b"") * 100_000, zeros[:-100]):
        for encoding in ("gzip", "x-gzip"):
            yield _post(target, target.classify, body, {"Content-Encoding": encoding})
    with _channel(target) as channel:
        call = channel.unary_unary(CLASSIFY, None, None)
        yield _code(lambda: call(bytes(30_000_000), timeout=WAIT_S, compression=grpc.Compression.Gzip))


def odd_queries(target: Target) -> Outcome:
    """Send parameters that are out of range, of another type, or far too long."""
    image = hostile_images.encoded(hostile_images.photo(), "PNG")
    for query in (
        "top_k=-1",
        "top_k=99999999999999999999",
        "top_k=" + "9" * 5000,
        "top_k=1e3",
        "cam=gradcam&classes=" + ",".join(["0"] * 10_000),
        "cam=gradcam&classes=" + "9" * 4301,
        "cam=gradcam&max_channels=2147483648999",
        "cam=scorecam&max_channels=-1",
        "cam=nothing",
        "version=%00",
        "version=..%2F..%2Fetc",
        "request_id=" + "%0a" * 50,
        "cam=gradcam&format=jpeg",
    ):
        yield _post(target, f"{target.classify}&{query}", image)
    with _channel(target) as channel:
        call = channel.unary_unary(CLASSIFY, None, None)
        for request_id in ("", "a" * 7000, "  a  "):
            metadata = [("x-request-id", request_id)]
            yield _code(partial(call, b"\x0a\x01z", timeout=WAIT_S, metadata=metadata))


# Connections


def abandoned_uploads(target: Target) -> Outcome:
    """Start uploads of 31 MB and disconnect before the last byte."""
    yield from _uploads(target, target.some(20), hold_s=0.5)


def unfinished_uploads(target: Target) -> Outcome:
    """Start uploads of 31 MB and pause before the last byte."""
    yield from _uploads(target, target.some(40), hold_s=10)


def unfinished_messages(target: Target) -> Outcome:
    """Start gRPC messages of 31 MB and pause before the last byte."""
    calls = [UnfinishedCall(target.grpc_port, 31_000_000) for _ in range(target.some(60))]
    send_unfinished(calls, 15)
    time.sleep(5)
    for call in calls:
        call.move()
        yield "ended by the server" if call.ended else "held"
        call.close()


def _uploads(target: Target, count: int, hold_s: float) -> Outcome:
    head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 31000000\r\n\r\n"
    body = memoryview(bytes(1 << 20))
    with ExitStack() as opened:
        connections = [opened.enter_context(_connect(target.http_port)) for _ in range(count)]
        sent = Counter[socket.socket]()
        end = time.monotonic() + hold_s + 5
        for connection in connections:
            with suppress(OSError):
                connection.sendall(head)
                connection.setblocking(False)
        while time.monotonic() < end and any(sent[connection] < 30_900_000 for connection in connections):
            moved = False
            for connection in connections:
                with suppress(OSError):
                    count_sent = connection.send(body[: min(len(body), 30_999_999 - sent[connection])])
                    sent[connection] += count_sent
                    moved = moved or count_sent > 0
            if not moved:
                time.sleep(0.02)
        time.sleep(hold_s)
        yield from (_first_line(connection) for connection in connections)


def slow_requests(target: Target) -> Outcome:
    """Send half a request, as the first or the second of a connection, then single bytes at long intervals."""
    whole = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    starts = (
        b"",
        whole[:30],
        whole,
        whole + whole[:14],
        whole + whole[:-2] + b"X: ",
        b"POST /nope HTTP/1.1\r\nContent-Length: 1000000\r\n\r\nabc",
    )
    with ExitStack() as opened:
        connections = [opened.enter_context(_connect(target.http_port)) for _ in range(target.some(120))]
        for number, connection in enumerate(connections):
            with suppress(OSError):
                connection.sendall(starts[number % len(starts)])
        for _ in range(5):
            time.sleep(1)
            for connection in connections[::3]:
                with suppress(OSError):
                    connection.sendall(b"a")
        yield f"{len(connections)} slow connections"


def connection_flood(target: Target) -> Outcome:
    """Open connections to both ports that send nothing, or something that is no request."""
    hellos = (
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 1000,
    )
    with ExitStack() as opened:
        for number in range(target.some(400)):
            with suppress(OSError):
                connection = opened.enter_context(_connect((target.http_port, target.grpc_port)[number % 2]))
                connection.sendall(hellos[number % len(hellos)])
        time.sleep(1)
        yield "connections closed"


def unread_streams(target: Target) -> Outcome:
    """Open streams and never read their answers."""
    request = pb.ClassifyRequest(encoded=hostile_images.encoded(hostile_images.photo(), "PNG"), model=target.model, top_k=1000)
    request.map.method = "gradcam"
    message = request.SerializeToString()
    with _channel(target) as channel:
        call = channel.stream_stream(CLASSIFY_STREAM, None, None)
        streams = [call((message for _ in range(2000)), timeout=10) for _ in range(target.some(8))]
        time.sleep(5)
        for stream in streams:
            stream.cancel()
        yield f"{len(streams)} streams cancelled"


def foreign_pages(target: Target) -> Outcome:
    """Send requests as a page of another site does, and by a rebound DNS name: nothing may be unloaded."""
    path = f"/v2/repository/models/{target.model}/unload"
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site", "Origin": "null"}):
        status = _post(target, path, b"{}", headers)
        yield f"{status} on a foreign page's unload"


ATTACKS: dict[str, Callable[[Target], Outcome]] = {
    attack.__name__: attack
    for attack in (
        scan_bombs,
        odd_images,
        overlays,
        dynamic_sizes,
        score_cams,
        field_bombs,
        json_bombs,
        compressed_bombs,
        odd_queries,
        abandoned_uploads,
        unfinished_uploads,
        unfinished_messages,
        slow_requests,
        connection_flood,
        unread_streams,
        foreign_pages,
    )
}


def run_attacks(target: Target, names: Sequence[str], seconds: float, seed: int, write: Callable[[str], None]) -> None:
    """Run the named attacks in random order until the time is over, each at least once; write a line with the outcomes of each."""
    order = random.Random(seed)
    end = time.monotonic() + seconds
    rounds = 0
    while not rounds or time.monotonic() < end:
        for name in order.sample(list(names), len(names)):
            if rounds and time.monotonic() >= end:
                break
            began = time.monotonic()
            try:
                outcomes = Counter(ATTACKS[name](target))
            except Exception:  # noqa: BLE001  # an attack that fails is reported, not a reason to stop
                outcomes = Counter([traceback.format_exc(limit=2)])
            write(json.dumps({"attack": name, "seconds": round(time.monotonic() - began, 1), "outcomes": outcomes}))
        rounds += 1


# Sending


def _field(number: int, body: bytes) -> bytes:
    """Return a length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def _first_line(connection: socket.socket) -> str:
    connection.settimeout(0.01)
    try:
        answer = connection.recv(200)
    except OSError as error:
        return type(error).__name__
    return answer.split(b"\r\n")[0].decode("latin-1") or "closed"


def _post(target: Target, path: str, body: bytes, headers: dict[str, str] | None = None, timeout_s: float = WAIT_S) -> str:
    """Send a request; return its status, or the exception's name."""
    connection = http.client.HTTPConnection("127.0.0.1", target.http_port, timeout=timeout_s)
    try:
        connection.putrequest("POST", path, skip_host=True, skip_accept_encoding=True)
        for name, value in ({"Host": "localhost", "Content-Length": str(len(body))} | (headers or {})).items():
            connection.putheader(name, value)
        connection.endheaders()
        with suppress(BrokenPipeError, ConnectionResetError):  # refused before the end: the answer may be there
            connection.send(io.BytesIO(body))
        response = connection.getresponse()
        response.read()
        return str(response.status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def _channel(target: Target) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{target.grpc_port}", [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)])


def _code(call: Callable[[], Any]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def _raw_call(target: Target, path: str, message: bytes) -> str:
    with _channel(target) as channel:
        return _code(lambda: channel.unary_unary(path, None, None)(message, timeout=WAIT_S))


def _classify(target: Target, image: bytes) -> str:
    request = pb.ClassifyRequest(encoded=image, model=target.model)
    return _raw_call(target, CLASSIFY, request.SerializeToString())


def _together(calls: Sequence[Callable[[], str]]) -> Outcome:
    """Call all functions at once, in threads."""
    outcomes: list[str] = []
    threads = [threading.Thread(target=lambda call=call: outcomes.append(call())) for call in calls]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield from outcomes
