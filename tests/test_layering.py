"""The rooms and the one-way street between them, as docs/architecture.md draws them."""

from __future__ import annotations

import ast
import re
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
SUBFOLDERS: dict[str, dict[str, set[str]]] = {
    "contract": {
        "process": set(),
        "files": set(),
        "images": {"files"},
        "maps": {"images"},
        "model": {"files", "images", "maps", "process"},
    },
    "training": {
        "metrics": set(),
        "models.zoo": set(),
        "runtime": set(),
        "settings": set(),
        "data.label_files": {"runtime", "settings"},
        "data.drawing": set(),
        "data": {"data.drawing", "data.label_files", "runtime", "settings"},
        "models": {"models.zoo", "runtime", "settings"},
        "features": {"data", "models", "runtime", "settings"},
        "engine": {"data", "metrics", "models", "runtime", "settings"},
        "runs": {"data", "data.label_files", "engine", "metrics", "models", "runtime", "settings"},
        "reports": {"data", "engine", "features", "metrics", "models", "runs", "settings"},
        "reports.html": {"engine", "metrics", "reports", "runs", "settings"},
        "visualize": {"models", "settings"},
    },
    "service": {
        "system": set(),
        "types": set(),
        "protocol": {"types"},
        "security": {"system"},
        "telemetry": {"protocol", "system"},
        "client": {"protocol", "security", "system", "types"},
        "execution": {"system", "telemetry"},
        "decoding": {"execution", "system"},
        "repository": {"execution", "system", "telemetry", "types"},
        "settings": {"repository", "system", "telemetry"},
        "inference": {"decoding", "execution", "repository", "settings", "system", "telemetry", "types"},
        "rest": {"decoding", "inference", "repository", "security", "system", "telemetry", "types"},
        "rpc": {"decoding", "inference", "protocol", "repository", "security", "settings", "system", "telemetry", "types"},
    },
    "evaluation": {"cleaning": set()},
    "exports": {
        "rewrite": set(),
        "trace": {"rewrite"},
        "precision": {"rewrite"},
        "onnx_source.graph": {"rewrite"},
        "onnx_source.gradients": {"onnx_source.graph", "rewrite"},
        "onnx_source": {"onnx_source.gradients", "onnx_source.graph", "rewrite"},
    },
}
"""What each subfolder of a room may import of the room's others; modules at the top of a room may import all of them."""
OPEN_TO_ALL = ("errors", "pb")
"""`contract.errors`, and the generated messages."""

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


@pytest.mark.parametrize(("room", "subfolder"), [(room, subfolder) for room, rows in SUBFOLDERS.items() for subfolder in rows])
def test_subfolders_import_one_way(room: str, subfolder: str) -> None:
    rows = SUBFOLDERS[room]
    files = sorted((PACKAGE / room / subfolder.replace(".", "/")).glob("*.py"))
    assert files
    for path in files:
        names = {name.removeprefix(f"tlcli.{room}.") for name in imported(path) if name.startswith(f"tlcli.{room}.")}
        names = {name for name in names if name.split(".")[0] not in OPEN_TO_ALL}
        used = {max((row for row in rows if f"{name}.".startswith(f"{row}.")), key=len, default="the top") for name in names}
        foreign = used - rows[subfolder] - {subfolder}
        assert not foreign, f"{path.relative_to(PACKAGE)} imports {foreign}"


def test_subfolders_have_no_cycle() -> None:
    for rows in SUBFOLDERS.values():
        seen: set[str] = set()
        while rows.keys() - seen:
            free = {name for name in rows.keys() - seen if rows[name] <= seen}
            assert free, rows.keys() - seen
            seen |= free


def test_every_subfolder_has_a_row_and_says_what_it_holds() -> None:
    for room, rows in SUBFOLDERS.items():
        found = {path.parent.relative_to(PACKAGE / room).as_posix().replace("/", ".") for path in (PACKAGE / room).glob("*/**/__init__.py")}
        assert {name for name in found if not name.startswith("pb")} == rows.keys()
        for name in rows:
            text = (PACKAGE / room / name.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
            assert ast.get_docstring(ast.parse(text)), name


def test_no_folder_has_more_than_twenty_modules() -> None:
    for room in ROOMS:
        for folder in {path.parent for path in (PACKAGE / room).rglob("*.py")}:
            assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 20, folder


def test_the_architecture_names_files_that_exist() -> None:
    root = PACKAGE.parent
    names = re.findall(r"`((?:service|training|exports|tlcli|tests)/[\w/.]+)`", (root / "docs/architecture.md").read_text(encoding="utf-8"))
    assert len(names) > 50
    assert [name for name in names if not (root / name).exists()] == []


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
