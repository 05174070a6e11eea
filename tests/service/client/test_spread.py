"""Tests of load balancing over several servers behind one name, such as a headless Service, including servers added later."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.helpers.service.sample_images import RED, encode, scene
from tests.service.conftest import FIRST
from tlcli.service import ServerSettings, in_background
from tlcli.service.client.connection import Connection
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub

ROUNDS = 6


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the gRPC target for a name with two addresses: a server of the model `left` and one of `right`."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("left", "right"):
        FIRST.save(folder / name / name / "1/model.onnx", name)
    with (
        in_background(ServerSettings(models=folder / "left", port=0)) as left,
        in_background(ServerSettings(models=folder / "right", port=0)) as right,
    ):
        yield f"ipv4:127.0.0.1:{left},127.0.0.1:{right}"


def answered_by(connection: Connection, addresses: str) -> list[str]:
    """Return the names of the models that answer some requests of one client."""
    connection.address = addresses  # a test has no name server
    with connection.channel() as channel:
        stub = ClassifierStub(channel)
        ask = [stub.ListModels(pb.ListModelsRequest(), timeout=20, wait_for_ready=True).models[0].name for _ in range(ROUNDS)]
        # The second connection may stand a moment after the first.
        return ask + [stub.ListModels(pb.ListModelsRequest(), timeout=20).models[0].name for _ in range(ROUNDS)]


@pytest.mark.parametrize("retries", [0, 4])
def test_requests_go_to_all_addresses_of_a_name(addresses: str, retries: int) -> None:
    last = answered_by(Connection("models.example", 8001, retries=retries), addresses)[-ROUNDS:]
    assert sorted(last) == ["left"] * (ROUNDS // 2) + ["right"] * (ROUNDS // 2)


def test_on_this_machine_to_one(addresses: str) -> None:
    assert len(set(answered_by(Connection("localhost", 8001), addresses))) == 1


def test_a_connection_that_is_old_is_made_anew_and_no_request_is_lost(one_model: Path) -> None:
    image = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
    connected: list[grpc.ChannelConnectivity] = []
    request = pb.ClassifyRequest(encoded=image)
    with (
        in_background(ServerSettings(models=one_model, port=0, max_connection_age_s=0.3)) as port,
        Connection("127.0.0.1", port).channel() as channel,
        ThreadPoolExecutor(4) as pool,
    ):
        channel.subscribe(lambda state: connected.append(state) if state is grpc.ChannelConnectivity.READY else None)
        ends = time.monotonic() + 2
        stub = ClassifierStub(channel)

        def ask() -> int:
            answered = 0
            while time.monotonic() < ends:
                assert stub.Classify(request, timeout=20).predictions
                answered += 1
            return answered

        assert sum(one.result() for one in [pool.submit(ask) for _ in range(4)]) > 20
    assert len(connected) >= 3
