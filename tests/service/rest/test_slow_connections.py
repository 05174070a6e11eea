"""Connections that are slow, too many, half closed or not read: each ends, and the others are answered."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.service.http_requests import Asking, http_in_background
from tests.helpers.service.sample_images import RED, encode, scene
from tests.helpers.service.toy_model import ToyModel
from tlcli.service import ServerSettings
from tlcli.service.system.file_limit import fitting_connections

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
POST = b"POST /v1/classify%s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def port(one_model: Path) -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patched:
        for name, seconds in {"_HEAD_S": 1.0, "_REST_S": 1.0, "_STALL_S": 0.5}.items():
            patched.setattr(f"tlcli.service.rest.http_connections.{name}", seconds)
        with http_in_background(ServerSettings(models=one_model, port=0, http_port=0, max_connections=12)) as port:
            yield port


def connect(port: int, *sent: bytes) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", port))
    one.settimeout(10)
    for part in sent:
        one.sendall(part)
    return one


def read_answer(one: socket.socket) -> bytes:
    answer = b""
    while not answer.endswith(b"}"):
        part = one.recv(65536)
        if not part:
            break
        answer += part
    return answer


def closed_after_s(one: socket.socket, drip: bytes = b"") -> float:
    """Return the seconds until the server closes the connection, to which `drip` is sent every fifth of a second."""
    begun = time.monotonic()
    one.settimeout(0.2)
    while time.monotonic() - begun < 8:
        try:
            if drip:
                one.sendall(drip)
            if not one.recv(65536):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    one.close()
    return time.monotonic() - begun


@pytest.mark.parametrize("drip", [b"", b"a"])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_connection_without_a_request_ends_before_the_first_and_later_ones(port: int, before: int, drip: bytes) -> None:
    with connect(port) as one:
        for _ in range(before):
            one.sendall(LIVE)
            assert read_answer(one).endswith(b'{"live":true}')
        one.sendall(b"GET /v2/health/live HTTP/1.1\r\nX-Slow: ")
        assert closed_after_s(one, drip) < 2.5


@pytest.mark.parametrize("drip", [b"", b"a"])
@pytest.mark.parametrize(
    "head",
    [
        b"POST /nope HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\nabc",
        b"POST /v1/classify?nope=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99000000\r\n\r\nabc",
        b"GET /v2/health/live HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nabc",
        b"POST /nope HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
    ],
)
def test_the_rest_of_a_body_after_the_answer_has_a_time_limit(port: int, head: bytes, drip: bytes) -> None:
    with connect(port, head) as one:
        assert read_answer(one).startswith(b"HTTP/1.1 ")
        assert closed_after_s(one, drip) < 2.5


def test_a_body_that_ends_in_time_keeps_the_connection(port: int) -> None:
    with connect(port, b"POST /nope HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 6\r\n\r\nabc") as one:
        assert read_answer(one).startswith(b"HTTP/1.1 404 ")
        one.sendall(b"def" + LIVE)
        assert read_answer(one).endswith(b'{"live":true}')


def test_the_connection_of_a_client_that_does_not_read_ends(port: int) -> None:
    with connect(port) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.settimeout(1)
        begun = time.monotonic()
        while time.monotonic() - begun < 15:
            try:
                one.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 20)
            except TimeoutError:
                time.sleep(0.1)
            except OSError:  # the reset, or the pipe that it broke
                break
        assert time.monotonic() - begun < 12


@pytest.mark.parametrize("size", [1, 2])
def test_a_client_that_closes_only_its_own_side_is_answered(port: int, size: int) -> None:
    request = POST % (b"?top_k=1", len(IMAGE)) + IMAGE
    with connect(port, request * size) as one:
        one.shutdown(socket.SHUT_WR)
        whole = b""
        while part := one.recv(65536):
            whole += part
    assert whole.count(b"HTTP/1.1 200 OK") == whole.count(b'"predictions":[{"class_id":') == size


def test_a_half_closed_client_is_answered_after_a_long_wait_and_the_work_of_one_that_left_is_cancelled(
    one_model: Path, held_up: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    request = POST % (b"", len(IMAGE)) + IMAGE
    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0, log_requests=True)) as port:
        held_up.clear()
        waits, leaves = connect(port, request), connect(port, request)
        waits.shutdown(socket.SHUT_WR)
        leaves.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        leaves.close()
        for _ in range(80):
            if any("CANCELLED" in one.getMessage() for one in caplog.records):
                break
            time.sleep(0.1)
        assert sum("CANCELLED" in one.getMessage() for one in caplog.records) == 1
        held_up.set()
        response = http.client.HTTPResponse(waits)
        response.begin()  # passes interim answers over, as clients do
        assert response.status == 200
        assert len(json.loads(response.read())["predictions"]) == 5
        waits.close()


def test_connections_over_the_limit_are_refused_with_a_line(port: int) -> None:
    held = []
    try:
        for _ in range(12):
            held.append(connect(port, LIVE))
            assert read_answer(held[-1]).endswith(b'{"live":true}')
        with connect(port, LIVE) as refused:
            answer = read_answer(refused)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"Retry-After: 1" in answer
            assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {
                "error": "connection limit of this server reached (max_connections): retry in 1 s"
            }
    finally:
        for one in held:
            one.close()
    time.sleep(0.3)
    with Asking(port) as asking:
        assert asking.post("/v1/classify", IMAGE).status == 200


def test_connections_without_a_tls_handshake_count_and_end(one_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.helpers.service.made_certificates import make

    monkeypatch.setattr("tlcli.service.rest.http_connections._HANDSHAKE_S", 0.5)
    files = make("server").save(tmp_path, "server")
    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0, max_connections=2, **files)) as port:
        silent = [connect(port) for _ in range(2)]
        time.sleep(0.2)
        assert closed_after_s(connect(port)) < 0.5
        assert all(closed_after_s(one) < 2 for one in silent)
        again = connect(port)
        time.sleep(0.2)
        again.settimeout(0.01)
        with pytest.raises(TimeoutError):
            again.recv(1)
        again.close()


def test_running_out_of_file_descriptors_logs_one_line(
    one_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import resource

    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0)) as port:
        waiting = [socket.socket() for _ in range(3)]
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = socket.socket()
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare.fileno() + 1, before[1]))
        try:
            caplog.clear()
            for one in waiting:
                one.settimeout(10)
                one.connect(("127.0.0.1", port))
            time.sleep(1.2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        messages = [one.getMessage() for one in caplog.records]
        assert [one for one in messages if "cannot accept connections: Too many open files" in one] == messages[:1]
        assert len(messages) == 1
        for one in waiting:
            one.sendall(LIVE)
            assert read_answer(one).endswith(b'{"live":true}')
            one.close()
        spare.close()


def test_max_connections_fits_the_limit_of_open_files(caplog: pytest.LogCaptureFixture) -> None:
    import os
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken + 24 + 40, before[1]))
        assert 19 <= fitting_connections(1024, 2) <= 20
        assert "this process may open" in caplog.text
        assert fitting_connections(5, 2) == 5
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_unfinished_upload_ends_with_its_connection(tmp_path: Path) -> None:
    ToyModel.make(seed=1).save(tmp_path / "toy/1/model.onnx", "toy")
    settings = ServerSettings(models=tmp_path, port=0, http_port=0)
    with http_in_background(settings) as port, connect(port, POST % (b"", 1000), b"half") as one:
        one.shutdown(socket.SHUT_WR)
        assert closed_after_s(one) < 2
