"""Score-CAM, which takes many runs: the same values as without a server, turns for other requests, and cancellation."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.helpers.service.sample_images import RED, encode, scene
from tests.helpers.service.toy_model import METHODS, ToyModel
from tests.service.inference.test_classifier import network_input, the_map
from tlcli.contract.errors import OverloadedError, RequestError, ServerError
from tlcli.contract.model.explain import explain
from tlcli.contract.model.onnx_model import Answer, Model
from tlcli.service import Client, Server, ServerSettings, in_background
from tlcli.service.execution.runner import MASKED_IMAGES, MASKED_IMAGES_UNDER_LOAD, Turns
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
TURN = MASKED_IMAGES["cpu"]
CHANNELS = 20 * TURN
RUN_S = 0.03


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a repository with a model of many channels."""
    folder = tmp_path_factory.mktemp("wide")
    ToyModel.make(seed=4, channels=CHANNELS).save(folder / "wide/1/model.onnx", "wide")
    return folder


@pytest.fixture(scope="module")
def wide_port(wide: Path) -> Iterator[int]:
    with in_background(ServerSettings(models=wide, port=0)) as port:
        yield port


class SlowRuns:
    """Delay of every run of a model.

    begun: number of runs.
    started: set at the first run of a Score-CAM.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.largest = 0
        self.started = threading.Event()
        self._run = Model.run

    def forget(self) -> None:
        self.begun = self.largest = 0
        self.started.clear()

    def __call__(self, model: Model, images: np.ndarray, *arguments: Any, **named: Any) -> Answer:
        self.begun += 1
        self.largest = max(self.largest, len(images))
        if arguments[2:3] and arguments[2]:  # evidence
            self.started.set()
        time.sleep(RUN_S)
        return self._run(model, images, *arguments, **named)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowRuns:
    runs = SlowRuns()
    monkeypatch.setattr(Model, "run", lambda *arguments, **named: runs(*arguments, **named))
    return runs


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_servers_maps_equal_those_computed_without_it(wide: Path, wide_port: int, method: str, softmax: bool) -> None:
    max_channels = 40 if method == "faster_scorecam" else None
    model = Model.open(wide / "wide/1/model.onnx", "cpu")
    expected = explain(model, network_input(IMAGE)[None], (0, -2, 5), (method,), softmax=softmax, max_channels=max_channels)
    assert expected.classes is not None
    with Client(port=wide_port) as client:
        answer = client.classify(IMAGE, cam=method, classes=(0, -2, 5), softmax=softmax, max_channels=max_channels or 0)
    for class_id, values in zip(expected.classes[0].tolist(), expected.maps[method][0], strict=True):
        found = the_map(answer, class_id)
        assert found.method == method
        np.testing.assert_allclose(found.values, values, atol=1e-5 * np.abs(values).max())


def test_softmax_changes_the_maps_that_explain_a_score(wide_port: int) -> None:
    with Client(port=wide_port) as client:
        for method in METHODS:
            of_logit, of_probability = (
                the_map(client.classify(IMAGE, cam=method, classes=(0,), softmax=softmax), 0).values for softmax in (False, True)
            )
            assert of_logit is not None
            assert of_probability is not None
            assert (of_logit == of_probability).all() == (method in ("cam", "eigencam")), method


def test_other_requests_run_between_two_steps(wide_port: int, slow: SlowRuns) -> None:
    with ThreadPoolExecutor(1) as pool, Client(port=wide_port) as client, Client(port=wide_port) as other:
        long = pool.submit(client.classify, IMAGE, cam="scorecam")
        assert slow.started.wait(30)
        waited_ns = [other.classify(IMAGE).timings.queue_time_ns for _ in range(3)]
        assert not long.done()
        answer = long.result(60)
    assert slow.largest == MASKED_IMAGES_UNDER_LOAD["cpu"]
    whole_ns = CHANNELS / TURN * RUN_S * 1e9
    assert answer.timings.infer_time_ns > whole_ns
    assert max(waited_ns) < answer.timings.infer_time_ns / 4
    # What it waited for others' turns is told as waiting.
    assert answer.timings.queue_time_ns > 2 * RUN_S * 1e9


def test_a_stream_goes_on_after_a_score_cam(wide_port: int) -> None:
    requests = [
        pb.ClassifyRequest(encoded=IMAGE, request_id=method, map=pb.MapRequest(method=method))
        for method in ("scorecam", "gradcam", "lime", "faster_scorecam")
    ]
    with grpc.insecure_channel(f"127.0.0.1:{wide_port}") as channel:
        answers = list(ClassifierStub(channel).ClassifyStream(iter(requests)))
    assert [answer.WhichOneof("result") for answer in answers] == ["response", "response", "error", "response"]


def test_a_disconnect_stops_a_score_cam(wide_port: int, slow: SlowRuns) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{wide_port}") as channel, Client(port=wide_port) as other:
        call = ClassifierStub(channel).Classify.future(pb.ClassifyRequest(encoded=IMAGE, map=pb.MapRequest(method="scorecam")))
        assert slow.started.wait(30)
        call.cancel()
        other.classify(IMAGE)
        begun = slow.begun
        time.sleep(5 * RUN_S)
        assert slow.begun <= begun + 1  # one that began before the server heard of it
    assert slow.begun < CHANNELS / TURN / 2


def test_a_deadline_stops_a_score_cam(wide_port: int, slow: SlowRuns) -> None:
    with Client(port=wide_port) as client:
        with pytest.raises(ServerError, match="did not respond in time"):
            client.classify(IMAGE, cam="scorecam", timeout_s=5 * RUN_S)
        time.sleep(5 * RUN_S)
        begun = slow.begun
        time.sleep(5 * RUN_S)
        assert slow.begun == begun < CHANNELS / TURN
        assert client.classify(IMAGE).predictions


def test_a_shutdown_does_not_finish_a_score_cam(wide: Path, slow: SlowRuns, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        server = Server(ServerSettings(models=wide, port=0, grace_s=0))
        port = await server.start()
        await server.load()
        slow.forget()  # the warm-up
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = ClassifierStub(channel).Classify(pb.ClassifyRequest(encoded=IMAGE, map=pb.MapRequest(method="scorecam")))
            while not slow.started.is_set():
                await asyncio.sleep(0.005)
            await server.stop()
            with pytest.raises(grpc.RpcError):
                await call

    asyncio.run(main())
    assert slow.begun < CHANNELS / TURN
    assert "internal error" not in caplog.text


def test_a_flood_is_bounded_the_oldest_finishes_first_and_images_do_not_wait(wide: Path, slow: SlowRuns) -> None:
    finished: list[int] = []
    with in_background(ServerSettings(models=wide, port=0, max_score_cams=3)) as port, Client(port=port) as client:
        slow.forget()

        def ask(number: int) -> None:
            with Client(port=port, retries=0) as own:
                own.classify(IMAGE, cam="faster_scorecam", max_channels=20, timeout_s=60)
                finished.append(number)

        client.classify(IMAGE)
        with ThreadPoolExecutor(4) as pool:
            asked = []
            for number in range(3):
                asked.append(pool.submit(ask, number))
                assert number or slow.started.wait(30)
                time.sleep(0.1)
            with pytest.raises(OverloadedError, match=r"queue of model 'wide' full \(3 Score-CAMs waiting\): retry in"):
                ask(9)
            took_s = []
            while not asked[1].done():
                begun = time.monotonic()
                client.classify(IMAGE)
                took_s.append(time.monotonic() - begun)
                time.sleep(RUN_S)
            for one in asked:
                one.result(60)
        assert finished == [0, 1, 2]
        assert len(took_s) > 10
        assert sorted(took_s)[len(took_s) * 9 // 10] < 4 * RUN_S  # its own run and one that is under way; the rest is a busy machine's
        client.classify(IMAGE, cam="scorecam", max_channels=1)  # all places are free again


def test_a_score_cam_finishes_on_a_server_that_others_keep_busy(wide_port: int, slow: SlowRuns) -> None:
    over = threading.Event()

    def keep_busy() -> None:
        with Client(port=wide_port) as own:
            while not over.is_set():
                own.classify(IMAGE)

    with ThreadPoolExecutor(4) as pool, Client(port=wide_port) as client:
        busy = [pool.submit(keep_busy) for _ in range(4)]
        begun = time.monotonic()
        client.classify(IMAGE, cam="faster_scorecam", max_channels=20, timeout_s=60)
        took_s = time.monotonic() - begun
        over.set()
        for one in busy:
            one.result(60)
    assert took_s < 21 * 8 * RUN_S  # a quarter of the model's time; twice that on a busy machine


def test_a_request_with_more_score_cams_than_slots_is_refused(wide: Path) -> None:
    from tlcli.service.inference.open_inference import InferQuery, OpenInference
    from tlcli.service.types.tensor import UINT8, InputTensor

    async def main() -> None:
        server = Server(ServerSettings(models=wide, port=0, max_score_cams=2))
        await server.start()
        await server.load()
        inference: OpenInference = server._parts.open_inference
        images = InputTensor("images", UINT8, (3, 64, 64, 3), bytes(3 * 64 * 64 * 3), ())
        with pytest.raises(RequestError, match="3 Score-CAMs in one request: at most 2 may wait for model 'wide'"):
            await inference.infer(InferQuery("wide", "", "", {"images": images}, ("scorecam",)))
        answer = await inference.infer(InferQuery("wide", "", "", {"images": images}, ("gradcam",)))
        assert answer.outputs[0].shape[0] == 3
        await server.stop()

    asyncio.run(main())


def test_steps_are_large_only_without_other_requests(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlcli.service.execution.runner._UNDER_LOAD_S", 0.3)
    sizes: list[int] = []
    plain = Model.run

    def run(self: Model, images: np.ndarray, *arguments: Any, **named: Any) -> Answer:
        sizes.append(len(images))
        return plain(self, images, *arguments, **named)

    with in_background(ServerSettings(models=wide, port=0)) as port, Client(port=port) as client:
        monkeypatch.setattr(Model, "run", run)
        for pause_s, largest in ((0.0, MASKED_IMAGES_UNDER_LOAD["cpu"]), (0.4, MASKED_IMAGES["cpu"])):
            client.classify(IMAGE)
            time.sleep(pause_s)
            sizes.clear()
            client.classify(IMAGE, cam="faster_scorecam", max_channels=12)
            assert max(sizes) == largest


def test_a_step_waits_for_others_and_no_longer_than_three_steps() -> None:
    async def main() -> None:
        turns = Turns()
        await asyncio.wait_for(turns.step(10**12), 1)
        with turns.short():
            begun = time.monotonic()
            await turns.step(50_000_000)
            assert 0.14 < time.monotonic() - begun < 1
            waiting = asyncio.create_task(turns.step(10**12))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        await asyncio.wait_for(waiting, 1)

    asyncio.run(main())
