"""Tests of a handover: a new server replaces an old one on the same port without losing a request."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from tests.helpers.service.sample_images import encode, scene
from tests.helpers.service.server_process import server_process
from tests.service.conftest import FIRST, SECOND
from tlcli.contract.errors import TlcliError
from tlcli.service import Client
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub

CLIENTS = 8
Failure = grpc.RpcError | TlcliError
RETRIES = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
"""gRPC's standard policy, gRFC A6."""


def test_a_second_server_takes_over_the_port(tmp_path: Path) -> None:
    for version, model in enumerate((FIRST, SECOND), 1):
        model.save(tmp_path / f"{version}/toy/{version}/model.onnx", "toy")
    image = encode(scene((200, 30, 30), (40, 40, 120, 120)))
    answered: Counter[str] = Counter()
    failed: list[Failure] = []
    over = threading.Event()

    with server_process(tmp_path / "1", reuse_port=True) as old:
        port = old.port

        def ask_as_we_do() -> None:
            with Client(port=port) as client:
                while not over.is_set():
                    try:
                        answered[client.classify(image, timeout_s=20).version] += 1
                    except TlcliError as error:
                        failed.append(error)
                        return

        def ask(number: int) -> None:
            options = [("grpc.service_config", RETRIES), ("grpc.use_local_subchannel_pool", 1)]
            while not over.is_set():
                with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
                    stub = ClassifierStub(channel)
                    for _ in range(10 if number % 2 else 1000):  # some stay connected, some connect anew
                        if over.is_set():
                            return
                        try:
                            answered[stub.Classify(pb.ClassifyRequest(encoded=image), timeout=20).version] += 1
                        except grpc.RpcError as error:
                            failed.append(error)
                            return

        with Client(port=port) as client:
            client.wait_until_ready(timeout_s=30)
        with ThreadPoolExecutor(CLIENTS) as pool:
            for number in range(CLIENTS - 2):
                pool.submit(ask, number)
            for _ in range(2):
                pool.submit(ask_as_we_do)
            try:
                time.sleep(0.5)
                with server_process(tmp_path / "2", port=port, reuse_port=True) as new:
                    while not any("serving 1 of 1" in line for line in list(new.log)):
                        time.sleep(0.05)
                    time.sleep(0.5)
                    old.process.send_signal(signal.SIGTERM)
                    assert old.wait(30) == 0
                    alone = answered["2"]
                    time.sleep(0.5)
                    over.set()
                    pool.shutdown()
                    assert answered["2"] > alone
            finally:
                over.set()
    assert not failed, failed[0]
    assert answered["1"] > 20
    assert answered.keys() == {"1", "2"}
