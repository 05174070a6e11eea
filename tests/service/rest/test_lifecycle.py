"""HTTP together with gRPC from start to shutdown: loopback, TLS, tokens, disconnects, and requests in flight at a signal."""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.service.http_requests import ADDRESS, Answered, Asking, http_in_background
from tests.helpers.service.made_certificates import Made, make
from tests.helpers.service.sample_images import RED, encode, scene, slow_image
from tests.helpers.service.server_process import ServerProcess, server_process
from tests.helpers.service.toy_model import METHODS, SIZE, ToyModel
from tlcli.contract.errors import SettingsError
from tlcli.service import Client, Server, ServerSettings, in_background

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
CLASSIFY = "/v1/classify"
AUTHORITY, STRANGER = make("authority", is_authority=True), make("stranger", is_authority=True)
SERVER = make("first", AUTHORITY)
ANNA, BELA = "a" * 40, "b" * 40


def http_port(server: ServerProcess) -> int:
    """Wait until the models are loaded, and return the HTTP port."""
    with Client(port=server.port) as client:
        client.wait_until_ready()
    found = ADDRESS.search("".join(server.log))
    assert found, server.log
    return int(found[1])


def trusting(*authorities: Made, own: dict[str, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata="".join(one.certificate_pem.decode() for one in authorities))
    if own is not None:
        context.load_cert_chain(own["tls_certificate"], own["tls_key"])
    return context


def shown(port: int) -> str:
    """Return the name in the certificate that the server presents."""
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        trusting(AUTHORITY).wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        found: Any = secured.getpeercert()
    return str(dict(part[0] for part in found["subject"])["commonName"])


def replace(path: Path, content: bytes) -> None:
    """Replace a file by a rename, with another modification time."""
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    os.rename(beside, path)


def test_settings_of_the_port_are_checked() -> None:
    with pytest.raises(SettingsError, match=r"^http_port 8001: already used for gRPC \(port\): choose another, or 0 for a free port$"):
        ServerSettings(http_port=8001)
    with pytest.raises(SettingsError, match="http_port 70000: expected 1 to 65535, or 0 for a free port"):
        ServerSettings(http_port=70000)
    assert ServerSettings(port=0, http_port=0).http_port == 0
    assert ServerSettings().http_port is None


def test_a_port_in_use_is_one_line(one_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        expected = f"cannot listen on 127.0.0.1:{port} for HTTP: Address already in use: choose another address with --host"
        with pytest.raises(SettingsError, match=expected), in_background(ServerSettings(models=one_model, port=0, http_port=port)):
            pass


def test_the_port_is_closed_if_grpcs_is_in_use(one_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = ServerSettings(models=one_model, port=taken.getsockname()[1], http_port=port)
        with pytest.raises(SettingsError, match="Address already in use"), in_background(settings):
            pass
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_both_protocols_answer_alike(one_model: Path) -> None:
    with server_process(one_model, http_port=0) as server:
        with Asking(http_port(server)) as asking, Client(port=server.port) as client:
            over_http = asking.post(f"{CLASSIFY}?top_k=7", IMAGE).json["predictions"]
            assert over_http == [
                {
                    "class_id": one.class_id,
                    "label": one.label,
                    "score": one.score,
                    "rank": one.rank,
                    "logit": one.logit,
                    "assigned": one.assigned,
                    "threshold": one.threshold,
                }
                for one in client.classify(IMAGE, top_k=7).predictions
            ]
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    log = "".join(server.log)
    assert "stopped" in server.log[-1]
    assert "Traceback" not in log
    assert "uvicorn" not in log.lower()
    assert "Started server process" not in log


def test_a_name_with_both_loopback_addresses(one_model: Path) -> None:
    with http_in_background(ServerSettings(models=one_model, host="localhost", port=0, http_port=0)) as port:
        for family, *_, place in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM):
            if family == socket.AF_INET:
                connection = http.client.HTTPConnection(place[0], port, timeout=60)
                connection.request("GET", "/v2/health/ready")
                assert connection.getresponse().status == 200
                connection.close()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return SERVER.save(tmp_path, "server")


def test_tls_with_the_same_files(one_model: Path, files: dict[str, Path]) -> None:
    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0, **files)) as port:
        with Asking(port, trusting(AUTHORITY)) as asking:
            assert asking.get("/v2/health/ready").json == {"ready": True}
            assert asking.post(CLASSIFY, IMAGE).json["predictions"]
        with Asking(port, trusting(STRANGER)) as asking, pytest.raises(ssl.SSLCertVerificationError):
            asking.get("/v2")
        with Asking(port) as asking, pytest.raises((OSError, http.client.HTTPException)):
            asking.get("/v2")
        assert shown(port) == "first"


