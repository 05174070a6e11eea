"""Tests of the metrics: every request is counted once under the right labels, and clients cannot add label values."""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.helpers.service.fake_nvml import GIB, FakeNvml
from tests.helpers.service.http_requests import ADDRESS, Asking
from tests.helpers.service.sample_images import RED, encode, scene
from tests.helpers.service.scraping import families, scrape, server_with_metrics, total, value
from tests.helpers.service.toy_model import SIZE
from tlcli.contract.errors import MemoryLimitError, OverloadedError, SettingsError, TlcliError
from tlcli.service import Client, ServerSettings, in_background
from tlcli.service.pb.inference import open_inference_pb2
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from tlcli.service.telemetry.metrics import NO_METRICS, Metrics
from tlcli.service.telemetry.request_record import RequestRecord

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
CLASSIFY, STREAM = "tlcli.v1.Classifier/Classify", "tlcli.v1.Classifier/ClassifyStream"
INFER = "inference.GRPCInferenceService/ModelInfer"
STAGES = ("decode", "queue", "infer", "render", "total")
DOCUMENT = Path(__file__).parents[3] / "docs/serving.md"


def infer(port: int, images: np.ndarray, model: str = "toy") -> None:
    request = open_inference_pb2.ModelInferRequest(model_name=model, raw_input_contents=[images.tobytes()])
    request.inputs.add(name="images", datatype="UINT8", shape=images.shape)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.unary_unary(
            f"/{INFER}",
            request_serializer=open_inference_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=open_inference_pb2.ModelInferResponse.FromString,
        )(request)


def test_requests_are_counted_by_how_they_ended(many_models: Path, caplog: pytest.LogCaptureFixture) -> None:
    with server_with_metrics(many_models, caplog) as (port, metrics_port), Client(port=port) as client:
        for _ in range(3):
            client.classify(IMAGE, model="toy")
        client.classify(IMAGE, model="toy", version="1", cam="gradcam", map_format="overlay")
        assert len(list(client.classify_stream([IMAGE, b"no image", IMAGE], model="toy"))) == 3
        infer(port, np.zeros((5, SIZE, SIZE, 3), np.uint8))
        for model, version in [("nosuch", ""), ("other", ""), ("toy", "77"), ("broken", "")]:
            with pytest.raises(TlcliError):
                client.classify(IMAGE, model=model, version=version)
        with pytest.raises(TlcliError):
            client.classify(b"no image", model="toy")
        client.list_models()
        found = scrape(metrics_port)

    def requests(method: str, model: str, version: str, code: str) -> float:
        return value(found, "tlcli_requests_total", protocol="grpc", method=method, model=model, version=version, code=code)

    assert requests(CLASSIFY, "toy", "2", "OK") == 3
    assert requests(CLASSIFY, "toy", "1", "OK") == 1
    assert requests(CLASSIFY, "toy", "2", "INVALID_ARGUMENT") == 1
    assert requests(CLASSIFY, "unknown", "", "NOT_FOUND") == 3
    assert requests(CLASSIFY, "unknown", "", "FAILED_PRECONDITION") == 1
    assert requests(STREAM, "toy", "2", "OK") == 2
    assert requests(STREAM, "toy", "2", "INVALID_ARGUMENT") == 1
    assert requests(INFER, "toy", "2", "OK") == 1
    assert requests("tlcli.v1.Classifier/ListModels", "", "", "OK") == 1
    assert total(found, "tlcli_requests_total") == 14

    asked = {"decode": 6, "queue": 7, "infer": 7, "render": 1, "total": 7}
    assert {stage: value(found, "tlcli_request_duration_seconds_count", model="toy", stage=stage) for stage in STAGES} == asked
    parts = sum(value(found, "tlcli_request_duration_seconds_sum", model="toy", stage=stage) for stage in STAGES[:-1])
    assert 0 < parts <= value(found, "tlcli_request_duration_seconds_sum", model="toy", stage="total")
    assert total(found, "tlcli_images_total") == value(found, "tlcli_batch_size_sum", model="toy") == 11
    assert 2 <= value(found, "tlcli_batch_size_count", model="toy") <= 11
    assert value(found, "tlcli_queue_length", model="toy", version="2") == 0
    assert value(found, "tlcli_requests_in_flight") == 0


