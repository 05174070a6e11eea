"""A server's throughput and latency against a bare loop over the same steps in one process, and beside other servers. CPU.

    python benchmarks/serving.py FOLDER [--seconds 8] [--rounds 3] [--peers] [NETWORK ...]

    bare         decode, resize and `session.run` in a loop, at the batch size that is fastest of 1, 2, 4, 8 and 16
    scores       tlcli's server, 16 closed-loop clients in another process
    maps         the same with raw Grad-CAM maps
    one client   what a single client's median latency adds to the bare loop's for one picture

With --peers, LitServe and MLServer serve the same ONNX file with the same steps, over HTTP and gRPC, at the best of their settings
(they are not dependencies of the project: `pip install litserve mlserver`). FOLDER holds JPEG photographs. Every round runs all of them
one after the other; medians of the rounds' ratios to the bare loop of the same round. Random weights.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from contract import pictures
from contract.model import Model

NETWORKS = ("resnet50", "mobilenetv3_small_100")
CLIENTS = 16
BATCHES = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    files = pictures.find([arguments.folder])[:200]
    print(f"{len(files)} photographs, {arguments.rounds} rounds of {arguments.seconds:g} s; {CLIENTS} clients")
    print("| network | bare loop, pictures/s (batch) | scores | maps | one client adds, ms |")
    print("|---|---|---|---|---|")
    for network in arguments.networks:
        with tempfile.TemporaryDirectory() as folder:
            models = export(network, Path(folder))
            print(row(network, models, files, arguments.seconds, arguments.rounds), flush=True)


def export(network: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "tlcli", "export", "--backbone", network, "--weights", "none", "--models", str(folder), "-q"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def row(network: str, models: Path, files: list[Path], seconds: float, rounds: int) -> str:
    loop = BareLoop(next(models.rglob("model.onnx")), files)
    best = max(BATCHES, key=lambda size: loop.throughput(size, seconds / 4))
    bare, scores, maps, added = [], [], [], []
    with server(models) as port:
        for _ in range(rounds):
            bare.append(loop.throughput(best, seconds))
            scores.append(ask(port, files, seconds, CLIENTS)["throughput"] / bare[-1])
            maps.append(ask(port, files, seconds, CLIENTS, "gradcam")["throughput"] / bare[-1])
            added.append(ask(port, files, seconds / 2, 1)["p50_ms"] - loop.median_ms(seconds / 2))
    cells = [f"{statistics.median(bare):.1f} ({best})", *(f"{statistics.median(one):.3f}" for one in (scores, maps))]
    return f"| {network} | " + " | ".join([*cells, f"{statistics.median(added):.2f}"]) + " |"


class BareLoop:
    """Decode, resize, run; nothing else."""

    def __init__(self, model: Path, files: list[Path]) -> None:
        self._model = Model.open(model, device="cpu")
        self._data = [file.read_bytes() for file in files]

    def throughput(self, batch: int, seconds: float) -> float:
        """Pictures a second."""
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            self._model.run(np.stack([self._input(done + number) for number in range(batch)]))
            done += batch
        return done / (time.perf_counter() - begun)

    def median_ms(self, seconds: float) -> float:
        """Of one picture."""
        times: list[float] = []
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            self._model.run(self._input(len(times))[None])
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1000

    def _input(self, number: int) -> np.ndarray:
        return self._model.description.preprocessing.apply(pictures.decode(self._data[number % len(self._data)]))


@contextmanager
def server(models: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "tlcli", "serve", str(models), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = 0
        for line in process.stderr:
            if "listening on" in line:
                port = int(line.rsplit(":", 1)[1])
            if "serving " in line:
                break
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=60)


def ask(port: int, files: list[Path], seconds: float, clients: int, method: str = "") -> dict[str, float]:
    """From a process of its own."""
    job = json.dumps({"port": port, "files": list(map(str, files)), "seconds": seconds, "clients": clients, "method": method})
    answer = subprocess.run([sys.executable, __file__, "--ask"], input=job, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def ask_here() -> None:
    import grpc.aio

    from service.load import Load, Target, measure
    from service.outgoing import with_picture
    from service.query import MapQuery, Query
    from service.wire import write_request

    job = json.load(sys.stdin)
    wanted = MapQuery(job["method"]) if job["method"] else None
    messages = [write_request(with_picture(Query(map=wanted), file)).SerializeToString() for file in job["files"]]

    async def run() -> None:
        async with Target(lambda: grpc.aio.insecure_channel(f"127.0.0.1:{job['port']}"), messages) as target:
            measured = await measure(target, Load(clients=job["clients"]), job["seconds"])
            assert set(measured.codes) == {"OK"}, measured.codes
            json.dump({"throughput": measured.throughput, "p50_ms": measured.percentile_ms(50)}, sys.stdout)

    asyncio.run(run())


if __name__ == "__main__":
    if sys.argv[1:] == ["--ask"]:
        ask_here()
    else:
        main()
