"""Time limits: of an image, which is refused while others are answered, and of a slow client, whose connection is closed."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.helpers.service.http_requests import Asking, http_in_background
from tests.helpers.service.sample_images import RED, encode, scene
from tests.service.inference.test_score_cam import CHANNELS, RUN_S, TURN, SlowRuns
from tests.service.inference.test_score_cam import slow as slow
from tests.service.inference.test_score_cam import wide as wide
from tlcli.contract.errors import TimeLimitError
from tlcli.service import Client, ServerSettings, in_background
from tlcli.service.inference.request_checks import time_limit
from tlcli.service.pb.inference import open_inference_pb2
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from tlcli.service.rest import app, http_connections

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
LIMIT_S = 8 * RUN_S  # a Score-CAM takes 20 runs, an image's scores one
REFUSAL = "the image took more than the server's limit of 0.24 s"


def test_work_within_its_limit_is_not_cancelled() -> None:
    async def main() -> None:
        async with time_limit(5.0):
            await asyncio.sleep(0)
        async with time_limit(0):
            await asyncio.sleep(0.01)
        with pytest.raises(TimeLimitError, match=r"more than the server's limit of 0\.01 s"):
            async with time_limit(0.01):
                await asyncio.sleep(5)
        with pytest.raises(TimeoutError, match="another's"):  # which is not ours
            async with time_limit(5.0):
                raise TimeoutError("another's")

    asyncio.run(main())


@pytest.fixture
def port(wide: Path, slow: SlowRuns) -> Iterator[int]:
    with in_background(ServerSettings(models=wide, port=0, max_image_s=LIMIT_S)) as port:
        slow.forget()
        yield port


def test_an_image_over_its_limit_takes_no_further_turn(port: int, slow: SlowRuns) -> None:
    with Client(port=port) as client:
        with pytest.raises(TimeLimitError, match=REFUSAL):
            client.classify(IMAGE, cam="scorecam")
        begun = slow.begun
        assert begun < CHANNELS / TURN
        assert client.classify(IMAGE, cam="gradcam").predictions
        time.sleep(3 * RUN_S)
        assert slow.begun <= begun + 2  # one that was under way, and the one that was asked for


def test_the_status_tells_the_servers_limit_from_the_clients_deadline(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            ClassifierStub(channel).Classify(pb.ClassifyRequest(encoded=IMAGE, map=pb.MapRequest(method="scorecam")))
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert refused.value.details().startswith(REFUSAL)


def test_in_a_stream_only_the_one_image_fails(port: int) -> None:
    asked = [
        pb.ClassifyRequest(encoded=IMAGE, request_id=method, map=pb.MapRequest(method=method)) for method in ("gradcam", "scorecam", "cam")
    ]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        answers = {one.request_id: one for one in ClassifierStub(channel).ClassifyStream(iter(asked))}
    assert answers["scorecam"].error.message.startswith(REFUSAL)
    assert all(answers[name].response.predictions for name in ("gradcam", "cam"))


def test_a_request_with_several_images_has_the_limit_for_each(port: int) -> None:
    def ask(channel: grpc.Channel, images: int, output: str) -> open_inference_pb2.ModelInferResponse:
        request = open_inference_pb2.ModelInferRequest(model_name="wide")
        request.outputs.add(name=output)
        encoded = request.inputs.add(name="encoded", datatype="BYTES", shape=[images])
        encoded.contents.bytes_contents.extend([IMAGE] * images)
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=open_inference_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=open_inference_pb2.ModelInferResponse.FromString,
        )
        answer: open_inference_pb2.ModelInferResponse = call(request)
        return answer

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            ask(channel, 1, "scorecam")
        assert refused.value.details().startswith(REFUSAL)
        assert ask(channel, 3, "scores").outputs[0].shape[0] == 3


def test_over_http(wide: Path, slow: SlowRuns) -> None:
    settings = ServerSettings(models=wide, port=0, http_port=0, max_image_s=LIMIT_S)
    with http_in_background(settings) as port, Asking(port) as http:
        status, told = http.post("/v1/classify?cam=scorecam", IMAGE).refusal
        assert status == 504
        assert told.startswith(REFUSAL)
        assert http.post("/v1/classify?cam=gradcam", IMAGE).json["predictions"]


def test_a_body_that_does_not_arrive(one_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_READ_S", 0.1)
    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as slow_client:
            slow_client.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            answer = b"".join(iter(lambda: slow_client.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"the body did not arrive within 0.1 s" in answer
        with Asking(port) as http:
            assert http.post("/v1/classify", IMAGE).json["predictions"]


def test_a_connection_without_a_request(one_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connections, "_HEAD_S", 0.4)
    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
            silent.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: h")
            begun = time.monotonic()
            assert hung_up(silent)
        assert 0.3 < time.monotonic() - begun < 5
        with Asking(port) as http:
            assert http.get("/v2/health/live").json == {"live": True}


def test_a_closed_connection_is_not_kept_in_memory(one_model: Path) -> None:
    with http_in_background(ServerSettings(models=one_model, port=0, http_port=0)) as port:
        for _ in range(5):
            with Asking(port) as http:
                assert http.get("/v2/health/live").json == {"live": True}
        until = time.monotonic() + 10
        while left := [one for one in gc.get_objects() if isinstance(one, http_connections.HttpConnection)]:
            assert time.monotonic() < until, f"{len(left)} connections are kept"
            del left
            gc.collect()
            time.sleep(0.05)


def hung_up(one: socket.socket) -> bool:
    try:
        return not one.recv(100)
    except ConnectionError:
        return True
