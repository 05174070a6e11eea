"""Tests of streams: many images in one call."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from tests.helpers.service.sample_images import BLUE, GREEN, RED, encode, scene, slow_image
from tlcli.contract.errors import ImageError, NotFoundError, RequestError, ServerError, TimeLimitError
from tlcli.service import Client, ServerSettings, in_background
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from tlcli.service.rpc.idle_streams import until_idle, write_or_time_out

IMAGES = [encode(scene(color, (40, 20, 200, 160), seed=number)) for number, color in enumerate([RED, GREEN, BLUE] * 5)]


def test_answers_come_in_order_and_a_bad_image_does_not_end_the_stream(stub: ClassifierStub) -> None:
    requests = [pb.ClassifyRequest(model="toy", encoded=data, request_id=f"id {number}", top_k=1) for number, data in enumerate(IMAGES)]
    requests[4].encoded = b"text"
    requests[6].model = "nosuch"
    requests[0].encoded = slow_image()  # the first is by far the last to be ready
    answers = list(stub.ClassifyStream(iter(requests)))
    assert [answer.request_id for answer in answers] == [f"id {number}" for number in range(15)]
    for number, answer in enumerate(answers):
        if number in (4, 6):
            assert answer.WhichOneof("result") == "error"
            expected = grpc.StatusCode.INVALID_ARGUMENT if number == 4 else grpc.StatusCode.NOT_FOUND
            assert answer.error.code == expected.value[0]
            assert answer.error.message
        else:
            assert answer.response.request_id == answer.request_id
            assert answer.response.predictions[0].label == ("red", "green", "blue")[number % 3]


def test_bytes_that_are_no_message_do_not_end_the_stream(port: int) -> None:
    good = pb.ClassifyRequest(model="toy", encoded=IMAGES[0], request_id="good").SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream("/tlcli.v1.Classifier/ClassifyStream", response_deserializer=pb.ClassifyStreamResponse.FromString)
        answers = list(call(iter([good, b"\xff\xff\xff", good])))
    assert [answer.WhichOneof("result") for answer in answers] == ["response", "error", "response"]
    assert answers[1].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_a_sender_may_wait_for_each_answer(stub: ClassifierStub) -> None:
    waiting: queue.SimpleQueue[pb.ClassifyRequest | None] = queue.SimpleQueue()
    answers = stub.ClassifyStream(iter(waiting.get, None), timeout=60)
    for data in IMAGES[:3]:
        waiting.put(pb.ClassifyRequest(model="toy", encoded=data))
        assert next(answers).response.predictions
    waiting.put(None)
    assert list(answers) == []


def test_the_client_answers_each_image_in_its_place(client: Client, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    missing = tmp_path / "missing.jpg"
    given = [missing, IMAGES[0], text, IMAGES[1], missing, missing, IMAGES[2], b"", missing]
    answers = list(client.classify_stream(given, model="toy", top_k=1, cam="cam"))
    assert [answer.request_id for answer in answers] == [str(number) for number in range(len(given))]
    labels = [answer.result().predictions[0].label for answer in (answers[1], answers[3], answers[6])]
    assert labels == ["red", "green", "blue"]
    for number in (0, 4, 5, 8):
        with pytest.raises(NotFoundError, match=r"missing\.jpg: No such file"):
            answers[number].result()
    with pytest.raises(ImageError, match=r"notes\.txt: .*no image"):
        answers[2].result()
    with pytest.raises(ImageError, match="0 bytes"):
        answers[7].result()


def test_an_empty_stream_and_one_of_errors_only(client: Client, tmp_path: Path) -> None:
    assert list(client.classify_stream([])) == []
    (answer,) = client.classify_stream([tmp_path / "missing.jpg"])
    assert isinstance(answer.outcome, NotFoundError)


def test_a_stream_may_be_left_in_the_middle(client: Client) -> None:
    answers = client.classify_stream(IMAGES * 20, model="toy")
    assert next(answers).result().predictions
    answers.close()  # type: ignore[attr-defined]
    assert client.classify(IMAGES[0], model="toy").predictions


def test_what_the_callers_own_iterable_raises_comes_out(client: Client) -> None:
    def images() -> Iterator[bytes]:
        yield IMAGES[0]
        raise LookupError("the folder has gone")

    with pytest.raises(LookupError, match="the folder has gone"):
        list(client.classify_stream(images(), model="toy"))


def test_a_wrong_question_is_refused_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(RequestError, match="need a map method"):
        next(client.classify_stream(IMAGES, classes=(1,)))


def test_a_stream_whose_time_is_over_ends_and_the_server_serves_on(client: Client) -> None:
    slow = slow_image()
    with pytest.raises(ServerError, match="in time"):
        list(client.classify_stream([slow] * 50, model="toy", timeout_s=0.5))
    assert client.classify(IMAGES[0], model="toy").predictions


def test_a_stream_that_nothing_comes_on_ends_and_one_that_waits_for_the_server_does_not(one_model: Path, held_up: threading.Event) -> None:
    with (
        in_background(ServerSettings(models=one_model, port=0, stream_idle_s=0.4)) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = ClassifierStub(channel)
        waiting: queue.SimpleQueue[pb.ClassifyRequest | None] = queue.SimpleQueue()
        begun = time.monotonic()
        silent = stub.ClassifyStream(iter(waiting.get, None), timeout=60)
        with pytest.raises(grpc.RpcError) as refused:
            next(silent)
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "the stream received nothing for 0.4 s (stream_idle_s): open a stream when" in refused.value.details()
        assert 0.3 < time.monotonic() - begun < 5
        held_up.clear()
        answers = stub.ClassifyStream(iter(waiting.get, None), timeout=60)
        waiting.put(pb.ClassifyRequest(encoded=IMAGES[0]))
        waiting.put(pb.ClassifyRequest(encoded=IMAGES[0]))
        threading.Timer(1.2, held_up.set).start()
        assert next(answers).response.predictions
        waiting.put(None)


def test_a_stream_whose_answers_nobody_takes_ends() -> None:
    async def never() -> None:
        await asyncio.sleep(60)

    async def at_once() -> None:
        pass

    async def main() -> None:
        await write_or_time_out(at_once(), 0.1)
        with pytest.raises(TimeLimitError, match=r"the client read no response of the stream for 0\.1 s"):
            await write_or_time_out(never(), 0.1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(write_or_time_out(never(), 0), 0.2)

    asyncio.run(main())


def test_what_comes_in_time_is_read_to_its_end() -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(0.05)
            yield number

    async def main() -> list[int]:
        return [item async for item in until_idle(items(), 0.5, lambda: False)]

    assert asyncio.run(main()) == [0, 1, 2]


def test_calls_of_one_connection_and_connections_have_a_limit(one_model: Path) -> None:
    settings = ServerSettings(models=one_model, port=0, max_connections=2, max_streams=3)
    with in_background(settings) as port:
        channels = [grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(3)]
        for one in channels[:2]:
            grpc.channel_ready_future(one).result(10)
        with pytest.raises(grpc.FutureTimeoutError):
            grpc.channel_ready_future(channels[2]).result(0.5)
        never: queue.SimpleQueue[pb.ClassifyRequest | None] = queue.SimpleQueue()
        open_streams = [ClassifierStub(channels[0]).ClassifyStream(iter(never.get, None)) for _ in range(3)]
        time.sleep(0.3)
        with pytest.raises(grpc.RpcError) as late:
            ClassifierStub(channels[0]).Classify(pb.ClassifyRequest(encoded=IMAGES[0]), timeout=0.5)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert ClassifierStub(channels[1]).Classify(pb.ClassifyRequest(encoded=IMAGES[0])).predictions
        for stream in open_streams:
            stream.cancel()
        for channel in channels:
            channel.close()
