"""Tests of the memory budget: requests that wait or are rejected, and memory that is returned."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from tests.helpers.contract.hostile_images import encoded, photo, scan_bomb
from tests.helpers.service.http_requests import Asking, http_in_background
from tests.helpers.service.server_process import ServerProcess, server_process
from tests.helpers.service.toy_model import SIZE, ToyModel
from tlcli.service import Client, ServerSettings, in_background

MB = 1_000_000
CLASSIFY = "/v1/classify?model=toy"


@pytest.fixture(scope="module")
def small_server(one_model: Path) -> Iterator[int]:
    settings = ServerSettings(models=one_model, port=0, http_port=0, max_memory_bytes=20 * MB, max_decode_s=0.5)
    with http_in_background(settings) as port:
        yield port


def unfinished_upload(port: int, size: int, sent: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"POST {CLASSIFY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(sent))
    return connection


def test_unfinished_uploads_are_refused_while_plain_requests_are_answered(small_server: int) -> None:
    with ExitStack() as uploads, Asking(small_server) as http:
        held = [uploads.enter_context(unfinished_upload(small_server, 4 * MB, 4 * MB - 1000)) for _ in range(5)]
        began = time.monotonic()
        assert http.post(CLASSIFY, encoded(photo(), "PNG")).status == 200
        assert time.monotonic() - began < 1.5
        refused = []
        for connection in held:
            connection.settimeout(3)
            answer = b""
            with suppress(TimeoutError):
                while b"}" not in answer:
                    answer += connection.recv(4096) or b"}"
                refused.append(answer)
    assert len(refused) >= 3  # 10 MB hold one of them, or two of which neither can be whole
    for answer in refused:
        assert answer.startswith(b"HTTP/1.1 503"), answer
        assert b"retry-after: 2" in answer.lower()
        assert b"no memory for this request" in answer


def test_announced_bodies_that_do_not_come_take_no_memory_from_others(small_server: int) -> None:
    image = encoded(photo(700, 700), "BMP")
    assert MB < len(image) < 6 * MB
    with ExitStack() as uploads, Asking(small_server) as http:
        for size in [4 * MB] * 5 + [150_000] * 60:
            uploads.enter_context(unfinished_upload(small_server, size, sent=100))
        time.sleep(0.3)
        assert http.post(CLASSIFY, image).status == 200


def test_a_body_in_chunks_is_counted_whatever_length_it_announces(small_server: int) -> None:
    size = 6 * MB  # with a copy more than the 10 MB that bodies may take
    head = f"POST {CLASSIFY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n{size:x}\r\n".encode()
    with socket.create_connection(("127.0.0.1", small_server)) as connection:
        connection.settimeout(20)
        with suppress(ConnectionError):  # refused while it sends
            connection.sendall(head + bytes(size) + b"\r\n0\r\n\r\n")
        assert connection.recv(4096).split(b" ")[1] in (b"400", b"503")


def test_an_image_larger_than_the_budget_is_told_so(small_server: int) -> None:
    with Asking(small_server) as http:
        status, told = http.post(CLASSIFY, encoded(photo(3000, 3000), "PNG")).refusal
    assert status == 400
    assert "send a smaller image" in told
    assert "max_memory_bytes" in told


def test_images_wait_for_each_others_memory(one_model: Path) -> None:
    """Send images that take 10 MB of 20 each: they run one at a time and all succeed, although their bodies alone would fill the budget."""
    settings = ServerSettings(models=one_model, port=0, http_port=0, max_memory_bytes=20 * MB)
    data = encoded(photo(1400, 1400), "PNG")
    with http_in_background(settings) as port, ExitStack() as connections:
        asking = [connections.enter_context(Asking(port)) for _ in range(6)]
        for one in asking:
            one.connection.request("POST", CLASSIFY, data)
        assert [one.answer().status for one in asking] == [200] * 6


def test_an_image_that_takes_too_long_is_refused_and_others_are_not_kept(small_server: int) -> None:
    bomb, plain = scan_bomb(1000, 60_000), encoded(photo(), "JPEG")
    with ExitStack() as connections, Asking(small_server) as http:
        bombs = [connections.enter_context(Asking(small_server)) for _ in range(3)]
        for one in bombs:
            one.connection.request("POST", CLASSIFY, bomb)
        assert http.post(CLASSIFY, plain).status == 200
        assert {one.answer().refusal for one in bombs} == {
            (400, "the image takes more than 0.5 s to decode: reduce its size, or save it as a baseline JPEG or PNG")
        }


def test_runs_of_another_size_take_from_the_budget(tmp_path: Path) -> None:
    ToyModel.make(seed=5, dynamic=True).save(tmp_path / "any/1/model.onnx", "any")
    side = SIZE * 8
    with (
        http_in_background(ServerSettings(models=tmp_path, port=0, http_port=0, max_memory_bytes=2 * MB)) as port,
        Asking(port) as http,
    ):
        for size, expected in ((SIZE, 200), (side, 400)):
            about = {"name": "images", "datatype": "UINT8", "shape": [1, size, size, 3], "data": [0] * (3 * size * size)}
            answer = http.post("/v2/models/any/infer", {"inputs": [about]})
            assert answer.status == expected, answer.body[:300]


def resident_mb(server: ServerProcess) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1000


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_refused_messages_and_abandoned_uploads_leave_nothing(one_model: Path) -> None:
    with server_process(one_model, http_port=0) as server:
        with Client(port=server.port) as client, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            client.classify(np.zeros((SIZE, SIZE, 3), np.uint8))
            http_port = int("".join(server.log).split("HTTP at http://127.0.0.1:")[1].split(",")[0])
            with Asking(http_port) as http:
                assert http.post(CLASSIFY, b"no image").status == 400
            before = resident_mb(server)
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for _ in range(8):
                with pytest.raises(grpc.RpcError, match=r"more than [0-9,]+ fields"):
                    infer(b"\x2a\x00" * 5 * MB)
                with Asking(http_port) as http:
                    assert http.post(CLASSIFY, b"no image" * MB).status == 400
                with socket.create_connection(("127.0.0.1", http_port)) as upload:
                    upload.sendall(
                        f"POST {CLASSIFY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10 * MB}\r\n\r\n".encode() + bytes(9 * MB)
                    )
        end = time.monotonic() + 15
        while (after := resident_mb(server)) > before + 25 and time.monotonic() < end:
            time.sleep(0.2)
        assert after < before + 25


def test_a_large_health_check_is_answered_at_once(one_model: Path) -> None:
    with in_background(ServerSettings(models=one_model, port=0)) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", response_deserializer=health_pb2.HealthCheckResponse.FromString)
        parsed = check(b"\xf8\x7f\x01" * 5 * MB)
        assert parsed.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            check(health_pb2.HealthCheckRequest(service="nobody").SerializeToString())
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
