"""GPU memory metrics of a scrape."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import torch

from tests.helpers.service.server_process import server_process


def test_a_server_tells_of_the_gpu(models: Path) -> None:
    with server_process(models, device="cuda", metrics_port=0) as server:
        assert server.port
        (line,) = (line for line in server.log if "metrics at" in line)
        body = urllib.request.urlopen(line.split()[-1]).read().decode()
    told = {line.split("{")[0]: float(line.split()[-1]) for line in body.splitlines() if line.startswith("tlcli_gpu_memory")}
    whole = torch.cuda.get_device_properties(0).total_memory
    assert abs(told["tlcli_gpu_memory_total_bytes"] - whole) < 0.05 * whole
    assert 100e6 < told["tlcli_gpu_memory_used_bytes"] < told["tlcli_gpu_memory_total_bytes"]
