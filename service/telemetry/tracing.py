"""Requests as OpenTelemetry traces: a span a request, with one for each stretch of it. Its library is imported where a server traces."""

from __future__ import annotations

import logging
import os
import threading
import time
from importlib import metadata
from typing import TYPE_CHECKING

from tlcli.contract.errors import SettingsError
from tlcli.service.telemetry.request_record import OK, Observed

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

logger = logging.getLogger(__name__)

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""As OpenTelemetry names them; ours goes before."""

_PATIENCE_S = 2.0
"""With a collector that does not answer, at the end: by itself the exporter would try again for longer."""

_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Codes that make a server's span an error, by OpenTelemetry's conventions for gRPC."""


def open_traces(endpoint: str | None) -> Traces | None:
    """Traces that go where it was told, or where the environment says; None: nowhere.

    Raises:
        SettingsError: see `Traces.to`. What the environment says may be meant for others: then it is a line in the log.
    """
    if endpoint is not None:
        return Traces.to(endpoint)
    for name in ENDPOINT_VARIABLES:
        if meant_for_all := os.environ.get(name):
            try:
                return Traces.to(meant_for_all)
            except SettingsError as error:
                logger.warning("no traces are sent, though %s is set: %s", name, error)
                return None
    return None


class Traces:
    """Makes spans of requests when they are over, and hands them to an exporter, which sends them from a thread of its own.

    What OpenTelemetry reads from its environment variables (service name, sampler, headers) holds.
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
        """Traces that go to a collector, by OTLP over gRPC.

        Args:
            endpoint: `http://HOST:PORT`, or `https` with TLS.

        Raises:
            SettingsError: OpenTelemetry is not installed, or this is no such address.
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

    def take(self, request: Observed) -> None:
        """Make the spans of a request that is over."""
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
            within = set_span_in_context(span)
            for part in request.spans:
                begun_ns = epoch_ns + part.begun_ns
                self._tracer.start_span(part.stage, context=within, start_time=begun_ns).end(begun_ns + part.took_ns)
        if request.code != OK and request.code in _FAULTS:
            span.set_status(StatusCode.ERROR)
        span.end(epoch_ns + request.ended_ns)

    def close(self) -> None:
        """Send what is left, and end; where nobody takes it, after some seconds without."""
        giving_up = threading.Timer(_PATIENCE_S, self._exporter.shutdown)
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()