def test_refusals_over_http_are_counted_by_their_grpc_codes(
    one_model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check the codes behind status 503, which stands for two: a lack of memory is RESOURCE_EXHAUSTED on both protocols."""

    async def no_memory(*arguments: object) -> None:
        raise MemoryLimitError("no memory for this request", 2.0)

    with server_with_metrics(one_model, caplog, http_port=0) as (_, metrics_port):
        found = ADDRESS.search(caplog.text)
        assert found
        with Asking(int(found[1])) as http:
            assert http.post("/v1/classify", IMAGE, Content_Encoding="br").status == 415
            assert http.get("/v2", Host="evil.example").status == 403
            monkeypatch.setattr("tlcli.service.inference.classifier.Classifier._render_maps", no_memory)
            assert http.post("/v1/classify?cam=gradcam&format=overlay", IMAGE).status == 503
        scraped = scrape(metrics_port)
    codes = {
        (dict(labels)["method"], dict(labels)["code"]): number
        for (name, labels), number in scraped.items()
        if name == "tlcli_requests_total"
    }
    assert codes == {
        ("POST /v1/classify", "INVALID_ARGUMENT"): 1,
        ("GET /v2", "PERMISSION_DENIED"): 1,
        ("POST /v1/classify", "RESOURCE_EXHAUSTED"): 1,
    }
    assert value(scraped, "tlcli_refused_total", model="toy") == 1


def test_loads_and_what_is_ready(many_models: Path, caplog: pytest.LogCaptureFixture) -> None:
    with server_with_metrics(many_models, caplog) as (_, port):
        found = scrape(port)
    loads = {("toy", "loaded"): 2, ("broken", "failed"): 1, ("damaged", "loaded"): 1, ("damaged", "failed"): 1, ("faulty", "loaded"): 1}
    assert {key: value(found, "tlcli_model_loads_total", model=key[0], outcome=key[1]) for key in loads} == loads
    assert total(found, "tlcli_model_loads_total") == 6
    assert value(found, "tlcli_model_load_seconds_count", model="toy") == 2
    assert value(found, "tlcli_model_load_seconds_sum", model="toy") > 0
    assert value(found, "tlcli_models_ready") == 3


def test_names_that_clients_make_up_are_no_labels(one_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("secret")
    with server_with_metrics(one_model, caplog, tokens_file=tokens) as (port, metrics_port):
        with Client(port=port, token="secret") as client:
            client.classify(IMAGE)
            for number in range(20):
                with pytest.raises(TlcliError):
                    client.classify(IMAGE, model=f"model-{number}", version=f"{number}")
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for number, service in enumerate(["tlcli.v1.Classifier", "inference.GRPCInferenceService", "some.Service"] * 3):
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(f"/{service}/Method{number}")(b"")
            for call in (channel.unary_unary(f"/{CLASSIFY}"), channel.unary_unary(f"/{INFER}")):
                with pytest.raises(grpc.RpcError):
                    call(b"")
            with pytest.raises(grpc.RpcError):
                list(channel.stream_stream(f"/{STREAM}")(iter([b""])))
        found = scrape(metrics_port)
    requests = [(dict(labels), number) for (name, labels), number in found.items() if name == "tlcli_requests_total"]
    counted = {(labels["method"], labels["model"], labels["code"]): number for labels, number in requests}
    assert counted == {
        (CLASSIFY, "toy", "OK"): 1,
        (CLASSIFY, "unknown", "NOT_FOUND"): 20,
        (CLASSIFY, "unknown", "UNAUTHENTICATED"): 1,
        (INFER, "unknown", "UNAUTHENTICATED"): 1,
        (STREAM, "unknown", "UNAUTHENTICATED"): 1,
    }


def test_what_is_too_long_is_not_counted_as_refused_because_others_wait(one_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with server_with_metrics(one_model, caplog, http_port=0, limits_max_bytes=1000) as (_, metrics_port):
        address = next(found for record in caplog.records if (found := ADDRESS.match(record.getMessage())))
        with Asking(int(address[1])) as http:
            assert http.post("/v1/classify", bytes(2000)).status == 413
        found = scrape(metrics_port)
    assert total(found, "tlcli_requests_total", protocol="http", code="RESOURCE_EXHAUSTED") == 1
    assert total(found, "tlcli_refused_total") == 0


def test_the_queue_grows_is_refused_and_empties(one_model: Path, caplog: pytest.LogCaptureFixture, held_up: threading.Event) -> None:
    with (
        server_with_metrics(one_model, caplog, max_batch_size=1, max_queue_size=3) as (port, metrics_port),
        Client(port=port, retries=0) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        held_up.clear()
        try:
            asked = [pool.submit(client.classify, IMAGE)]
            while (held := scrape(metrics_port)) and not (
                value(held, "tlcli_requests_in_flight") == 1 and value(held, "tlcli_queue_length", model="toy", version="1") == 0
            ):
                time.sleep(0.02)
            asked += [pool.submit(client.classify, IMAGE) for _ in range(3)]
            while value(found := scrape(metrics_port), "tlcli_queue_length", model="toy", version="1") != 3:
                time.sleep(0.02)
            assert value(found, "tlcli_requests_in_flight") == 4
            with pytest.raises(OverloadedError):
                client.classify(IMAGE)
        finally:
            held_up.set()
        assert all(one.result(10).predictions for one in asked)
        found = scrape(metrics_port)
    assert value(found, "tlcli_refused_total", model="toy") == 1
    assert total(found, "tlcli_requests_total", code="RESOURCE_EXHAUSTED", model="toy") == 1
    assert value(found, "tlcli_queue_length", model="toy", version="1") == value(found, "tlcli_requests_in_flight") == 0
    assert value(found, "tlcli_batch_size_bucket", model="toy", le="1.0") == 4


def test_a_client_that_leaves_and_one_whose_time_is_over(
    one_model: Path, caplog: pytest.LogCaptureFixture, held_up: threading.Event
) -> None:
    with server_with_metrics(one_model, caplog) as (port, metrics_port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        held_up.clear()
        leaving = ClassifierStub(channel).Classify.future(pb.ClassifyRequest(encoded=IMAGE))
        while value(scrape(metrics_port), "tlcli_requests_in_flight") != 1:
            time.sleep(0.02)
        leaving.cancel()
        while value(scrape(metrics_port), "tlcli_requests_in_flight"):
            time.sleep(0.02)
        with pytest.raises(grpc.RpcError):
            ClassifierStub(channel).Classify(pb.ClassifyRequest(encoded=IMAGE), timeout=2)
        while value(scrape(metrics_port), "tlcli_requests_in_flight"):
            time.sleep(0.02)
        found = scrape(metrics_port)  # once more: a scrape reads the counters before the gauge, and a request can end between them
        held_up.set()
    late = total(found, "tlcli_requests_total", code="DEADLINE_EXCEEDED")  # or the client's word of it came first
    assert total(found, "tlcli_requests_total", code="CANCELLED") == 2 - late
    assert total(found, "tlcli_requests_total", model="toy") == total(found, "tlcli_requests_total") == 2
    assert total(found, "tlcli_request_duration_seconds_count") == total(found, "tlcli_images_total") == 0


def test_two_servers_in_one_process_count_for_themselves(one_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    with server_with_metrics(one_model, caplog) as (port, first), server_with_metrics(one_model, caplog) as (_, second):
        with Client(port=port) as client:
            client.classify(IMAGE)
        assert total(scrape(first), "tlcli_requests_total") == 1
        assert total(scrape(second), "tlcli_requests_total") == 0
    with pytest.raises(OSError, match="refused"):
        scrape(first)


def test_the_documentation_names_every_metric(one_model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml((GIB, 8 * GIB)))  # type: ignore[arg-type]
    monkeypatch.setattr("tlcli.service.server.resolve_device", lambda device: "cuda")
    with server_with_metrics(one_model, caplog) as (port, metrics_port):
        with Client(port=port) as client:
            client.classify(IMAGE)
        found = families(metrics_port)
    rows = [line.split("|") for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `tlcli_")]
    told = {row[1].strip(" `"): (row[2].strip(), set(re.findall(r"`(\w+)`", row[3]))) for row in rows}
    exposed = {
        one.name + ("_total" if one.type == "counter" else ""): (
            one.type,
            {label for sample in one.samples for label in sample.labels} - {"le"},
        )
        for one in found
        if not one.name.endswith("_created")
    }
    assert {name: kind for name, (kind, _) in exposed.items()} == {name: kind for name, (kind, _) in told.items()}
    for name, (_, labels) in exposed.items():
        assert labels == (told[name][1] if labels else set()), name


def test_off_it_keeps_and_serves_nothing(one_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tlcli.service")
    with in_background(ServerSettings(models=one_model, port=0)):
        assert "metrics" not in caplog.text
    with RequestRecord("method") as request:
        pass
    NO_METRICS.count_request(request)
    NO_METRICS.loaded("toy", 1.0)
    NO_METRICS.failed_to_load("toy")
    assert NO_METRICS.batches("toy") is None
    assert not Metrics().on


def test_a_port_that_is_taken_is_named(one_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = ServerSettings(models=one_model, port=0, metrics_port=port)
        expected = rf"cannot listen on 127\.0\.0\.1:{port} for metrics: Address already in use: choose another with --metrics-host"
        with pytest.raises(SettingsError, match=expected), in_background(settings):
            pass


def test_two_servers_may_share_a_port_if_both_were_told_so() -> None:
    first, second, third = (Metrics(on=True) for _ in range(3))
    port = first.serve("127.0.0.1", 0, reuse_port=True)
    assert second.serve("127.0.0.1", port, reuse_port=True) == port
    with pytest.raises(SettingsError, match="Address already in use"):
        third.serve("127.0.0.1", port)
    first.close()
    assert scrape(port) == {}
    second.close()


def test_beyond_this_machine_only_with_a_word_for_it(one_model: Path) -> None:
    with pytest.raises(SettingsError, match=r"^metrics_host 0\.0\.0\.0: metrics would travel unencrypted beyond this machine: set"):
        ServerSettings(models=one_model, metrics_port=1, metrics_host="0.0.0.0")
    ServerSettings(models=one_model, metrics_port=1, metrics_host="0.0.0.0", insecure=True)
    ServerSettings(models=one_model, metrics_host="0.0.0.0")
