"""The rooms and the one-way street between them, as docs/architecture.md draws them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "contract": set(),
    "service": {"contract"},
    "training": {"contract"},
    "evaluation": {"contract", "training"},
    "exports": {"contract", "training", "evaluation"},
    "tlcli": {"contract", "service", "training", "exports", "evaluation"},
    "deploy": {"contract", "service", "training", "exports", "evaluation", "tlcli"},
}
HEAVY = ("torch", "torchvision", "timm", "onnx", "onnxscript", "matplotlib")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        foreign = (imported(path) & ROOMS.keys()) - ROOMS[room] - {room}
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


@pytest.mark.parametrize("room", ["contract", "service"])
def test_the_server_needs_no_pytorch(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        assert imported(path).isdisjoint(HEAVY), path


@pytest.mark.parametrize("module", ["service", "contract.model", "tlcli.__main__"])
def test_importing_it_brings_in_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
