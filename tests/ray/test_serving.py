"""The application on a Ray cluster of two nodes, configured as in deploy/ray/serve.yaml: its answers, and what is lost when a node dies.

All tests share one cluster and run in this order: the last ones destroy it step by step.
"""

from __future__ import annotations

import asyncio
import copy
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from tests.helpers.deploy.ray_cluster import DEPLOYMENT, Config, RayCluster, ray_cluster, status, wait_until
from tests.helpers.service.sample_images import BLUE, RED, encode, scene
from tests.helpers.service.toy_model import METHODS
from tests.service.test_handover import RETRIES
from tlcli.contract.errors import ImageError, OverloadedError, ServerError, TlcliError
from tlcli.service import AsyncClient, Client, ServerSettings, in_background
from tlcli.service.pb.inference import open_inference_pb2
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub

IMAGES = [encode(scene(RED, (30, 20, 90, 70)), "JPEG"), encode(scene(BLUE, (90, 20, 200, 170), seed=1))]
SLOW = encode(Image.new("RGB", (3000, 3000), RED), "WEBP", lossless=True)
"""Takes a tenth of a second to decode."""

PAUSE_S = 0.02
"""Pause between two requests, so that a starting replica gets some of the CPU time."""

AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 2,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 0.2,
    "downscale_delay_s": 600,
    "metrics_interval_s": 0.2,
    "look_back_period_s": 1,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def usual(cluster: RayCluster, one_model: Path) -> Config:
    """Return a config with one replica, which may later scale to two, one per node."""
    return cluster.configured(one_model, autoscaling_config={**AUTOSCALING, "upscale_delay_s": 600})


@pytest.fixture(scope="module")
def ray(cluster: RayCluster, usual: Config) -> RayCluster:
    """Return the cluster with the application deployed."""
    cluster.deploy(usual)
    return cluster


@pytest.fixture(scope="module")
def direct(one_model: Path) -> Iterator[int]:
    """Run `tlcli serve` with the same settings and return its port."""
    with in_background(ServerSettings(models=one_model, port=0, threads=1)) as port:
        yield port


def both(ray: RayCluster, direct: int, path: str, request: bytes) -> tuple[Any, Any]:
    """Return the response's bytes, or the error's code, text and details, from Ray and from `tlcli serve`."""
    found = []
    for port in (ray.port, direct):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            try:
                found.append(channel.unary_unary(path)(request, timeout=30))
            except grpc.RpcError as error:
                metadata = {key: value for key, value in error.trailing_metadata() if key != "request_id"}  # Ray adds one
                found.append((error.code(), error.details(), metadata))
    return found[0], found[1]


@pytest.mark.parametrize("image", IMAGES, ids=["jpeg", "png"])
@pytest.mark.parametrize("method", [None, *METHODS])
@pytest.mark.parametrize("map_format", [pb.MAP_FORMAT_RAW, pb.MAP_FORMAT_OVERLAY], ids=["raw", "overlay"])
def test_answers_are_those_of_a_server_to_the_bit(
    ray: RayCluster, direct: int, image: bytes, method: str | None, map_format: pb.MapFormat
) -> None:
    wanted = None if method is None else pb.MapRequest(method=method, classes=[-1, 0], format=map_format)
    request = pb.ClassifyRequest(encoded=image, map=wanted, request_id="7").SerializeToString()
    answers = [pb.ClassifyResponse.FromString(one) for one in both(ray, direct, "/tlcli.v1.Classifier/Classify", request)]
    for one in answers:
        assert one.timings.infer_time_ns > 0
        one.ClearField("timings")
    assert answers[0] == answers[1]
    assert bool(answers[0].predictions[0].map.values or answers[0].predictions[0].map.png) == (method is not None)


def test_so_are_those_of_the_open_inference_protocol(ray: RayCluster, direct: int) -> None:
    request = open_inference_pb2.ModelInferRequest(
        model_name="toy",
        id="7",
        inputs=[{"name": "encoded", "datatype": "BYTES", "shape": [2], "contents": {"bytes_contents": IMAGES}}],
        outputs=[{"name": name} for name in ("scores", "classes", "gradcam")],
    )
    calls = {
        "ModelInfer": request,
        "ModelMetadata": open_inference_pb2.ModelMetadataRequest(name="toy"),
        "ModelReady": open_inference_pb2.ModelReadyRequest(name="toy"),
        "ServerReady": open_inference_pb2.ServerReadyRequest(),
        "ServerLive": open_inference_pb2.ServerLiveRequest(),
        "ServerMetadata": open_inference_pb2.ServerMetadataRequest(),
        "RepositoryIndex": open_inference_pb2.RepositoryIndexRequest(),
    }
    for name, message in calls.items():
        by_ray, directly = both(ray, direct, f"/inference.GRPCInferenceService/{name}", message.SerializeToString())
        assert by_ray == directly, name
        assert by_ray, name
    answer = open_inference_pb2.ModelInferResponse.FromString(
        both(ray, direct, "/inference.GRPCInferenceService/ModelInfer", request.SerializeToString())[0]
    )
    assert [list(one.shape) for one in answer.outputs] == [[2, 7], [2, 1], [2, 1, 8, 8]]


