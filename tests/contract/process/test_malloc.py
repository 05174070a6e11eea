"""Freed memory is reused without page faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource
import torch
from tlcli.contract.process.malloc import keep_freed_memory

if {keep}:
    keep_freed_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**26)  # 256 MB, or 128 huge pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's alone")
def test_large_tensors_are_made_of_pages_that_are_there() -> None:
    assert 10 * faults(keep=True) < faults(keep=False)


def faults(keep: bool) -> int:
    command = [sys.executable, "-c", CODE.format(keep=keep)]
    return int(subprocess.run(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True, check=True).stdout)
