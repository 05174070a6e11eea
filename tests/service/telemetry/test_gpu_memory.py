"""Tests of the GPU memory metrics: NVML's current values, and no metrics without NVML."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest

from tests.helpers.service.fake_nvml import GIB, FakeNvml
from tests.helpers.service.sample_images import RED, encode, scene
from tests.helpers.service.scraping import Samples, scrape, server_with_metrics, total, value
from tlcli.service import Client
from tlcli.service.telemetry.gpu_memory import GpuMemory, Nvml, open_gpus
from tlcli.service.telemetry.metrics import Metrics

USED, TOTAL = "tlcli_gpu_memory_used_bytes", "tlcli_gpu_memory_total_bytes"


@contextmanager
def metrics_of(nvml: Nvml) -> Iterator[int]:
    """Yield the port of metrics with these GPUs."""
    metrics = Metrics(on=True)
    metrics.watch_gpus(open_gpus(nvml))
    try:
        yield metrics.serve("127.0.0.1", 0)
    finally:
        metrics.close()


def names(found: Samples) -> set[str]:
    return {name for name, _ in found if "gpu" in name}


def test_each_scrape_tells_what_is_used_then() -> None:
    nvml = FakeNvml((3 * GIB, 80 * GIB), (0, 24 * GIB))
    with metrics_of(nvml) as port:
        found = scrape(port)
        assert value(found, USED, gpu="0", uuid="GPU-00000000") == 3 * GIB
        assert value(found, TOTAL, gpu="0", uuid="GPU-00000000") == 80 * GIB
        assert value(found, USED, gpu="1", uuid="GPU-00000001") == 0
        assert value(found, TOTAL, gpu="1", uuid="GPU-00000001") == 24 * GIB
        nvml.gpus[0] = (70 * GIB, 80 * GIB)
        assert value(scrape(port), USED, gpu="0", uuid="GPU-00000000") == 70 * GIB
        assert nvml.opened == 1
    assert nvml.opened == 0


def test_a_gpu_that_does_not_tell_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tlcli.service")
    with metrics_of(FakeNvml(None, (GIB, 2 * GIB))) as port:
        found = scrape(port)
    assert total(found, USED) == value(found, USED, gpu="1", uuid="GPU-00000001") == GIB
    assert total(found, TOTAL, gpu="0") == 0
    assert "GPU 0 does not report its memory: Insufficient Permissions" in caplog.text


def test_no_driver_no_metric_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tlcli.service")
    with metrics_of(FakeNvml(driver=False)) as port:
        assert not names(scrape(port))
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == [
        (logging.DEBUG, "no metrics of GPU memory: NVML: NVML Shared Library Not Found")
    ]


def test_without_the_library_no_metric_one_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    caplog.set_level(logging.DEBUG, "tlcli.service")
    assert open_gpus() is None
    (line,) = caplog.records
    assert line.getMessage() == "no metrics of GPU memory: nvidia-ml-py is not installed (pip install 'tlcli[gpu]')"


def test_nvidias_own_library_has_what_is_taken_of_it(caplog: pytest.LogCaptureFixture) -> None:
    """Check the library, which is installed in tests although the driver usually is not."""
    for name in [one for one in vars(Nvml) if one.startswith(("nvml", "NVML"))] + ["NVMLError"]:
        assert hasattr(pynvml, name), name
    caplog.set_level(logging.DEBUG, "tlcli.service")
    gpus = open_gpus()
    if gpus is None:
        assert caplog.text.count("no metrics of GPU memory: NVML: ") == 1
    else:
        assert all(0 <= one.used_bytes <= one.total_bytes for one in gpus.memory())
        gpus.close()


def test_what_nvidias_library_answers_is_read_as_it_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill NVML's `nvmlMemory_t` as pynvml does."""
    told = pynvml.c_nvmlMemory_t(total=80 * GIB, free=79 * GIB, used=GIB)
    nvml = FakeNvml((0, 0))
    monkeypatch.setattr(nvml, "nvmlDeviceGetMemoryInfo", lambda handle: told)
    gpus = open_gpus(nvml)
    assert gpus is not None
    assert list(gpus.memory()) == [GpuMemory("0", "GPU-00000000", GIB, 80 * GIB)]


def test_a_server_on_a_gpu_tells_and_one_on_a_cpu_does_not_ask(
    one_model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = FakeNvml((GIB, 8 * GIB))
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    with server_with_metrics(one_model, caplog, device="cpu") as (_, metrics_port):
        assert not names(scrape(metrics_port))
        assert nvml.opened == 0
    monkeypatch.setattr("tlcli.service.server.resolve_device", lambda device: "cuda")
    with server_with_metrics(one_model, caplog, device="cpu") as (port, metrics_port):
        with Client(port=port) as client:
            client.classify(encode(scene(RED, (30, 20, 90, 70)), "JPEG"))
        found = scrape(metrics_port)
        assert value(found, USED, gpu="0", uuid="GPU-00000000") == GIB
        assert total(found, "tlcli_requests_total") == 1
        nvml.opened = 0  # the driver goes: the GPUs go from the metrics, and all else stays
        found = scrape(metrics_port)
        assert not names(found)
        assert total(found, "tlcli_requests_total") == 1


def test_a_server_does_not_load_the_library_where_it_needs_none() -> None:
    code = "import sys, tlcli.service.server; tlcli.service.ServerSettings(metrics_port=0); print('pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
