"""Throughput of the application on Ray against one `tlcli serve`, on the same cores. CPU.

    python benchmarks/ray_serving.py FOLDER [NETWORK ...] [--seconds 8] [--rounds 5] [--grpc]

    direct         `tlcli serve`, answers per second of 16 closed-loop clients in another process
    two replicas   of one core each behind one of Ray's proxies, relative to direct
    one replica    of two cores behind the same proxy, relative to direct
    one client     median latency: direct, and what Ray adds to it (one replica with as many threads)

With --grpc, Ray's proxies call replicas over gRPC instead of as actors. FOLDER holds JPEG photographs. All run at the same time, and
each round puts a load on one after the other; the figures are medians of the rounds' ratios and differences. The weights are random. Two
replicas on one machine have the cores that one server has: they can gain at most what one server leaves unused, minus what the proxy takes.
On two machines they would have twice the cores.
"""

from __future__ import annotations

import argparse
import copy
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving import ask, export, server
from tlcli.contract.images import decoding

CONFIG = Path(__file__).parents[1] / "deploy/ray/serve.yaml"
CLIENTS = 16
OVER_GRPC = {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1", "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**30)}
TWO, ONE = "two replicas of one core", "one replica of two cores"
DEPLOYED = {TWO: (2, 1), ONE: (1, 2)}
"""Replicas, and cores of each, by the application's name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="*", default=["resnet50", "mobilenetv3_small_100"])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--grpc", action="store_true")
    arguments = parser.parse_args()
    if arguments.grpc:
        os.environ |= OVER_GRPC
    files = decoding.find([arguments.folder])[:200]
    print(f"{len(files)} photographs, {arguments.rounds} rounds of {arguments.seconds:g} s; {CLIENTS} clients")
    print("| network | direct, images/s | two replicas | one replica | one client, direct, ms | Ray adds, ms |")
    print("|---|---|---|---|---|---|")
    for network in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            print(row(network, export(network, Path(folder)), files, arguments.seconds, arguments.rounds), flush=True)


def row(network: str, models: Path, files: list[Path], seconds: float, rounds: int) -> str:
    direct, alone, added = [], [], []
    ratios: dict[str, list[float]] = {name: [] for name in DEPLOYED}
    with server(models) as running, on_ray(models) as port:
        for _ in range(rounds):
            direct.append(ask(running.port, files, seconds, CLIENTS)["throughput"])
            for name, found in ratios.items():
                found.append(ask(port, files, seconds, CLIENTS, metadata=[("application", name)])["throughput"] / direct[-1])
            alone.append(ask(running.port, files, seconds / 2, 1)["p50_ms"])
            added.append(ask(port, files, seconds / 2, 1, metadata=[("application", ONE)])["p50_ms"] - alone[-1])
    cells = [f"{statistics.median(direct):.1f}", *(f"{statistics.median(one):.3f}" for one in ratios.values())]
    return f"| {network} | " + " | ".join([*cells, f"{statistics.median(alone):.1f}", f"{statistics.median(added):.1f}"]) + " |"


@contextmanager
def on_ray(models: Path) -> Iterator[int]:
    """Start a node of Ray with both applications and yield the port of its gRPC proxy."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(CONFIG.parents[2])}
    import ray
    from ray import serve
    from ray.serve.scripts import run

    config = configured(models)
    ray.init(num_cpus=4, object_store_memory=200_000_000, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        file = models / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        run.main([str(file), "--non-blocking"], standalone_mode=False)
        while not all(one.status.value == "RUNNING" for one in serve.status().applications.values()):
            time.sleep(0.2)
        yield config["grpc_options"]["port"]
        serve.shutdown()
    finally:
        ray.shutdown()


def configured(models: Path) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    for options in ("http_options", "grpc_options"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            config[options]["port"] = free.getsockname()[1]
    (application,) = config["applications"]
    config["applications"] = []
    for name, (replicas, cores) in DEPLOYED.items():
        one = copy.deepcopy(application)
        one |= {"name": name, "route_prefix": f"/{len(config['applications'])}"}
        one["args"] = {"models": str(models), "device": "cpu"}
        (deployment,) = one["deployments"]
        deployment["ray_actor_options"] = {"num_cpus": cores}
        deployment["autoscaling_config"] |= {"min_replicas": replicas, "max_replicas": replicas}
        config["applications"].append(one)
    return config


if __name__ == "__main__":
    main()