def test_a_replaced_certificate_is_used_at_once_and_a_broken_one_never(one_model: Path, files: dict[str, Path]) -> None:
    second = make("second", AUTHORITY)
    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0, **files)) as port:
        with Asking(port, trusting(AUTHORITY)) as asking:
            assert asking.get("/v2").status == 200
            replace(files["tls_key"], second.key_pem)  # half of it: it does not fit
            assert shown(port) == "first"
            replace(files["tls_certificate"], second.certificate_pem)
            assert shown(port) == "second"
            assert asking.get("/v2").status == 200  # the connection that stands goes on
        files["tls_certificate"].unlink()
        assert shown(port) == "second"


def test_mutual_tls(one_model: Path, tmp_path: Path, files: dict[str, Path]) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(AUTHORITY.certificate_pem)
    known, unknown = (make("client", one).save(tmp_path, f"client{number}") for number, one in enumerate((AUTHORITY, STRANGER)))
    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0, tls_client_ca=ca, **files)) as port:

        def let_in(own: dict[str, Path] | None) -> bool:
            try:
                with Asking(port, trusting(AUTHORITY, own=own)) as asking:
                    return asking.post(CLASSIFY, IMAGE).status == 200
            except (OSError, http.client.HTTPException):
                return False

        assert [let_in(known), let_in(unknown), let_in(None)] == [True, False, False]
        replace(ca, STRANGER.certificate_pem)
        assert [let_in(known), let_in(unknown), let_in(None)] == [False, True, False]


def test_tokens(one_model: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"anna: {ANNA}\n")
    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0, tokens_file=tokens)) as port, Asking(port) as asking:
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert asking.get(path).status == 200
        expected = "no token: this server requires one: send 'authorization: Bearer TOKEN' with the call"
        for path in (
            "/v2",
            "/docs",
            "/openapi.json",
            "/v2/models/toy",
            "/v2/models/toy/ready",
            "/nosuch",
            "/v2/health/live/",
            "//v2/health/live",
        ):
            answer = asking.get(path)
            assert answer.refusal == (401, expected)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert asking.post(CLASSIFY, IMAGE).refusal == (401, expected)
        assert asking.post(CLASSIFY, IMAGE, Authorization=f"Bearer {ANNA}").json["predictions"]
        assert asking.post(CLASSIFY, IMAGE, Authorization=f"bearer  {ANNA}").status == 200
        for wrong in (f"Bearer {BELA}", f"Basic {ANNA}", ANNA, "Bearer", "Bearer \xe9"):
            assert asking.post(CLASSIFY, IMAGE, Authorization=wrong).refusal[0] == 401
        replace(tokens, f"{BELA}\n".encode())
        assert asking.get("/v2", Authorization=f"Bearer {ANNA}").refusal == (
            401,
            "unknown token: it may have been replaced",
        )
        assert asking.get("/v2", Authorization=f"Bearer {BELA}").status == 200
        document = asking.get("/openapi.json", Authorization=f"Bearer {BELA}").json
        assert document["security"] == [{"token": []}]
        assert document["paths"]["/v2/health/live"]["get"]["security"] == []


def test_requests_are_refused_until_the_models_are_loaded(one_model: Path) -> None:
    async def main() -> None:
        server = Server(ServerSettings(models=one_model, port=0, http_port=port, pre_stop_s=1))
        await server.start()

        def ask() -> list[Answered]:
            with Asking(port) as asking:
                paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/toy/ready")
                return [*map(asking.get, paths), asking.post(CLASSIFY, IMAGE)]

        live, ready, model, refused = await asyncio.to_thread(ask)
        assert (live.status, ready.status, model.status) == (200, 400, 400)
        assert ready.json == {"ready": False}
        assert refused.refusal == (503, "the server is still loading its models: retry in a moment")
        assert refused.headers["Retry-After"] == "1"
        await server.load()
        assert [one.status for one in await asyncio.to_thread(ask)] == [200] * 4
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0.1)
        answers = await asyncio.to_thread(ask)  # requests that come all the same are answered
        assert [one.status for one in answers] == [200, 400, 200, 200]
        assert {one.headers["Connection"] for one in answers} == {"close"}
        await stopping

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    asyncio.run(main())


def test_requests_are_observed_and_health_is_not(one_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tokens = tmp_path / "tokens"
    tokens.write_text(ANNA)
    settings = ServerSettings(models=one_model, port=0, http_port=0, log_requests=True, tokens_file=tokens)
    with http_in_background(settings) as port, Asking(port) as asking:
        let_in = {"Authorization": f"Bearer {ANNA}", "X-Request-ID": "mine"}
        assert asking.get("/v2/health/ready").status == 200
        assert asking.post(CLASSIFY, IMAGE).status == 401
        assert asking.post(f"{CLASSIFY}?model=nosuch", IMAGE, **let_in).status == 404
        assert asking.post(CLASSIFY, IMAGE, **let_in).status == 200
    lines = [record.getMessage() for record in caplog.records if "POST /v1/classify" in record.getMessage()]
    assert len(lines) == 3
    for line, expected in zip(lines, ("UNAUTHENTICATED", "NOT_FOUND", "OK"), strict=True):
        assert f" {expected}" in line
    assert all("mine" in line for line in lines[1:])
    assert not any("/v2/health" in record.getMessage() for record in caplog.records)


@contextmanager
def sent(port: int, path: str, body: bytes) -> Iterator[socket.socket]:
    """Send a request without reading the answer."""
    with socket.create_connection(("127.0.0.1", port)) as plain:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        plain.sendall(head.encode() + body)
        yield plain


def test_a_disconnect_cancels_the_work(one_model: Path) -> None:
    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0, image_threads=1)) as port, Asking(port) as asking:
        one_ns = asking.post(CLASSIFY, slow_image()).json["timings"]["decode_time_ns"]
        for _ in range(40):
            with sent(port, CLASSIFY, slow_image()):
                pass
        timings = asking.post(CLASSIFY, IMAGE).json["timings"]
        assert timings["queue_time_ns"] < 5 * one_ns  # 40 of them would keep the thread busy for 40 times as long


