"""OpenTelemetry traces: a span per request, with a child span for each stage. The library is imported only if a server traces."""

from __future__ import annotations

import logging
import os
import threading
import time
from importlib import metadata
from typing import TYPE_CHECKING

from tlcli.contract.errors import SettingsError
from tlcli.service.telemetry.request_record import OK, RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Environment variables of OpenTelemetry; our own setting takes precedence."""

_PATIENCE_S = 2.0
"""Time limit for a collector that does not answer at shutdown; the exporter itself would retry for longer."""

_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Status codes that mark a server span as an error in OpenTelemetry's conventions for gRPC."""


def open_traces(endpoint: str | None) -> Traces | None:
    """Open traces to an endpoint or, without one, to the endpoint that the environment names; return None without any.

    Raises:
        SettingsError: see `Traces.to`. A wrong endpoint in the environment, which may be meant for other programs, is only logged.
    """
    if endpoint is not None:
        return Traces.to(endpoint)
    for name in ENDPOINT_VARIABLES:
        if from_environment := os.environ.get(name):
            try:
                return Traces.to(from_environment)
            except SettingsError as error:
                logger.warning("%s is set, but no traces are sent: %s", name, error)
                return None
    return None


class Traces:
    """Traces of the requests that have ended, sent by an exporter from a thread of its own.

    OpenTelemetry's environment variables for service name, sampler and headers apply.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        version = metadata.version("tlcli")
        names = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or "tlcli", "service.version": version}
        self._exporter = exporter
        self._provider = TracerProvider(resource=Resource.create(names), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("tlcli", version)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str) -> Traces:
        """Open traces to a collector, by OTLP over gRPC.

        Args:
            endpoint: `http://HOST:PORT`, or `https://HOST:PORT` for TLS.

        Raises:
            SettingsError: OpenTelemetry is not installed, or the endpoint has another form.
        """
        if not endpoint.startswith(("http://", "https://")):
            raise SettingsError(f"otel_endpoint {endpoint}: expected http://HOST:PORT, or https://HOST:PORT for TLS")
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"otel_endpoint {endpoint}: traces need {error.name}, which is not installed: pip install 'tlcli[otel]'"
            ) from error
        return cls(OTLPSpanExporter(endpoint=endpoint))

    def trace_request(self, request: RequestRecord) -> None:
        """Create the spans of a request that has ended."""
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        epoch_ns = time.time_ns() - time.monotonic_ns()
        service, _, method = request.method.rpartition("/")
        span = self._tracer.start_span(
            request.method,
            context=self._propagator.extract(request.trace_headers),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": request.protocol,
                "rpc.service": service,
                "rpc.method": method,
                "rpc.response.status_code": request.code,
                "tlcli.request_id": request.request_id,
                "tlcli.model": request.model,
                "tlcli.version": request.version,
                "tlcli.images": request.images,
            },
            start_time=epoch_ns + request.begun_ns,
        )
        request.trace_id = format(span.get_span_context().trace_id, "032x")
        if span.is_recording():
            parent = set_span_in_context(span)
            for stage in request.spans:
                begun_ns = epoch_ns + stage.begun_ns
                self._tracer.start_span(stage.stage, context=parent, start_time=begun_ns).end(begun_ns + stage.took_ns)
        if request.code != OK and request.code in _FAULTS:
            span.set_status(StatusCode.ERROR)
        span.end(epoch_ns + request.ended_ns)

    def close(self) -> None:
        """Send the remaining spans and shut down; give up after two seconds if the collector does not answer."""
        timeout = threading.Timer(_PATIENCE_S, self._exporter.shutdown)
        timeout.start()
        self._provider.shutdown()
        timeout.cancel()
