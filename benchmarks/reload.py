"""Effect of loads, unloads and swaps of versions on clients: the event loop's longest stall, latency, and failures. CPU.

    python benchmarks/reload.py FOLDER [--changes 50] [--clients 8] [--network resnet50]

Prints p50 and p99 of `--clients` closed-loop clients without changes and with them, the longest time in which the server's event loop
was blocked, the codes of all requests, and the server's anonymous memory after each tenth change. Two copies of a network with
random weights alternate as the latest version; every fifth change is an unload. FOLDER holds JPEG photographs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.overload import anonymous_bytes
from benchmarks.serving import ask, export
from tlcli.contract.images import decoding
from tlcli.service.pb.inference import open_inference_pb2 as pb

_TICK_S = 0.001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--changes", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    files = decoding.find([arguments.folder])[:100]
    with tempfile.TemporaryDirectory() as temporary:
        models = export(arguments.network, Path(temporary))
        first = next(models.rglob("model.onnx"))
        process = subprocess.Popen([sys.executable, __file__, "--serve", str(models)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        port = int(process.stdout.readline())
        still = ask(port, files, 10, clients=arguments.clients)
        stall_s = reset(process)
        print(f"no changes: p50 {still['p50_ms']:.0f}, p99 {still['p99_ms']:.0f} ms, longest stall {1000 * stall_s:.0f} ms")
        over = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            changing = pool.submit(change, port, first, arguments.changes, process, over)
            found = []
            while not over.is_set():
                found.append(ask(port, files, 10, clients=arguments.clients))
            seconds = changing.result()
        codes: dict[str, int] = {}
        for one in found:
            for code, count in one["codes"].items():
                codes[code] = codes.get(code, 0) + count
        p99_ms = max(one["p99_ms"] for one in found)
        print(f"{arguments.changes} changes in {seconds:.0f} s: p50 {found[0]['p50_ms']:.0f}, p99 {p99_ms:.0f} ms")
        print(f"longest stall {1000 * reset(process):.0f} ms; codes {json.dumps(codes)}")
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def change(port: int, first: Path, changes: int, process: subprocess.Popen[str], over: threading.Event) -> float:
    """Make the changes; return their seconds."""
    import grpc

    name, begun = first.parents[1].name, time.monotonic()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        load, unload = (channel.unary_unary(f"/inference.GRPCInferenceService/RepositoryModel{what}") for what in ("Load", "Unload"))
        for number in range(changes):
            if number % 5 == 4:
                unload(pb.RepositoryModelUnloadRequest(model_name=name).SerializeToString())
            else:
                fresh = first.parents[1] / str(number + 2) / "model.onnx"
                fresh.parent.mkdir()
                shutil.copy(first, fresh)
            load(pb.RepositoryModelLoadRequest(model_name=name).SerializeToString())
            if number % 10 == 0:
                print(f"  after change {number}: {anonymous_bytes(process) / 1e6:.0f} MB")
    over.set()
    return time.monotonic() - begun


def reset(process: subprocess.Popen[str]) -> float:
    """Return the longest stall since the last call, in seconds."""
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    return float(process.stdout.readline())


def serve_here(models: Path) -> None:
    """Run a server that watches its own event loop."""
    from tlcli.contract.process.malloc import return_freed_memory
    from tlcli.service import Server, ServerSettings

    async def run() -> None:
        loop, longest = asyncio.get_running_loop(), 0.0
        server = Server(ServerSettings(models=models, port=0, device="cpu", model_control="explicit", versions="latest"))

        def tell() -> None:
            nonlocal longest
            print(longest, flush=True)
            longest = 0.0

        async def watch() -> None:
            nonlocal longest
            while True:
                begun = loop.time()
                await asyncio.sleep(_TICK_S)
                longest = max(longest, loop.time() - begun - _TICK_S)

        loop.add_signal_handler(signal.SIGUSR1, tell)
        loop.add_signal_handler(signal.SIGTERM, server.request_stop)
        watching = asyncio.create_task(watch())
        await server.run(on_serving=lambda port: print(port, flush=True))
        watching.cancel()

    return_freed_memory()
    asyncio.run(run())


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve_here(Path(sys.argv[2]))
    else:
        main()
