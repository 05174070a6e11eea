"""What Prometheus may know of a server: counts, sizes and durations. Its library is imported only where a server keeps them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlcli.contract.errors import SettingsError
from tlcli.service.system.addresses import join_address
from tlcli.service.telemetry.request_record import OK, Observed

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram
    from prometheus_client.registry import Collector

    from tlcli.service.telemetry.gpu_memory import Gpus
    from tlcli.service.telemetry.metrics_endpoint import MetricsEndpoint

UNKNOWN = "unknown"
"""The model of a request that failed before one was found for it: clients' own names would be values without end."""

DURATIONS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Queue:
    """Number of images that wait for a served version of a model, and of Score-CAMs that wait or are in progress."""

    model: str
    version: str
    length: int
    score_cams: int


class Metrics:
    """The metrics of one server, in a registry of their own, so that a process may have several servers. Off, it does nothing.

    What is asked of it for each request happens in the event loop's thread; a scrape happens in another one.
    """

    def __init__(self, on: bool = False) -> None:
        self.on = on
        self._endpoint: MetricsEndpoint | None = None
        self._gpus: Gpus | None = None
        if not on:
            return
        from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, Summary

        self._registry = CollectorRegistry()
        here = {"namespace": "tlcli", "registry": self._registry}
        self._requests = Counter("requests", "Requests answered.", ("protocol", "method", "model", "version", "code"), **here)  # type: ignore[arg-type]
        self._durations = Histogram(
            "request_duration_seconds",
            "Time of requests that ended well, by stage; total is all of it.",
            ("model", "stage"),
            buckets=DURATIONS_S,
            **here,  # type: ignore[arg-type]
        )
        self._images = Counter("images", "Images of requests that ended well.", ("model",), **here)  # type: ignore[arg-type]
        self._refused = Counter("refused", "Requests refused because too many waited.", ("model",), **here)  # type: ignore[arg-type]
        self._batches = Histogram("batch_size", "Images in a run of a model.", ("model",), buckets=BATCH_SIZES, **here)  # type: ignore[arg-type]
        self._loads = Counter("model_loads", "Loads of a version of a model.", ("model", "outcome"), **here)  # type: ignore[arg-type]
        self._load_durations = Summary("model_load_seconds", "Time of loads that ended well, warm-up included.", ("model",), **here)  # type: ignore[arg-type]
        ProcessCollector(registry=self._registry)
        # What is labelled once is kept: to look a child up takes a lock and as long as to count with it.
        self._counters: dict[tuple[str, ...], Counter] = {}
        self._of_model: dict[str, tuple[Counter, dict[str, Histogram]]] = {}

    def take(self, request: Observed) -> None:
        """Count a request that is over."""
        if not self.on:
            return
        model = request.model or ("" if request.code == OK else UNKNOWN)
        key = (request.protocol, request.method, model, request.version, request.code)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._requests.labels(*key)
        counter.inc()
        if request.code == "RESOURCE_EXHAUSTED" and request.model:  # one that is too long is refused before a model is found
            self._refused.labels(model).inc()
        if request.code != OK or not request.images:
            return
        if model not in self._of_model:
            self._of_model[model] = (self._images.labels(model), {})
        images, durations = self._of_model[model]
        images.inc(request.images)
        for stage, took_ns in request.took_ns().items():
            if stage not in durations:
                durations[stage] = self._durations.labels(model, stage)
            durations[stage].observe(took_ns / 1e9)

    def batches(self, model: str) -> Callable[[int], None]:
        """What to call with the size of each batch of a model, from any thread."""
        return self._batches.labels(model).observe if self.on else _ignore

    def loaded(self, model: str, seconds: float) -> None:
        """A version was loaded and warmed up in so many seconds."""
        if self.on:
            self._loads.labels(model, "loaded").inc()
            self._load_durations.labels(model).observe(seconds)

    def failed_to_load(self, model: str) -> None:
        """A version could not be loaded."""
        if self.on:
            self._loads.labels(model, "failed").inc()

    def watch(self, in_flight: Callable[[], int], queues: Callable[[], Iterable[Queue]]) -> None:
        """Ask at each scrape, from its thread.

        Args:
            in_flight: how many requests are under way.
            queues: of all versions that are served.
        """
        if self.on:
            self._registry.register(_collector(in_flight, queues))

    def watch_gpus(self, gpus: Gpus | None) -> None:
        """Tell their memory from now on, until `close`, which closes them too; none where there are none to ask."""
        if self.on and gpus is not None:
            self._gpus = gpus
            self._registry.register(_gpu_collector(gpus))

    def serve(self, host: str, port: int, reuse_port: bool = False) -> int:
        """Answer scrapes over HTTP, in threads of their own.

        Args:
            host, port: where; port 0 takes a free one.
            reuse_port: share the port with another server that does so too.

        Returns:
            The port.

        Raises:
            SettingsError: it cannot be listened there.
        """
        from tlcli.service.telemetry.metrics_endpoint import MetricsEndpoint

        try:
            self._endpoint = MetricsEndpoint(self._registry, host, port, reuse_port)
        except (OSError, UnicodeError) as error:
            raise SettingsError(
                f"cannot listen on {join_address(host, port)} for metrics: {getattr(error, 'strerror', None) or error}:"
                " choose another with --metrics-host and --metrics-port (--metrics-port 0 takes a free one)"
            ) from error
        return self._endpoint.port

    def close(self) -> None:
        """Answer no more scrapes; may take half a second."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
        if self._gpus is not None:
            self._gpus.close()
            self._gpus = None


NO_METRICS = Metrics()
"""For who keeps none."""


def _ignore(size: int) -> None:
    """Where nobody counts."""


def _collector(in_flight: Callable[[], int], queues: Callable[[], Iterable[Queue]]) -> Collector:
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector

    class Now(Collector):
        """What is so at the moment of a scrape: it costs requests nothing."""

        def collect(self) -> Iterable[GaugeMetricFamily]:
            """The gauges."""
            yield GaugeMetricFamily("tlcli_requests_in_flight", "Requests under way.", value=in_flight())
            now = tuple(queues())
            waiting = GaugeMetricFamily("tlcli_queue_length", "Images that came and whose run has not begun.", labels=("model", "version"))
            for one in now:
                waiting.add_metric((one.model, one.version), one.length)
            yield waiting
            score_cams = GaugeMetricFamily("tlcli_score_cams", "Score-CAMs that wait or are in progress.", labels=("model", "version"))
            for one in now:
                score_cams.add_metric((one.model, one.version), one.score_cams)
            yield score_cams
            yield GaugeMetricFamily("tlcli_models_ready", "Models of which a version is served.", value=len({one.model for one in now}))

    return Now()


def _gpu_collector(gpus: Gpus) -> Collector:
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector

    class Memory(Collector):
        """Asked for at each scrape, in its thread."""

        def collect(self) -> Iterable[GaugeMetricFamily]:
            """A value a GPU."""
            labels = ("gpu", "uuid")
            used = GaugeMetricFamily("tlcli_gpu_memory_used_bytes", "Of a GPU's memory, by all that use it.", labels=labels)
            whole = GaugeMetricFamily("tlcli_gpu_memory_total_bytes", "A GPU's memory.", labels=labels)
            for one in gpus.memory():
                used.add_metric((one.gpu, one.uuid), one.used_bytes)
                whole.add_metric((one.gpu, one.uuid), one.total_bytes)
            yield used
            yield whole

    return Memory()
