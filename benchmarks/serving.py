"""Throughput and latency of the server against a bare loop over the same steps in one process, and against other servers. CPU.

    python benchmarks/serving.py FOLDER [--seconds 8] [--rounds 3] [--peers PYTHON] [NETWORK ...]

    bare         decode, resize and `session.run` in a loop, at the fastest batch size of 1, 2, 4, 8 and 16
    scores       tlcli's server, 16 closed-loop clients in another process
    maps         the same with raw Grad-CAM maps
    one client   the median latency of a single client, minus the bare loop's for one image

With --peers, LitServe and MLServer serve the same ONNX file with the same steps, each with the best of several settings (batches of 1, 8
and 16 images, one or two workers), over HTTP and gRPC. PYTHON is that of an environment with both, onnxruntime, pillow and pydantic,
and uvloop below 0.22, with which MLServer's workers start.

FOLDER holds JPEG photographs. Every round runs all of them one after the other; the figures are medians of the rounds' ratios to the bare
loop of the same round. The weights are random.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peers import running as peers_running
from tlcli.contract.images import decoding
from tlcli.contract.model.onnx_model import Model

NETWORKS = ("resnet50", "mobilenetv3_small_100")
CLIENTS = 16
BATCHES = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers")
    arguments = parser.parse_args()
    files = decoding.find([arguments.folder])[:200]
    print(f"{len(files)} photographs, {arguments.rounds} rounds of {arguments.seconds:g} s; {CLIENTS} clients")
    print("| network | bare loop, images/s (batch) | scores | maps | one client adds, ms | peers, scores |")
    print("|---|---|---|---|---|---|")
    for network in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            models = export(network, Path(folder))
            print(row(network, models, files, arguments.seconds, arguments.rounds, arguments.peers), flush=True)


def export(network: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "tlcli", "export", "--backbone", network, "--weights", "none", "--models", str(folder), "-q"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def row(network: str, models: Path, files: list[Path], seconds: float, rounds: int, python: str | None) -> str:
    model = next(models.rglob("model.onnx"))
    loop = BareLoop(model, files)
    data = [file.read_bytes() for file in files]
    best = max(BATCHES, key=lambda size: loop.throughput(size, seconds / 4))
    peers = best_peers(python, model, data, seconds / 2) if python else []
    bare, scores, maps, added = [], [], [], []
    others: dict[str, list[float]] = {}
    for _ in range(rounds):
        bare.append(loop.throughput(best, seconds))
        with server(models) as running:
            scores.append(ask(running.port, files, seconds, CLIENTS)["throughput"] / bare[-1])
            maps.append(ask(running.port, files, seconds, CLIENTS, method="gradcam")["throughput"] / bare[-1])
            added.append(ask(running.port, files, seconds / 2, 1)["p50_ms"] - loop.median_ms(seconds / 2))
        for peer in peers:
            with peers_running.running(peer, str(python), model) as port:
                ratio = peers_running.throughput(peer, port, data, seconds, CLIENTS) / bare[-1]
            others.setdefault(f"{peer.name} (batch {peer.batch}, {peer.workers} workers)", []).append(ratio)
    cells = [f"{statistics.median(bare):.1f} ({best})", *(f"{statistics.median(one):.3f}" for one in (scores, maps))]
    beside = ", ".join(f"{name} {statistics.median(ratios):.3f}" for name, ratios in others.items()) or "not measured"
    return f"| {network} | " + " | ".join([*cells, f"{statistics.median(added):.2f}", beside]) + " |"


def best_peers(python: str, model: Path, data: list[bytes], seconds: float) -> list[peers_running.Peer]:
    """Return, for each name, the settings with the highest throughput."""
    found: dict[str, tuple[float, peers_running.Peer]] = {}
    for peer in peers_running.CANDIDATES:
        with peers_running.running(peer, python, model) as port:
            one = (peers_running.throughput(peer, port, data, seconds, CLIENTS), peer)
        print(f"  {peer}: {one[0]:.1f} a second", file=sys.stderr)
        found[peer.name] = max(found.get(peer.name, one), one, key=lambda pair: pair[0])
    return [peer for _, peer in found.values()]


class BareLoop:
    """Loop that decodes, resizes and runs, and nothing else."""

    def __init__(self, model: Path, files: list[Path]) -> None:
        self._model = Model.open(model, device="cpu")
        self._data = [file.read_bytes() for file in files]

    def throughput(self, batch: int, seconds: float) -> float:
        """Return images/s."""
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            self._model.run(np.stack([self._input(done + number) for number in range(batch)]))
            done += batch
        return done / (time.perf_counter() - begun)

    def median_ms(self, seconds: float) -> float:
        """Return the median latency of one image in milliseconds."""
        times: list[float] = []
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            self._model.run(self._input(len(times))[None])
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1000

    def _input(self, number: int) -> np.ndarray:
        return self._model.description.preprocessing.apply(decoding.decode(self._data[number % len(self._data)]))


@dataclass(frozen=True)
class Running:
    """Server that is running."""

    process: subprocess.Popen[str]
    port: int


@contextmanager
def server(models: Path, *flags: str) -> Iterator[Running]:
    """Run `tlcli serve` in a process; the block begins when it serves."""
    command = [sys.executable, "-m", "tlcli", "serve", str(models), "--port", "0", "--device", "cpu", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = 0
        for line in process.stderr:
            if "listening on" in line:
                port = int(line.rsplit(":", 1)[1])
            if "serving " in line:
                break
        yield Running(process, port)
    finally:
        process.terminate()
        process.communicate(timeout=60)


def ask(
    port: int,
    files: list[Path],
    seconds: float,
    clients: int = 0,
    rate: float = 0.0,
    method: str = "",
    metadata: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Put a load on a server from a process of its own."""
    job = json.dumps(
        {
            "port": port,
            "files": list(map(str, files)),
            "seconds": seconds,
            "clients": clients,
            "rate": rate,
            "method": method,
            "metadata": [*metadata],
        }
    )
    answer = subprocess.run([sys.executable, str(Path(__file__)), "--ask"], input=job, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def ask_here() -> None:
    """Put the load on the server from this process."""
    import grpc.aio

    from tlcli.service.client.load_test import Load, Target, measure
    from tlcli.service.client.request_stream import with_image
    from tlcli.service.protocol.codec import write_request
    from tlcli.service.types.query import MapQuery, Query

    job = json.load(sys.stdin)
    wanted = MapQuery(job["method"]) if job["method"] else None
    messages = [write_request(with_image(Query(map=wanted), file)).SerializeToString() for file in job["files"]]

    async def run() -> None:
        metadata = [(name, value) for name, value in job["metadata"]]
        async with Target(lambda: grpc.aio.insecure_channel(f"127.0.0.1:{job['port']}"), messages, metadata=metadata) as target:
            measured = await measure(target, Load(job["clients"], job["rate"]), job["seconds"])
        refused = measured.refused_s or [float("nan")]
        found = {
            "throughput": measured.throughput,
            "p50_ms": measured.percentile_ms(50),
            "p99_ms": measured.percentile_ms(99),
            "refused_p50_ms": 1000 * float(np.percentile(refused, 50)),
            "refused_p99_ms": 1000 * float(np.percentile(refused, 99)),
            "codes": measured.codes,
        }
        json.dump(found, sys.stdout)

    asyncio.run(run())


if __name__ == "__main__":
    if sys.argv[1:] == ["--ask"]:
        ask_here()
    else:
        main()