def test_a_disconnect_cancels_a_score_cam(tmp_path: Path) -> None:
    ToyModel.make(seed=1, channels=2000).save(tmp_path / "wide/1/model.onnx", "wide")
    path = f"{CLASSIFY}?cam=scorecam&max_channels=2000"
    with http_in_background(ServerSettings(models=tmp_path, port=0, http_port=0)) as port, Asking(port) as asking:
        begun = time.monotonic()
        assert asking.post(path, IMAGE).status == 200
        whole_s = time.monotonic() - begun
        for _ in range(5):
            with sent(port, path, IMAGE):
                time.sleep(0.05)
        begun = time.monotonic()
        assert asking.post(path, IMAGE).status == 200
        assert time.monotonic() - begun < 3 * whole_s  # five more would share its turns


def test_sigterm_answers_requests_in_flight_and_exits_with_0(one_model: Path) -> None:
    with server_process(one_model, http_port=0) as server:
        port = http_port(server)

        def ask(number: int) -> tuple[int, str]:
            with Asking(port) as asking:
                answer = asking.post(f"{CLASSIFY}?request_id={number}", slow_image())
                return answer.status, answer.json["request_id"]

        with ThreadPoolExecutor(12) as threads, Asking(port) as idle:
            assert idle.get("/v2").status == 200
            asked = [threads.submit(ask, number) for number in range(12)]
            while not any(one.done() for one in asked):
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            assert sum(not one.done() for one in asked) > 4
            assert [one.result() for one in asked] == [(200, str(number)) for number in range(12)]
            assert server.wait() == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    assert "stopped" in server.log[-1]
    assert "Traceback" not in "".join(server.log)


def test_requests_that_outlast_the_grace_period_are_refused(one_model: Path) -> None:
    with server_process(one_model, http_port=0, grace_s=0.3, image_threads=1) as server:
        port = http_port(server)
        with ThreadPoolExecutor(8) as threads, socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf")  # and never the rest

            def ask() -> Answered:
                with Asking(port) as asking:
                    return asking.post(CLASSIFY, slow_image())

            asked = [threads.submit(ask) for _ in range(8)]
            while not any(one.done() for one in asked):
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            answers = [one.result() for one in asked]
            refused = [one for one in answers if one.status != 200]
            assert refused
            for one in refused:
                assert one.refusal == (503, "the server shut down before it responded: retry to reach its replacement")
            assert b" 503 " in slow.recv(1000)
        assert server.wait() == 0
    assert "Traceback" not in "".join(server.log)


def test_a_client_that_does_not_read_does_not_delay_the_shutdown(one_model: Path) -> None:
    with server_process(one_model, http_port=0, grace_s=0.3) as server:
        port = http_port(server)
        many = b'{"inputs":[{"name":"images","datatype":"UINT8","shape":[40,64,64,3],"parameters":{"binary_data_size":%d}}]'
        many += b',"outputs":[%s]}' % b",".join(b'{"name":"%s"}' % one.encode() for one in METHODS[:2])
        head = many % (40 * SIZE * SIZE * 3)
        with socket.create_connection(("127.0.0.1", port)) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            body = head + bytes(40 * SIZE * SIZE * 3)
            start = f"POST /v2/models/toy/infer HTTP/1.1\r\nHost: localhost\r\nInference-Header-Content-Length: {len(head)}\r\n"
            for _ in range(3):
                deaf.sendall(start.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.5)
            begun = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.wait() == 0
            assert time.monotonic() - begun < 10


def test_a_second_signal_does_not_wait(one_model: Path) -> None:
    with server_process(one_model, http_port=0, pre_stop_s=100) as server:
        with Asking(http_port(server)) as asking:
            server.process.send_signal(signal.SIGTERM)
            while asking.get("/v2/health/ready").status == 200:
                time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_many_connections_at_once(one_model: Path) -> None:
    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0)) as port:
        wrong: list[int] = []

        def ask() -> None:
            with Asking(port) as asking:
                wrong.extend(one for one in (asking.post(CLASSIFY, IMAGE).status for _ in range(10)) if one != 200)

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
