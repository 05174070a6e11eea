"""Fine-tuning that is killed at any moment, and gone on with, ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.forked_commands import forked_commands
from tests.helpers.training.tiny_training import BACKBONE, put_colours

KILLS = 20


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
    with forked_commands(tmp_path, {"TLCLI_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}) as commands:
        commands.run("finetune", *always, *flags, *common, "--output", str(tmp_path / "whole"))
        while killed < KILLS:
            begun = (run / "config.json").exists()
            arguments = ["--resume", str(run)] if begun else [*always, *flags, "--output", str(run)]
            process = commands.start(["finetune", *common, *arguments])
            torn += kill_when(process, run, draw, longest_s)
            status = commands.end()
            assert status in (0, -signal.SIGKILL), commands.output()
            killed += status != 0
            if (run / "results.json").exists():
                break
        assert killed >= KILLS
        commands.run("finetune", "--resume", str(run), *common)
    for name in ("checkpoint.safetensors", "metrics.csv", "predictions.csv", "split.json"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())
    if "full" in flags:
        assert torn >= 3  # some were killed in the middle of writing
