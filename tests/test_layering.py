"""The rooms and the one-way street between them, as docs/architecture.md draws them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tlcli"
ROOMS = {
    "contract": set(),
    "service": {"contract"},
    "training": {"contract"},
    "evaluation": {"contract", "training"},
    "exports": {"contract", "training", "evaluation"},
    "cli": {"contract", "service", "training", "exports", "evaluation"},
    "ray": {"contract", "service", "training", "exports", "evaluation", "cli"},
}
HEAVY = ("torch", "torchvision", "timm", "onnx", "onnxscript", "matplotlib")


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, at its top and in its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def rooms_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("tlcli.")} & ROOMS.keys()


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        foreign = rooms_of(imported(path)) - ROOMS[room] - {room}
        assert not foreign, f"{path.relative_to(PACKAGE)} imports {foreign}"


@pytest.mark.parametrize("room", ["contract", "service"])
def test_the_server_needs_no_pytorch(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        assert {name.split(".")[0] for name in imported(path)}.isdisjoint(HEAVY), path


@pytest.mark.parametrize("folder", [*ROOMS, "../tests", "../benchmarks", "../deploy"])
def test_everything_is_imported_below_one_name(folder: str) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        assert {name.split(".")[0] for name in imported(path)}.isdisjoint({"contract", "service", "training", "exports", "evaluation"}), (
            path
        )


@pytest.mark.parametrize("module", ["tlcli.service", "tlcli.contract.model.onnx_model", "tlcli.__main__"])
def test_importing_it_brings_in_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