@pytest.mark.parametrize(
    ("path", "request_bytes", "code"),
    [
        ("tlcli.v1.Classifier/Classify", pb.ClassifyRequest(encoded=b"nope").SerializeToString(), "INVALID_ARGUMENT"),
        ("tlcli.v1.Classifier/Classify", b"\xff no message", "INVALID_ARGUMENT"),
        ("tlcli.v1.Classifier/Classify", pb.ClassifyRequest(encoded=IMAGES[0], model="x").SerializeToString(), "NOT_FOUND"),
        (
            "tlcli.v1.Classifier/Classify",
            pb.ClassifyRequest(encoded=IMAGES[0], map=pb.MapRequest(method="x")).SerializeToString(),
            "INVALID_ARGUMENT",
        ),
        ("tlcli.v1.Classifier/GetModel", pb.GetModelRequest(model="toy", version="9").SerializeToString(), "NOT_FOUND"),
        ("inference.GRPCInferenceService/ModelInfer", b"", "INVALID_ARGUMENT"),
        ("inference.GRPCInferenceService/RepositoryModelLoad", b"", "FAILED_PRECONDITION"),
        ("tlcli.v1.Classifier/Nothing", b"", "UNIMPLEMENTED"),
    ],
)
def test_refusals_keep_code_text_and_details(ray: RayCluster, direct: int, path: str, request_bytes: bytes, code: str) -> None:
    by_ray, directly = both(ray, direct, f"/{path}", request_bytes)
    assert by_ray[0].name == code
    assert by_ray == directly


