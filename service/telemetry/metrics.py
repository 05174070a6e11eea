"""Prometheus metrics of a server: counts, sizes and durations. `prometheus_client` is imported only if metrics are enabled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tlcli.contract.errors import SettingsError
from tlcli.service.system.addresses import join_address
from tlcli.service.telemetry.request_record import OK, RequestRecord

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram
    from prometheus_client.registry import Collector

    from tlcli.service.telemetry.gpu_memory import Gpus
    from tlcli.service.telemetry.metrics_endpoint import MetricsEndpoint

UNKNOWN = "unknown"
"""Model label of requests that failed before their model was found. With names sent by clients, the label would be unbounded."""

DURATIONS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Queue:
    """Queue state of one served model version.

    length: number of waiting images.
    score_cams: number of Score-CAMs that are waiting or in progress.
    """

    model: str
    version: str
    length: int
    score_cams: int


class Metrics:
    """Metrics of one server, in their own registry so that one process can run several servers. If disabled, the methods do nothing.

    Requests are counted in the event loop's thread. Scrapes run in other threads.
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
        self._requests = Counter("requests", "Requests that have ended.", ("protocol", "method", "model", "version", "code"), **here)  # type: ignore[arg-type]
        self._durations = Histogram(
            "request_duration_seconds",
            "Duration of successful requests, by stage; total is the whole request.",
            ("model", "stage"),
            buckets=DURATIONS_S,
            **here,  # type: ignore[arg-type]
        )
        self._images = Counter("images", "Images of successful requests.", ("model",), **here)  # type: ignore[arg-type]
        self._refused = Counter("refused", "Requests rejected because too many were waiting or memory was short.", ("model",), **here)  # type: ignore[arg-type]
        self._batches = Histogram("batch_size", "Images in one run of a model.", ("model",), buckets=BATCH_SIZES, **here)  # type: ignore[arg-type]
        self._loads = Counter("model_loads", "Loads of model versions, by outcome.", ("model", "outcome"), **here)  # type: ignore[arg-type]
        self._load_durations = Summary("model_load_seconds", "Duration of successful loads, including warm-up.", ("model",), **here)  # type: ignore[arg-type]
        ProcessCollector(registry=self._registry)
        # Labelled children are cached: a lookup takes a lock, and as much time as the count itself.
        self._counters: dict[tuple[str, ...], Counter] = {}
        self._of_model: dict[str, tuple[Counter, dict[str, Histogram]]] = {}

    def count_request(self, request: RequestRecord) -> None:
        """Count a finished request."""
        if not self.on:
            return
        model = request.model or ("" if request.code == OK else UNKNOWN)
        key = (request.protocol, request.method, model, request.version, request.code)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._requests.labels(*key)
        counter.inc()
        if request.code == "RESOURCE_EXHAUSTED" and request.model:  # a message that is too long is rejected before a model is found
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

    def batches(self, model: str) -> Callable[[int], None] | None:
        """Return a callback that records the size of each batch of a model; None if disabled. It may be called from any thread."""
        return self._batches.labels(model).observe if self.on else None

    def loaded(self, model: str, seconds: float) -> None:
        """Count a model version that loaded successfully, and record the `seconds` that loading and warm-up took."""
        if self.on:
            self._loads.labels(model, "loaded").inc()
            self._load_durations.labels(model).observe(seconds)

    def failed_to_load(self, model: str) -> None:
        """Count a model version that failed to load."""
        if self.on:
            self._loads.labels(model, "failed").inc()

    def watch(self, in_flight: Callable[[], int], queues: Callable[[], Iterable[Queue]]) -> None:
        """Register the gauges whose values are read at each scrape, in the scrape's thread.

        Args:
            in_flight: function that returns the number of in-flight requests.
            queues: function that returns the queues of all served versions.
        """
        if self.on:
            self._registry.register(_collector(in_flight, queues))

    def watch_gpus(self, gpus: Gpus | None) -> None:
        """Register the gauges of GPU memory, unless `gpus` is None. `close` closes the GPUs too."""
        if self.on and gpus is not None:
            self._gpus = gpus
            self._registry.register(_gpu_collector(gpus))

    def serve(self, host: str, port: int, reuse_port: bool = False) -> int:
        """Start an HTTP endpoint that serves scrapes in separate threads.

        Args:
            host, port: address to listen on; port 0 picks a free port.
            reuse_port: share the port with another server that also sets this option.

        Returns:
            Port of the endpoint.

        Raises:
            SettingsError: the address cannot be used.
        """
        from tlcli.service.telemetry.metrics_endpoint import MetricsEndpoint

        try:
            self._endpoint = MetricsEndpoint(self._registry, host, port, reuse_port)
        except (OSError, UnicodeError) as error:
            raise SettingsError(
                f"cannot listen on {join_address(host, port)} for metrics: {getattr(error, 'strerror', None) or error}:"
                " choose another with --metrics-host and --metrics-port (--metrics-port 0 picks a free port)"
            ) from error
        return self._endpoint.port

    def close(self) -> None:
        """Shut down the metrics endpoint and release the GPU handles. This can block for half a second."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
        if self._gpus is not None:
            self._gpus.close()
            self._gpus = None


NO_METRICS = Metrics()
"""Disabled metrics, which record nothing."""


def _collector(in_flight: Callable[[], int], queues: Callable[[], Iterable[Queue]]) -> Collector:
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector

    class CurrentState(Collector):
        """Collector of gauges that are read during a scrape and therefore add no cost to requests."""

        def collect(self) -> Iterable[GaugeMetricFamily]:
            """Yield the gauges with their current values."""
            yield GaugeMetricFamily("tlcli_requests_in_flight", "Requests in progress.", value=in_flight())
            served = tuple(queues())
            waiting = GaugeMetricFamily("tlcli_queue_length", "Images waiting for a run.", labels=("model", "version"))
            for queue in served:
                waiting.add_metric((queue.model, queue.version), queue.length)
            yield waiting
            score_cams = GaugeMetricFamily("tlcli_score_cams", "Score-CAMs waiting or in progress.", labels=("model", "version"))
            for queue in served:
                score_cams.add_metric((queue.model, queue.version), queue.score_cams)
            yield score_cams
            yield GaugeMetricFamily(
                "tlcli_models_ready", "Models with at least one served version.", value=len({queue.model for queue in served})
            )

    return CurrentState()


def _gpu_collector(gpus: Gpus) -> Collector:
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector

    class GpuMemoryCollector(Collector):
        """Collector of GPU memory, which is read at each scrape in the scrape's thread."""

        def collect(self) -> Iterable[GaugeMetricFamily]:
            """Yield the used and the total memory, with one sample per GPU."""
            labels = ("gpu", "uuid")
            used = GaugeMetricFamily("tlcli_gpu_memory_used_bytes", "Memory of a GPU in use by all processes.", labels=labels)
            total = GaugeMetricFamily("tlcli_gpu_memory_total_bytes", "Memory of a GPU.", labels=labels)
            for memory in gpus.memory():
                used.add_metric((memory.gpu, memory.uuid), memory.used_bytes)
                total.add_metric((memory.gpu, memory.uuid), memory.total_bytes)
            yield used
            yield total

    return GpuMemoryCollector()
