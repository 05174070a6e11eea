"""Tests of cancelled requests: only the step in progress is finished, and the server goes on serving."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.helpers.service.sample_images import RED, encode, scene, slow_image
from tlcli.contract.errors import ServerError
from tlcli.service import Client
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")


def test_a_request_whose_time_is_over(client: Client) -> None:
    with pytest.raises(ServerError, match="did not respond in time"):
        client.classify(slow_image(), model="toy", timeout_s=0.05)
    assert client.classify(IMAGE, model="toy").predictions


def test_cancelled_requests_are_not_worked_off(client: Client, stub: ClassifierStub) -> None:
    one_ns = client.classify(slow_image(), model="toy").timings.decode_time_ns
    calls = [stub.Classify.future(pb.ClassifyRequest(model="toy", encoded=slow_image())) for _ in range(80)]
    while not any(call.done() for call in calls):  # all have reached the server by the time the first is answered
        time.sleep(0.01)
    for call in calls:
        call.cancel()
    waited_ns = client.classify(IMAGE, model="toy", timeout_s=120).timings.queue_time_ns
    assert waited_ns < 10 * one_ns  # 80 of them would keep two cores busy four times as long


def test_requests_cancelled_among_others_take_nothing_from_them(port: int, stub: ClassifierStub) -> None:
    request = pb.ClassifyRequest(model="toy", encoded=IMAGE, map=pb.MapRequest(method="cam", format="MAP_FORMAT_OVERLAY"))
    expected = stub.Classify(request).predictions

    def ask(number: int) -> None:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            mine = ClassifierStub(channel)
            for turn in range(20):
                call = mine.Classify.future(request)
                if (number + turn) % 2:
                    call.cancel()
                else:
                    assert call.result(60).predictions == expected

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(4))) == [None] * 4