def test_a_message_over_the_limit_is_refused_as_grpc_does(ray: RayCluster, direct: int) -> None:
    request = pb.ClassifyRequest(encoded=bytes(ServerSettings().limits.max_bytes + 100_000)).SerializeToString()
    by_ray, directly = both(ray, direct, "/tlcli.v1.Classifier/Classify", request)
    assert by_ray[0] is directly[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "SERVER: " + by_ray[1] == directly[1]


def test_our_client_needs_to_know_nothing(ray: RayCluster) -> None:
    with Client(port=ray.port) as client:
        assert client.is_ready()
        assert client.is_ready("toy")
        assert not client.is_ready("nosuch")
        assert [one.name for one in client.list_models()] == ["toy"]
        answers = list(client.classify_stream([IMAGES[0], b"nope", IMAGES[1]], cam="gradcam"))
        alone = [client.classify(image, cam="gradcam").predictions[0].score for image in IMAGES]
        assert [answers[0].result().predictions[0].score, answers[2].result().predictions[0].score] == alone
        with pytest.raises(ImageError, match=r"^4 bytes are not an image"):
            answers[1].result()
    with Client(port=ray.port, metadata=[("application", "tlcli"), ("x-request-id", "mine")]) as client:
        assert client.classify(IMAGES[0]).model == "toy"
    with grpc.insecure_channel(f"127.0.0.1:{ray.port}") as channel:
        stub = ClassifierStub(channel)
        _, call = stub.Classify.with_call(pb.ClassifyRequest(encoded=IMAGES[0]), metadata=[("x-request-id", "mine")])
        assert ("x-request-id", "mine") in [*call.trailing_metadata()]
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_nor_does_tritons(ray: RayCluster, direct: int) -> None:
    import tritonclient.grpc as triton

    found = []
    for port in (ray.port, direct):
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.is_server_ready()
            assert client.is_model_ready("toy")
            images = triton.InferInput("encoded", [1], "BYTES")
            images.set_data_from_numpy(np.array([IMAGES[0]], dtype=object))
            answer = client.infer("toy", [images], outputs=[triton.InferRequestedOutput(name) for name in ("scores", "gradcam")])
            found.append([answer.as_numpy(name) for name in ("scores", "gradcam")])
            with pytest.raises(triton.InferenceServerException, match="no model 'nosuch'"):
                client.infer("nosuch", [images])
    for by_ray, directly in zip(*found, strict=True):
        np.testing.assert_array_equal(by_ray, directly)


@pytest.fixture
def one_at_a_time(ray: RayCluster, usual: Config) -> Iterator[None]:
    """Limit the replica to one request at a time, with one more queued."""
    busy = copy.deepcopy(usual)
    busy["applications"][0]["deployments"][0] |= {"max_ongoing_requests": 1, "max_queued_requests": 1}
    ray.deploy(busy)
    yield
    ray.deploy(usual)


@pytest.mark.usefixtures("one_at_a_time")
def test_where_all_is_taken_requests_are_refused_with_advice(ray: RayCluster) -> None:
    async def ask(client: AsyncClient) -> str:
        try:
            return (await client.classify(SLOW, timeout_s=60)).model
        except OverloadedError as error:
            return "refused" if error.retry_s > 0 else "refused without advice"

    async def main(retries: int, requests: int) -> Counter[str]:
        async with AsyncClient(port=ray.port, retries=retries) as client:
            return Counter(await asyncio.gather(*(ask(client) for _ in range(requests))))

    def refuses() -> bool:  # the proxies hear of it a little later
        return asyncio.run(main(retries=0, requests=8))["refused"] > 0

    wait_until(refuses, timeout_s=10)
    assert asyncio.run(main(retries=4, requests=3)) == {"toy": 3}


@pytest.mark.usefixtures("one_at_a_time")
def test_a_stream_that_its_client_leaves_lets_go_of_the_replica(ray: RayCluster) -> None:
    with Client(port=ray.port, retries=0) as client:
        answers = client.classify_stream(iter(lambda: IMAGES[0], None))
        next(answers)

        def held_up() -> bool:  # the proxies hear a little later that the replica takes no other
            try:
                return client.classify(IMAGES[0], timeout_s=0.5) is None
            except ServerError as error:
                return "did not respond in time" in str(error)

        wait_until(held_up, timeout_s=10)
        answers.close()  # type: ignore[attr-defined]  # it is a generator
        assert client.classify(IMAGES[0], timeout_s=10).model == "toy"


@pytest.mark.slow
def test_no_request_is_lost_when_replicas_and_nodes_die(ray: RayCluster, usual: Config) -> None:
    """Under a load that starts a second replica, kill its node with all processes, and then the only remaining replica."""
    lost: list[Exception] = []
    told: list[grpc.RpcError] = []
    answered: Counter[str] = Counter()
    over = threading.Event()

    def ask_as_we_do() -> None:
        with Client(port=ray.port) as client:
            while not over.is_set():
                try:
                    client.classify(IMAGES[answered["ours"] % 2], timeout_s=30)
                    answered["ours"] += 1
                except TlcliError as error:
                    lost.append(error)
                time.sleep(PAUSE_S)

    async def ask_side_by_side() -> None:
        """Send two requests at a time on the same connection, repeatedly."""
        async with AsyncClient(port=ray.port) as client:
            while not over.is_set():
                asked = (client.classify(image, timeout_s=30) for image in IMAGES)
                ends = await asyncio.gather(*asked, return_exceptions=True)
                lost.extend(end for end in ends if isinstance(end, Exception))
                answered["side by side"] += sum(not isinstance(end, Exception) for end in ends)
                await asyncio.sleep(PAUSE_S)

    def ask_as_anybody(image: bytes) -> None:
        """Send requests with gRPC's standard retry policy."""
        options = [("grpc.service_config", RETRIES), ("grpc.use_local_subchannel_pool", 1), ("grpc.per_rpc_retry_buffer_size", 2**24)]
        with grpc.insecure_channel(f"127.0.0.1:{ray.port}", options=options) as channel:
            stub = ClassifierStub(channel)
            while not over.is_set():
                try:
                    stub.Classify(pb.ClassifyRequest(encoded=image), timeout=30)
                    answered["anybody's"] += 1
                except grpc.RpcError as error:
                    lost.append(error)
                time.sleep(PAUSE_S)

    def ask_once() -> None:
        """Send requests without retries, to see the errors that the others retry."""
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{ray.port}", options=options) as channel:
            stub = ClassifierStub(channel)
            while not over.is_set():
                try:
                    stub.Classify(pb.ClassifyRequest(encoded=SLOW), timeout=30)
                except grpc.RpcError as error:
                    told.append(error)

    def go_on() -> None:
        """Wait until each client is served again, with at least 50 responses in all."""
        before = answered.copy()

        def went_on() -> bool:
            more = {who: answered[who] - before[who] for who in ("ours", "side by side", "anybody's")}
            return min(more.values()) > 0 and sum(more.values()) >= 50

        wait_until(went_on, why=lambda: f"{answered}, {lost}, {status()}")

    scaling = copy.deepcopy(usual)
    scaling["applications"][0]["deployments"][0]["autoscaling_config"] = AUTOSCALING
    ray.deploy(scaling)
    with ThreadPoolExecutor(10) as pool:
        for _ in range(2):
            pool.submit(ask_as_we_do)
            pool.submit(asyncio.run, ask_side_by_side())
            pool.submit(ask_as_anybody, IMAGES[0])
            pool.submit(ask_as_anybody, SLOW)
            pool.submit(ask_once)
        try:
            wait_until(lambda: sorted(ray.replicas().values()) == [0, 1] and running() == 2, why=lambda: str(status()))
            go_on()
            ray.kill_second()
            go_on()
            os.kill(next(iter(ray.replicas())), signal.SIGKILL)
            go_on()
        finally:
            over.set()
    assert not lost, lost[0]
    assert {error.code() for error in told} == {grpc.StatusCode.UNAVAILABLE}
    assert any(error.details() == "the replica that processed this request died: retry to reach another replica" for error in told)


def running() -> int:
    """Return the number of running replicas."""
    return int(status().deployments[DEPLOYMENT].replica_states.get("RUNNING", 0))


def test_what_is_in_flight_is_answered_before_a_replica_stops(ray: RayCluster) -> None:
    from ray import serve

    with Client(port=ray.port) as client, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.classify, SLOW) for _ in range(4)]
        time.sleep(0.1)
        serve.delete("tlcli", _blocking=False)
        assert [one.result().model for one in asked] == ["toy"] * 4
    wait_until(lambda: not ray.replicas())
