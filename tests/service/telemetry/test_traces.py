"""Tests of OpenTelemetry traces: times of the spans, the parent in a client's trace, and the export to a collector."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.helpers.service.sample_images import RED, encode, scene
from tlcli.contract.errors import SettingsError
from tlcli.service import Client, ServerSettings, in_background
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from tlcli.service.telemetry.request_record import RequestRecord
from tlcli.service.telemetry.tracing import Traces, open_traces

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Collector that stores the spans it receives."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []
        self.resources: list[dict[str, str]] = []

    def Export(self, request: trace_service_pb2.ExportTraceServiceRequest, context: object) -> object:  # noqa: N802
        for resource in request.resource_spans:
            self.resources.append({one.key: one.value.string_value for one in resource.resource.attributes})
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def collecting() -> Iterator[tuple[str, Collector]]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", collector
    server.stop(None).wait()


def test_a_request_is_a_span_with_its_stages_in_it() -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    with RequestRecord("some.Service/Method", TRACEPARENT, on_end=[traces.trace_request]) as request:
        request.note_request("its-id", 2)
        request.note_model("toy", 3)
        begun_ns = request.begun_ns
        request.note_span("decode", begun_ns, 1000, 2000)
        request.note_span("infer", begun_ns + 4000, 0, 5000)
    traces.close()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans.keys() == {"some.Service/Method", "queue", "decode", "infer"}
    root = spans["some.Service/Method"]
    assert root.kind is SpanKind.SERVER
    assert root.parent is not None
    assert (format(root.context.trace_id, "032x"), format(root.parent.span_id, "016x")) == (TRACE, PARENT)
    assert request.trace_id == TRACE
    assert root.attributes is not None
    told = {"rpc.service": "some.Service", "rpc.method": "Method", "rpc.response.status_code": "OK", "tlcli.request_id": "its-id"}
    assert root.attributes.items() >= {**told, "tlcli.model": "toy", "tlcli.version": "3", "tlcli.images": 2}.items()
    start_ns = root.start_time or 0
    times = {name: ((span.start_time or 0) - start_ns, (span.end_time or 0) - start_ns) for name, span in spans.items()}
    assert (times["queue"], times["decode"], times["infer"]) == ((0, 1000), (1000, 3000), (4000, 9000))
    assert times[root.name][1] == request.ended_ns - request.begun_ns
    for name in ("queue", "decode", "infer"):
        parent = spans[name].parent
        assert parent is not None
        assert (parent.span_id, parent.trace_id) == (root.context.span_id, root.context.trace_id)


@pytest.mark.parametrize(("code", "status"), [("INTERNAL", StatusCode.ERROR), ("INVALID_ARGUMENT", StatusCode.UNSET)])
def test_a_fault_of_the_server_is_an_error_one_of_the_client_is_none(code: str, status: StatusCode) -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    with RequestRecord("a.B/C", on_end=[traces.trace_request]) as request:
        request.code = code
    traces.close()
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is status


@pytest.mark.parametrize("traceparent", ["00-zz-zz-01", "", "00-00000000000000000000000000000000-0000000000000000-01"])
def test_a_header_that_is_none_begins_a_new_trace(traceparent: str) -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    with RequestRecord("a.B/C", (("traceparent", traceparent),), on_end=[traces.trace_request]):
        pass
    traces.close()
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


def test_what_a_client_does_not_sample_is_not_sent() -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    with RequestRecord("a.B/C", (("traceparent", f"00-{TRACE}-{PARENT}-00"),), on_end=[traces.trace_request]) as request:
        request.note_span("infer", 0, 0, 1)
    traces.close()
    assert exporter.get_finished_spans() == ()
    assert request.trace_id == TRACE


def test_over_the_wire_to_a_collector(one_model: Path) -> None:
    with collecting() as (endpoint, collector):
        settings = ServerSettings(models=one_model, port=0, otel_endpoint=endpoint)
        with in_background(settings) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = ClassifierStub(channel)
            asked = pb.ClassifyRequest(encoded=IMAGE, map=pb.MapRequest(method="gradcam", format=pb.MAP_FORMAT_OVERLAY))
            stub.Classify(asked, metadata=TRACEPARENT)
            list(stub.ClassifyStream(iter([asked] * 2), metadata=TRACEPARENT))
    roots = [span for span in collector.spans if span.kind == trace_pb2.Span.SPAN_KIND_SERVER]
    assert [root.name for root in roots] == ["tlcli.v1.Classifier/Classify"] + ["tlcli.v1.Classifier/ClassifyStream"] * 2
    for root in roots:
        assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, PARENT)
        children = [span for span in collector.spans if span.parent_span_id == root.span_id]
        assert {span.name for span in children} == {"decode", "queue", "infer", "render"}
        for child in children:
            assert root.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano <= root.end_time_unix_nano
    assert collector.resources[0]["service.name"] == "tlcli"


def test_the_variable_that_opentelemetry_knows_is_heard(one_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as (endpoint, collector):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "pets")
        with in_background(ServerSettings(models=one_model, port=0)) as port, Client(port=port) as client:
            client.classify(IMAGE)
    assert collector.resources[0]["service.name"] == "pets"


def test_a_collector_that_is_not_there_holds_up_neither_requests_nor_the_stop(one_model: Path) -> None:
    done = threading.Event()

    def serve() -> None:
        settings = ServerSettings(models=one_model, port=0, otel_endpoint="http://127.0.0.1:9")
        with in_background(settings) as port, Client(port=port) as client:
            assert client.classify(IMAGE, timeout_s=5).predictions
        done.set()

    threading.Thread(target=serve, daemon=True).start()
    assert done.wait(15)


def test_an_address_that_is_none_is_refused_and_one_of_the_environments_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SettingsError, match=r"^otel_endpoint collector:4317: expected http://HOST:PORT, or https://HOST:PORT for TLS$"):
        open_traces("collector:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")
    assert open_traces(None) is None
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is set, but no traces are sent" in caplog.text


def test_a_server_that_does_not_trace_imports_none_of_it() -> None:
    program = (
        "import sys, tlcli.service\n"
        "from tlcli.service.server import Server\n"
        "import asyncio\n"
        "async def main(): Server(tlcli.service.ServerSettings())\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'prometheus_client'))])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
