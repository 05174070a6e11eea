"""LitServe and MLServer as processes with a load on them: see `benchmarks/serving.py`."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from benchmarks.peers.asking import asking, multipart
from tlcli.service.client.load_test import Load, measure
from tlcli.service.pb.inference import open_inference_pb2 as pb

HERE = Path(__file__).parent
INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True)
class Peer:
    """Another server with its settings: images per batch, and worker processes."""

    name: str
    batch: int
    workers: int


CANDIDATES = (
    *(Peer("LitServe", batch, workers) for batch, workers in ((1, 1), (8, 1), (16, 1), (1, 2), (8, 2))),
    *(Peer("MLServer", batch, workers) for batch, workers in ((1, 0), (8, 0), (16, 0), (1, 2), (8, 2))),
)


@contextmanager
def running(peer: Peer, python: str, model: Path) -> Iterator[int]:
    """Start the server and yield its port when it answers."""
    ports = _free_ports(3)
    with tempfile.TemporaryDirectory() as folder:
        if peer.name == "LitServe":
            command = [python, str(HERE / "litserve_server.py"), str(model), str(ports[0]), str(peer.batch), str(peer.workers)]
        else:
            command = _mlserver(peer, python, model, Path(folder), ports)
        environment = {**os.environ, "PYTHONPATH": folder}
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            _wait_for(ports[0])
            yield ports[0]
        finally:
            os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)


def throughput(peer: Peer, port: int, images: Sequence[bytes], seconds: float, clients: int) -> float:
    """Return the answers per second of closed-loop clients in this process."""

    async def run() -> float:
        if peer.name == "LitServe":
            ask = asking(port, [multipart("/predict", "request", image) for image in images])
            return await _measured(ask, seconds, clients)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            return await _measured(_asking_mlserver(channel, images), seconds, clients)

    return asyncio.run(run())


async def _measured(ask: Callable[[int], Awaitable[str]], seconds: float, clients: int) -> float:
    for attempt in itertools.count():  # it listens before its model is there
        try:
            if await ask(0) == "OK":
                break
        except OSError:
            pass
        if attempt == 60:
            raise RuntimeError("the peer does not answer")
        await asyncio.sleep(0.5)
    measured = await measure(ask, Load(clients=clients), seconds)
    assert set(measured.codes) == {"OK"}, measured.codes
    return measured.throughput


def _asking_mlserver(channel: grpc.aio.Channel, images: Sequence[bytes]) -> Callable[[int], Awaitable[str]]:
    messages = []
    for image in images:
        request = pb.ModelInferRequest(model_name="model")
        tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(image)
        messages.append(request.SerializeToString())
    call = channel.unary_unary(INFER, None, None)

    async def ask(number: int) -> str:
        try:
            await call(messages[number % len(messages)])
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    return ask


def _mlserver(peer: Peer, python: str, model: Path, folder: Path, ports: Sequence[int]) -> list[str]:
    shutil.copy(HERE / "mlserver_runtime.py", folder)
    path = f"import sys; sys.path.insert(0, {str(HERE.parents[1])!r})\n"
    (folder / "sitecustomize.py").write_text(path)
    settings = {
        "grpc_port": ports[0],
        "http_port": ports[1],
        "metrics_port": ports[2],
        "host": "127.0.0.1",
        "parallel_workers": peer.workers,
    }
    (folder / "settings.json").write_text(json.dumps({**settings, "debug": False}))
    description = {"name": "model", "implementation": "mlserver_runtime.Scores", "parameters": {"uri": str(model)}}
    batching = {"max_batch_size": peer.batch, "max_batch_time": 0.002} if peer.batch > 1 else {}
    (folder / "model-settings.json").write_text(json.dumps({**description, **batching}))
    return [str(Path(python).parent / "mlserver"), "start", str(folder)]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_for(port: int) -> None:
    for _ in range(240):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.25)
    raise RuntimeError("the peer does not listen")
