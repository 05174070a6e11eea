"""OpenTelemetry traces: one span per request, with a child span per stage. `opentelemetry` is imported only if tracing is enabled."""

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
"""OpenTelemetry's environment variables for the endpoint. The setting `otel_endpoint` takes precedence."""

_PATIENCE_S = 2.0
"""Seconds to wait at shutdown for a collector that does not respond. The exporter itself would retry for longer."""

_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Status codes that mark a server span as an error, according to OpenTelemetry's conventions for gRPC."""


def open_traces(endpoint: str | None) -> Traces | None:
    """Start tracing to an endpoint. If `endpoint` is None, use the endpoint set in the environment, or return None if there is none.

    Raises:
        SettingsError: `endpoint` cannot be used; see `Traces.to`. An invalid endpoint in the environment is only logged, because it may
            be meant for other programs.
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
    """Traces of finished requests. An exporter sends them from a background thread.

    OpenTelemetry's environment variables for the service name, the sampler and the headers apply.
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
        """Create traces that are sent to a collector with OTLP over gRPC.

        Args:
            endpoint: `http://HOST:PORT`, or `https://HOST:PORT` for TLS.

        Raises:
            SettingsError: OpenTelemetry is not installed, or the endpoint does not have one of these forms.
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
        """Create the spans of a finished request."""
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
        """Export the remaining spans and shut down. Give up after two seconds if the collector does not respond."""
        timeout = threading.Timer(_PATIENCE_S, self._exporter.shutdown)
        timeout.start()
        self._provider.shutdown()
        timeout.cancel()
