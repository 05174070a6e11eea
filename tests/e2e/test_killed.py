"""Fine-tuning that is killed at any moment, and gone on with, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.training.tiny_training import BACKBONE, put_colours

KILLS = 20

SERVER = """
import json, os, sys
import tlcli.training.fine_tuning, tlcli.cli.commands.finetune, tlcli.__main__
for line in sys.stdin:
    arguments = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        sys.argv = ["tlcli", *arguments]
        code = 1
        try:
            tlcli.__main__.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""Starts the command line in a fork, so that twenty starts do not take twenty times PyTorch's seconds."""


class Starts:
    """Commands, each in a process of its own that can be killed."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server

    def start(self, *arguments: str) -> int:
        """Its process."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(arguments) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def ended(self) -> int:
        """Its exit status; less than 0 if a signal ended it."""
        assert self._server.stdout is not None
        return os.waitstatus_to_exitcode(int(self._server.stdout.readline()))


@contextmanager
def starts(home: Path) -> Iterator[Starts]:
    environment = {**os.environ, "TLCLI_CACHE": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    with (
        (home / "said").open("w") as said,
        subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
        ) as server,
    ):
        yield Starts(server)


def kill_when(process: int, run: Path, draw: np.random.Generator, longest_s: float) -> bool:
    """Kill it at a random time, or just while it writes a file; whether that was in the middle of writing."""
    ends = time.monotonic() + draw.uniform(0, longest_s)
    writing = draw.random() < 0.5
    while time.monotonic() < ends:
        time.sleep(0.0005)
    give_up = time.monotonic() + longest_s
    while writing and time.monotonic() < give_up:
        if any(run.glob(".resume.*")) or any(run.glob(".checkpoint.*")):
            break
    os.kill(process, signal.SIGKILL)
    return any(run.glob(".*.*"))


@pytest.mark.parametrize(
    ("flags", "longest_s"),
    [
        (["--mode", "full", "--weights", "none", "--epochs", "60", "--head", "mlp:512", "--ema", "0.9"], 0.9),
        (["--weights", "none", "--epochs", "30", "--head", "mlp:64"], 0.5),
    ],
    ids=["full", "feature-extraction"],
)
def test_killed_twenty_times_it_ends_the_same_to_the_bit(tmp_path: Path, flags: list[str], longest_s: float) -> None:
    data = put_colours(tmp_path / "data")
    always = [
        "--backbone",
        BACKBONE,
        "--dataset",
        str(data),
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--workers",
        "0",
        "--device",
        "cpu",
    ]
    common = ["--no-export", "--quiet"]
    draw = np.random.default_rng(0)
    run = tmp_path / "run"
    killed = torn = 0
    with starts(tmp_path) as processes:
        processes.start("finetune", *always, *flags, *common, "--output", str(tmp_path / "whole"))
        assert processes.ended() == 0, (tmp_path / "said").read_text()
        while killed < KILLS:
            begun = (run / "config.json").exists()
            process = processes.start("finetune", *common, *(["--resume", str(run)] if begun else [*always, *flags, "--output", str(run)]))
            torn += kill_when(process, run, draw, longest_s)
            status = processes.ended()
            assert status in (0, -signal.SIGKILL), (tmp_path / "said").read_text()
            killed += status != 0
            if (run / "results.json").exists():
                break
        assert killed >= KILLS
        processes.start("finetune", "--resume", str(run), *common)
        assert processes.ended() == 0, (tmp_path / "said").read_text()
    for name in ("checkpoint.safetensors", "metrics.csv", "predictions.csv", "split.json"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())
    if "full" in flags:
        assert torn >= 3  # some were killed in the middle of writing
