"""Server components created from the settings and shared by both protocols."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from tlcli.contract.model.cuda_options import Cuda
from tlcli.contract.process.cores import usable_cores
from tlcli.service.decoding.decode_process import DecodeProcesses
from tlcli.service.decoding.image_pipeline import ImagePipeline
from tlcli.service.decoding.memory_budget import MemoryBudget, default_budget
from tlcli.service.execution.batching import Batching
from tlcli.service.execution.runner import Runner
from tlcli.service.inference.classifier import Classifier
from tlcli.service.inference.open_inference import OpenInference
from tlcli.service.inference.resources import Resources
from tlcli.service.repository.model_control import ModelControl
from tlcli.service.repository.model_repository import Repository
from tlcli.service.repository.version_policy import VersionPolicy
from tlcli.service.settings.server_settings import ServerSettings
from tlcli.service.system.file_limit import fitting_connections
from tlcli.service.system.thread_pool import Workers
from tlcli.service.telemetry.logs import log_request
from tlcli.service.telemetry.metrics import Metrics
from tlcli.service.telemetry.request_record import OnEnd, RequestRecorder
from tlcli.service.telemetry.tracing import Traces, open_traces

_ENVELOPE_BYTES = 64 * 1024
"""Bytes that a request may hold in addition to its image: names, ids, class numbers."""


@dataclass(frozen=True)
class Components:
    """Components of a server.

    settings: the server's settings.
    workers: threads that decode images, render maps, and read and write large bodies.
    watchers: threads that wait for decoding processes.
    processes: the decoding processes.
    budget: memory budget shared by all requests.
    recorder: recorder of every request, for metrics, traces and the log.
    is_serving: returns True while the server as a whole accepts requests.
    max_message_bytes: maximum size of an inference request in bytes.
    max_connections: maximum number of open connections per protocol.
    """

    settings: ServerSettings
    repository: Repository
    control: ModelControl
    classifier: Classifier
    open_inference: OpenInference
    workers: Workers
    watchers: Workers
    processes: DecodeProcesses
    budget: MemoryBudget
    recorder: RequestRecorder
    metrics: Metrics
    traces: Traces | None
    is_serving: Callable[[], bool]
    max_message_bytes: int
    max_connections: int

    @classmethod
    def of(cls, settings: ServerSettings, on_change: Callable[[], Awaitable[None]], is_serving: Callable[[], bool]) -> Components:
        """Create the components. No file is read and no port is opened yet.

        Args:
            settings: the server's settings.
            on_change: callback awaited after the served models have changed.
            is_serving: see the class.

        Raises:
            SettingsError: traces cannot be sent to the configured endpoint.
        """
        metrics = Metrics(on=settings.metrics_port is not None)
        batching = Batching(settings.max_batch_size, settings.max_queue_delay_ms / 1000)
        cuda = Cuda(tf32=settings.tf32)
        open_runner = partial(Runner.open, device=settings.device, threads=settings.threads, batching=batching, metrics=metrics, cuda=cuda)
        repository = Repository(
            settings.models,
            open_runner,
            VersionPolicy.parse(settings.versions),
            settings.max_queue_size,
            metrics,
            max_score_cams=settings.max_score_cams,
        )
        threads = settings.image_threads or usable_cores()
        workers = Workers(threads, name="images")
        watchers = Workers(max(1, threads // 2), name="decoding processes")
        budget = MemoryBudget(settings.max_memory_bytes or default_budget())
        processes = DecodeProcesses(settings.limits, settings.max_decode_s)
        pipeline = ImagePipeline(settings.limits, processes, workers, watchers, budget)
        resources = Resources(repository, pipeline, workers, budget, settings.max_maps, settings.max_image_s)
        traces = open_traces(settings.otel_endpoint)
        recorder = RequestRecorder(_request_hooks(settings, metrics, traces))
        metrics.watch(lambda: recorder.in_flight, repository.queues)
        return cls(
            settings=settings,
            repository=repository,
            control=ModelControl(repository, settings.model_control, settings.poll_s, on_change),
            classifier=Classifier(resources),
            open_inference=OpenInference(resources, settings.limits),
            workers=workers,
            watchers=watchers,
            processes=processes,
            budget=budget,
            recorder=recorder,
            metrics=metrics,
            traces=traces,
            is_serving=is_serving,
            max_connections=fitting_connections(settings.max_connections, 1 if settings.http_port is None else 2),
            max_message_bytes=settings.max_message_bytes or settings.limits.max_bytes + _ENVELOPE_BYTES,
        )

    async def close(self) -> None:
        """Wait for current jobs, then close threads, processes, models, metrics and traces."""
        self.processes.close()
        self.watchers.close()
        self.workers.close()
        self.repository.close()
        await asyncio.to_thread(self.metrics.close)
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)


def _request_hooks(settings: ServerSettings, metrics: Metrics, traces: Traces | None) -> list[OnEnd]:
    """Return the hooks to call after each request. Traces come first because the log includes the trace id."""
    hooks: list[OnEnd] = [] if traces is None else [traces.trace_request]
    if metrics.on:
        hooks.append(metrics.count_request)
    if settings.log_requests:
        hooks.append(log_request)
    return hooks
