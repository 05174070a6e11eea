"""Figures of a server at twice its capacity: what it still answers, how soon, and what it rejects. CPU.

    python benchmarks/overload.py FOLDER [--seconds 60] [--queue 16] [NETWORK ...]

    capacity     answers per second of 16 closed-loop clients
    p99 at 80 %  of an open loop (Poisson arrivals) at 0.8 of the capacity
    p99 at 200 % of answered requests of an open loop at twice the capacity; its ratio to the former
    refused      share of rejected requests, time to a rejection (median, p99), and the codes
    memory       anonymous memory of the server after the overload minus that before it

FOLDER holds JPEG photographs. The weights are random. The clients are a process of their own on the same cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving import ask, export, server
from tlcli.contract.images import decoding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("networks", nargs="*", default=["resnet50", "mobilenetv3_small_100"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--queue", type=int, default=16)
    arguments = parser.parse_args()
    files = decoding.find([arguments.folder])[:200]
    print(f"{len(files)} photographs, open loops of {arguments.seconds:g} s, at most {arguments.queue} images wait")
    print("| network | capacity, 1/s | p99 at 80 %, ms | p99 at 200 %, ms | ratio | refused | a refusal, ms | codes | memory, MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for network in arguments.networks:
        with (
            tempfile.TemporaryDirectory() as folder,
            server(export(network, Path(folder)), "--max-queue-size", str(arguments.queue)) as one,
        ):
            capacity = ask(one.port, files, 10, clients=16)["throughput"]
            eased = ask(one.port, files, arguments.seconds, rate=0.8 * capacity)
            before = anonymous_bytes(one.process)
            over = ask(one.port, files, arguments.seconds, rate=2 * capacity)
            grown = (anonymous_bytes(one.process) - before) / 1e6
        sent = sum(over["codes"].values())
        refused = f"{1 - over['codes'].get('OK', 0) / sent:.1%} | {over['refused_p50_ms']:.1f}, {over['refused_p99_ms']:.1f}"
        print(
            f"| {network} | {capacity:.1f} | {eased['p99_ms']:.0f} | {over['p99_ms']:.0f} | {over['p99_ms'] / eased['p99_ms']:.2f}"
            f" | {refused} | {json.dumps(over['codes'])} | {grown:.1f} |",
            flush=True,
        )


def anonymous_bytes(process: subprocess.Popen[str]) -> int:
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


if __name__ == "__main__":
    main()
