"""Waiting times: `tlcli --help`, the export of a ResNet-50 with every map, and a server with it until it reports SERVING.

    python benchmarks/waiting.py [--runs 5]

Prints the median and the range of each, in seconds, of a whole process seen from outside. The model has random weights.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tlcli.service import Client

TLCLI = [sys.executable, "-m", "tlcli"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        kept, spare = Path(folder, "kept"), Path(folder, "spare")
        report("tlcli --help", lambda: command_s([*TLCLI, "--help"]), runs)
        report("tlcli export --backbone resnet50", lambda: export_s(spare), runs)
        export_s(kept)  # once: a server starts with all versions that it finds
        report("server with ResNet-50, start to SERVING", lambda: ready_s(kept), runs)


def report(what: str, measure: Callable[[], float], runs: int) -> None:
    measure()  # the first one reads files from the disk
    times = [measure() for _ in range(runs)]
    print(f"{what}: {statistics.median(times):.2f} s (from {min(times):.2f} to {max(times):.2f}, {runs} runs)")


def command_s(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def export_s(models: Path) -> float:
    return command_s([*TLCLI, "export", "--backbone", "resnet50", "--weights", "none", "--models", str(models), "-q"])


def ready_s(models: Path) -> float:
    began = time.perf_counter()
    command = [*TLCLI, "serve", str(models), "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert server.stderr is not None
    try:
        port = next(int(found[1]) for line in server.stderr if (found := re.search(r"listening on \S+:(\d+)", line)))
        with Client("127.0.0.1", port) as client:
            client.wait_until_ready(timeout_s=60)
        return time.perf_counter() - began
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)


if __name__ == "__main__":
    main()
