"""Test that the script for GPUs runs to its end, on a CPU: nobody should have to repair it while they have borrowed a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_it_measures_all_it_says() -> None:
    small = ["--device", "cpu", "--batch", "2", "--clients", "2", "--seconds", "0.01"]
    script = [sys.executable, "benchmarks/gpu.py", "test_resnet", *small]
    done = subprocess.run(script, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
    files = ["file, float32", "file, tf32", "file, float16"]
    assert rows.count("PyTorch eager, float16") == rows.count("file, float16") == 1
    assert {*files, "PyTorch eager, tf32", "PyTorch compiled, tf32", "PyTorch compiled, float16"} <= set(rows)
    assert ("failed" in done.stdout) == (shutil.which("g++") is None), "with which PyTorch compiles on a CPU"
    assert done.stdout.count("of the session's") == 2 * 2
    assert "first run of a new batch size" in done.stdout
