"""Readiness of a server whose decoding threads are all stuck, and its shutdown in spite of them."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.helpers.contract.hostile_images import encoded, photo
from tests.helpers.service.http_requests import Asking
from tlcli.service import ServerSettings, in_background
from tlcli.service.decoding import image_pipeline

FROZEN = """
import pathlib, sys, time
import tlcli.service
from tlcli.service.decoding import image_pipeline
image_pipeline.from_encoded = lambda *args: time.sleep(3600)
tlcli.service.serve(tlcli.service.ServerSettings(models=pathlib.Path(sys.argv[1]), port=0, http_port=0, grace_s=0.5, image_threads=1))
"""
GRACE_S, CLOSING_S = 0.5, 2.0


def await_ready(http_port: int, expected: bool) -> None:
    end = time.monotonic() + 30
    while True:
        with Asking(http_port) as http:
            if http.get("/v2/health/ready").status == (200 if expected else 400):
                return
        assert time.monotonic() < end
        time.sleep(0.05)


def ask_and_forget(http_port: int) -> threading.Thread:
    def ask() -> None:
        with Asking(http_port) as http, suppress(OSError):  # the server has ended
            http.post("/v1/classify?model=toy", encoded(photo(), "PNG"))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


def test_a_server_that_cannot_decode_is_not_ready_until_it_can(one_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go, decode = threading.Event(), image_pipeline.from_encoded

    def wait(*args: object) -> object:
        assert go.wait(60)
        return decode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(image_pipeline, "from_encoded", wait)
    with socket.create_server(("127.0.0.1", 0)) as free:
        http_port = free.getsockname()[1]
    settings = ServerSettings(models=one_model, port=0, http_port=http_port, image_threads=2, max_decode_s=0.1)
    with in_background(settings) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        threads = [ask_and_forget(http_port)]
        time.sleep(1.5)
        await_ready(http_port, True)  # one thread is left
        threads.append(ask_and_forget(http_port))
        await_ready(http_port, False)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        go.set()
        await_ready(http_port, True)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        for thread in threads:
            thread.join(30)


def test_a_stuck_thread_does_not_delay_the_shutdown(one_model: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", FROZEN, str(one_model)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line)
            if "serving 1 of 1" in line:
                break
        found = re.search(r"HTTP at http://127\.0\.0\.1:(\d+)", "".join(lines))
        assert found, lines
        ask_and_forget(int(found[1]))
        time.sleep(0.5)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert time.monotonic() - begun < GRACE_S + CLOSING_S + 0.5  # half a second for a busy machine
        assert "threads are still running: exiting without waiting for them" in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()
