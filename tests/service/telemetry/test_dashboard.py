"""Tests of the dashboard: a real Prometheus scrapes a real server and answers every query of every panel."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.helpers.service.fake_nvml import GIB, FakeNvml
from tests.helpers.service.sample_images import RED, encode, scene
from tests.helpers.service.scraping import scrape, server_with_metrics, total, value
from tlcli.contract.errors import OverloadedError, TlcliError
from tlcli.service import Client

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "deploy/compose/grafana/dashboards/tlcli.json").read_text(encoding="utf-8"))
PROMETHEUS = ROOT / "deploy/compose/prometheus.yml"
SOURCE = ROOT / "deploy/compose/grafana/datasources/prometheus.yml"
IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


@contextmanager
def busy_server(models: Path, caplog: pytest.LogCaptureFixture, patch: pytest.MonkeyPatch, held_up: threading.Event) -> Iterator[Any]:
    """Yield a server with a GPU and some requests, one of them rejected because the queue was full, and a function that sends another."""
    patch.setitem(sys.modules, "pynvml", FakeNvml((3 * GIB, 8 * GIB)))  # type: ignore[arg-type]
    patch.setattr("tlcli.service.server.resolve_device", lambda device: "cuda")
    with (
        server_with_metrics(models, caplog, device="cpu", max_batch_size=1, max_queue_size=1) as (port, metrics_port),
        Client(port=port, retries=0) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        held_up.clear()
        asked = []
        for waiting in (0, 1):
            asked.append(pool.submit(client.classify, IMAGE))
            while True:
                found = scrape(metrics_port)
                under_way, queue = value(found, "tlcli_requests_in_flight"), total(found, "tlcli_queue_length")
                if (under_way, queue) == (waiting + 1, waiting):
                    break
                time.sleep(0.02)
        with pytest.raises(OverloadedError):
            client.classify(IMAGE)
        held_up.set()
        assert all(one.result(10).predictions for one in asked)

        def ask() -> None:
            client.classify(IMAGE, cam="gradcam", map_format="overlay")
            with pytest.raises(TlcliError):
                client.classify(IMAGE, model="nosuch")

        yield metrics_port, ask


def test_every_metric_that_it_asks_for_is_exposed(
    one_model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, held_up: threading.Event
) -> None:
    with busy_server(one_model, caplog, monkeypatch, held_up) as (metrics_port, ask):
        ask()
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
            exposed = {line.split("{")[0].split(" ")[0] for line in answer.read().decode().splitlines() if not line.startswith("#")}
    (variable,) = DASHBOARD["templating"]["list"]
    texts = [expression for _, expression in QUERIES] + [variable["query"]["query"]]
    asked = {name for text in texts for name in re.findall(r"\b(?:tlcli|process)_\w+", text)}
    assert len(asked) > 15
    assert asked <= exposed, asked - exposed
    ours = {re.sub("_(bucket|sum|count)$", "", name) for name in exposed if name.startswith("tlcli_") and not name.endswith("_created")}
    assert ours == {re.sub("_(bucket|sum|count)$", "", name) for name in asked if name.startswith("tlcli_")}, "each has its place"


def test_it_is_what_grafana_reads() -> None:
    """Load the dashboard into Grafana's own types, which would drop unknown members."""
    plugins.register_default_plugins()

    def missing(mine: Any, read: Any, where: str) -> list[str]:
        if isinstance(mine, dict) and isinstance(read, dict):
            return [one for key in mine for one in missing(mine[key], read.get(key, "nothing"), f"{where}.{key}")]
        if isinstance(mine, list) and isinstance(read, list) and len(mine) == len(read):
            return [one for number, (a, b) in enumerate(zip(mine, read, strict=True)) for one in missing(a, b, f"{where}[{number}]")]
        return [] if mine == read else [f"{where}: {mine!r} was read as {read!r}"]

    def lost(dashboard: dict[str, Any]) -> list[str]:
        return missing(dashboard, json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard))), "")

    assert lost(DASHBOARD) == []
    assert lost(DASHBOARD | {"templates": {}}) == [".templates: {} was read as 'nothing'"]
    source = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))["datasources"][0]["uid"]
    sources = [panel["datasource"] for panel in DASHBOARD["panels"] if panel["type"] != "row"] + [
        target["datasource"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
    ]
    assert all(one == {"type": "prometheus", "uid": source} for one in sources)


def test_its_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.fixture
def programs() -> tuple[str, str]:
    """Return Prometheus and its tool, from Debian's package `prometheus`."""
    found = shutil.which("prometheus"), shutil.which("promtool")
    if found[0] is None or found[1] is None:
        problem = "no prometheus on PATH: apt-get install prometheus"
        if os.environ.get("TLCLI_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(problem)
        pytest.skip(problem)
    return found[0], found[1]


class Prometheus:
    """HTTP interface of a running Prometheus."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, **query: str) -> Any:
        with self._direct.open(f"{self._address}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            body = answer.read()
        return json.loads(body)["data"] if path.startswith("/api") else body

    def ask(self, query: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("/api/v1/query", query=query)["result"]
        return result

    def wait(self, query: str, expected: float) -> None:
        for _ in range(200):
            try:
                if [float(one["value"][1]) for one in self.ask(query)] == [expected]:
                    return
            except OSError:
                pass  # it starts
            time.sleep(0.05)
        raise AssertionError(f"{query}: {self.ask(query)} instead of {expected}; {self.get('/api/v1/targets')}")


@contextmanager
def scraping(programs: tuple[str, str], metrics_port: int, folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus with the settings of docker-compose, except for the server's address and the scrape interval."""
    settings = yaml.safe_load(PROMETHEUS.read_text(encoding="utf-8"))
    settings["global"] |= {"scrape_interval": "250ms", "scrape_timeout": "250ms"}
    settings["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{metrics_port}"]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "log").open("wb") as log:
        command = [programs[0], f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        assert process.wait(20) == 0, (folder / "log").read_text()


def test_prometheus_answers_every_query(
    one_model: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    held_up: threading.Event,
    programs: tuple[str, str],
    tmp_path: Path,
) -> None:
    with (
        busy_server(one_model, caplog, monkeypatch, held_up) as (metrics_port, ask),
        scraping(programs, metrics_port, tmp_path) as prometheus,
    ):
        prometheus.wait('up{job="tlcli"}', 1)
        prometheus.wait("sum(tlcli_requests_total)", 3)
        ask()
        prometheus.wait("sum(tlcli_requests_total)", 5)
        ask()
        prometheus.wait("sum(tlcli_requests_total)", 7)
        assert {one["metric"]["code"]: one["value"][1] for one in prometheus.ask("sum by (code) (tlcli_requests_total)")} == {
            "OK": "4",
            "RESOURCE_EXHAUSTED": "1",
            "NOT_FOUND": "2",
        }
        assert [float(one["value"][1]) for one in prometheus.ask("tlcli_gpu_memory_used_bytes / tlcli_gpu_memory_total_bytes")] == [3 / 8]
        assert set(prometheus.get("/api/v1/label/model/values", **{"match[]": "tlcli_requests_total"})) == {"toy", "unknown"}
        for title, expression in QUERIES:
            text = expression.replace("$__rate_interval", "1m").replace("$model", ".*")
            assert "$" not in text, f"{title}: {text}"
            answers = prometheus.ask(text)
            assert answers, f"{title}: nothing for {text}"
            assert all(one["value"][1] != "NaN" for one in answers), f"{title}: {answers}"


def test_prometheus_own_tools_approve(
    one_model: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    held_up: threading.Event,
    programs: tuple[str, str],
) -> None:
    """Check the settings, and the names, units and help of the metrics."""
    subprocess.run([programs[1], "check", "config", str(PROMETHEUS)], check=True, capture_output=True)
    with busy_server(one_model, caplog, monkeypatch, held_up) as (metrics_port, ask):
        ask()
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
            text = answer.read()
    checked = subprocess.run([programs[1], "check", "metrics"], input=text, capture_output=True)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
