"""Server with metrics, and functions that scrape them."""

from __future__ import annotations

import logging
import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tlcli.service import ServerSettings, in_background

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@contextmanager
def server_with_metrics(models: Path, caplog: pytest.LogCaptureFixture, **settings: Any) -> Iterator[tuple[int, int]]:
    """Run a server, and yield its port and the port of its metrics, which is read from the log."""
    caplog.set_level(logging.INFO, "tlcli.service")
    caplog.clear()
    with in_background(ServerSettings(models=models, port=0, metrics_port=0, **settings)) as port:
        found = re.search(r"metrics at http://127\.0\.0\.1:(\d+)/metrics", caplog.text)
        assert found, caplog.text
        yield port, int(found[1])


def families(port: int) -> list[Metric]:
    """Scrape and parse the metrics whose names begin with `tlcli_`."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return [one for one in text_string_to_metric_families(text) if one.name.startswith("tlcli_")]


def scrape(port: int) -> Samples:
    """Scrape the values by name and labels."""
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for one in families(port) for sample in one.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def total(samples: Samples, name: str, **labels: str) -> float:
    """Return the sum of the values with these labels, among others."""
    return sum(number for (one, own), number in samples.items() if one == name and labels.items() <= dict(own).items())
