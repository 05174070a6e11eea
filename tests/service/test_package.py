"""Tests of the public names of the package."""

from __future__ import annotations

import subprocess
import sys

from tlcli import service


def test_the_list_of_public_names_is_true() -> None:
    assert service.__all__ == sorted(service.__all__, key=str)
    for name in service.__all__:
        assert getattr(service, name).__module__.split(".")[0] in ("tlcli", "typing", "types")


def test_importing_it_loads_no_heavy_library_and_no_runtime() -> None:
    heavy = ("torch", "torchvision", "timm", "onnx", "matplotlib", "onnxruntime")
    program = f"import sys, tlcli.service; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
