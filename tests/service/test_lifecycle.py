"""Tests of a server's lifecycle: health, requests during startup and shutdown, exit of the process."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from PIL import Image

from tests.helpers.service.sample_images import RED, encode, scene, slow_image
from tests.helpers.service.server_process import server_process
from tests.helpers.service.toy_model import METHODS
from tlcli.contract.errors import ModelFileError, NotFoundError, SettingsError
from tlcli.service import Client, Server, ServerSettings, in_background
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
STATUS = health_pb2.HealthCheckResponse.ServingStatus
SERVING, NOT_SERVING = STATUS.SERVING, STATUS.NOT_SERVING


def test_health_follows_the_server_from_start_to_stop(many_models: Path) -> None:
    settings = ServerSettings(models=many_models, port=0, pre_stop_s=60)
    request = pb.ClassifyRequest(model="toy", encoded=IMAGE)

    async def main() -> None:
        server = Server(settings)
        port = await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            health, stub = health_pb2_grpc.HealthStub(channel), ClassifierStub(channel)

            async def told(name: str) -> int:
                status: int = (await health.Check(health_pb2.HealthCheckRequest(service=name))).status
                return status

            for name in ("", "tlcli.v1.Classifier", "toy", "broken"):
                assert await told(name) == NOT_SERVING
            with pytest.raises(grpc.RpcError) as refused:
                await stub.Classify(request)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "still loading" in (refused.value.details() or "")
            listed = await stub.ListModels(pb.ListModelsRequest())
            assert {one.state for one in listed.models} == {pb.MODEL_STATE_LOADING}

            await server.load()
            for name in ("", "tlcli.v1.Classifier", "toy", "damaged"):
                assert await told(name) == SERVING
            assert await told("broken") == NOT_SERVING
            assert (await stub.Classify(request)).predictions

            stopping = asyncio.create_task(server.stop())
            while await told("") == SERVING:
                await asyncio.sleep(0.01)
            for name in ("tlcli.v1.Classifier", "toy"):
                assert await told(name) == NOT_SERVING
            # the pause before the stop: load balancers have not seen it yet and still send
            assert (await stub.Classify(request)).predictions
            server.request_stop()
            server.request_stop()  # asked twice: do not wait
            await asyncio.wait_for(stopping, 30)
            with pytest.raises(grpc.RpcError) as gone:
                await stub.Classify(request)
            assert gone.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())


def test_sigterm_answers_what_is_in_flight_and_leaves_with_0(one_model: Path) -> None:
    with server_process(one_model) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with Client(port=server.port) as client:
            client.wait_until_ready()
        stub = ClassifierStub(channel)
        requests = [pb.ClassifyRequest(encoded=slow_image(), request_id=str(number)) for number in range(12)]
        stream = stub.ClassifyStream(iter(requests[:2]))
        calls = [stub.Classify.future(request) for request in requests]
        while not any(call.done() for call in calls):
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert sum(not call.done() for call in calls) > 4
        assert [call.result(60).request_id for call in calls] == [str(number) for number in range(12)]
        assert [answer.response.request_id for answer in stream] == ["0", "1"]
        assert server.wait() == 0
    assert "stopped" in server.log[-1]


def test_a_signal_right_behind_a_burst_of_requests_loses_none(one_model: Path) -> None:
    with server_process(one_model) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with Client(port=server.port) as client:
            client.wait_until_ready()
        stub = ClassifierStub(channel)
        request = pb.ClassifyRequest(encoded=encode(Image.new("RGB", (64, 64), RED)))
        stub.Classify(request)
        calls = [stub.Classify.future(request) for _ in range(64)]
        server.process.send_signal(signal.SIGTERM)
        assert all(call.result(60).predictions for call in calls)
        assert server.wait() == 0


def test_clients_that_watch_health_see_the_end_and_do_not_hold_it_up(one_model: Path) -> None:
    with server_process(one_model) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="toy"))
        seen = [next(watching).status]
        while seen[-1] != SERVING:
            seen.append(next(watching).status)
        begun = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert [one.status for one in watching] == [NOT_SERVING]
        assert server.wait() == 0
        assert time.monotonic() - begun < 15  # and not the 30 s of grace


def test_a_stream_left_open_holds_the_stop_up_for_the_grace_period_only(one_model: Path) -> None:
    with server_process(one_model, grace_s=0.5) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        with Client(port=server.port) as client:
            client.wait_until_ready()
        over = threading.Event()

        def requests() -> Iterator[pb.ClassifyRequest]:
            yield pb.ClassifyRequest(encoded=IMAGE)
            over.wait(60)

        stream = ClassifierStub(channel).ClassifyStream(requests(), timeout=60)
        assert next(stream).response.predictions
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError):
            next(stream)
        over.set()
        assert server.wait() == 0


def test_a_second_signal_does_not_wait(one_model: Path) -> None:
    with server_process(one_model, pre_stop_s=100) as server:
        with Client(port=server.port) as client:
            client.wait_until_ready()
            server.process.send_signal(signal.SIGTERM)
            while client.is_ready():
                time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_the_log_tells_the_start_line_by_line(many_models: Path) -> None:
    with server_process(many_models) as server:
        with Client(port=server.port) as client:
            client.wait_until_ready()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    log = "".join(server.log)
    for line in (
        "INFO device: cpu (setting: auto)",
        f"INFO listening on 127.0.0.1:{server.port}",
        f"INFO toy version 2: ready on cpu with one thread, 7 labels, input 64 x 64, maps: {', '.join(METHODS)}, loaded and warmed up in",
        "ERROR broken version 1: not served: ",
        "WARNING damaged: version 10 is broken, serving version 9 instead",
        "INFO serving 3 of 4 models",
        "INFO stopping: in-flight requests have 30 s to finish",
        "INFO stopped",
    ):
        assert line in log
    assert "Traceback" not in log


def test_a_port_in_use_is_one_line(one_model: Path, port: int) -> None:
    with server_process(one_model, port=port) as server:
        assert server.wait() == 2
    assert server.log[-1].startswith(f"Error: cannot listen on 127.0.0.1:{port}: Address already in use: choose another address with")


@pytest.mark.parametrize(
    ("host", "expected"), [("192.0.2.1", "cannot listen on 192.0.2.1"), ("no.such.host.invalid", "cannot listen on no.such.host.invalid")]
)
def test_an_address_that_is_not_this_machines(one_model: Path, host: str, expected: str) -> None:
    settings = ServerSettings(models=one_model, host=host, port=0, insecure=True)
    with pytest.raises(SettingsError, match=expected), in_background(settings):
        pass


def test_it_listens_on_ipv6_too(one_model: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with in_background(ServerSettings(models=one_model, host="::1", port=0)) as port, Client("::1", port) as client:
        assert client.classify(IMAGE).predictions


def test_a_folder_without_any_model_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no model found"), in_background(ServerSettings(models=tmp_path, port=0)):
        pass
    with pytest.raises(NotFoundError, match="no such folder"), in_background(ServerSettings(models=tmp_path / "nosuch", port=0)):
        pass


def test_a_folder_of_broken_models_is_refused_with_each_reason(tmp_path: Path) -> None:
    for name in ("one/1", "two/3"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "model.onnx").write_bytes(b"this is no model")
    expected = r"none of its models can be served: one version 1: .*cannot load.*; two version 3: "
    with pytest.raises(ModelFileError, match=expected), in_background(ServerSettings(models=tmp_path, port=0)):
        pass


def test_reflection_lists_the_services_and_their_messages(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="tlcli.v1.Classifier"),
        ]
        listed, described = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(asked))
    names = {service.name for service in listed.list_services_response.service}
    assert names == {
        "tlcli.v1.Classifier",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert len(described.file_descriptor_response.file_descriptor_proto) >= 1


@pytest.mark.parametrize("ignored", [False, True])
def test_sighup_ends_with_grace_unless_it_is_ignored(one_model: Path, ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)  # which the process inherits
    try:
        with server_process(one_model) as server, Client(port=server.port) as client:
            client.wait_until_ready()
            server.process.send_signal(signal.SIGHUP)
            if ignored:
                time.sleep(0.3)
                assert client.classify(IMAGE).predictions
                server.process.send_signal(signal.SIGTERM)
            assert server.wait() == 0
            assert "stopped" in server.log[-1]
    finally:
        signal.signal(signal.SIGHUP, before)
