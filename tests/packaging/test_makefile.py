"""Tests of the Makefile: which Python it takes, and what it installs for what."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make") or "make"


def make(target: str, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `make` in a copy of the Makefile, with what `folder` holds as the path, and an empty home."""
    shutil.copy(ROOT / "Makefile", folder)
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
    (folder / "deploy").mkdir(exist_ok=True)
    (folder / "deploy/requirements.py").touch()
    command = [MAKE, "--no-print-directory", *arguments, target]
    variables = {"PATH": str(folder / "bin"), "HOME": str(folder / "home"), **environment}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=60)


def put_python(folder: Path, name: str, version: tuple[int, int] | None) -> None:
    """Write a stand-in for a Python of a version that answers the Makefile's question; with None, a shim that fails."""
    program = folder / name
    program.parent.mkdir(parents=True, exist_ok=True)
    code = 127 if version is None else int(not (3, 11) <= version <= (3, 14))
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("programs", "expected"),
    [
        ({"bin/python3.12": (3, 12)}, "python3.12"),
        ({"bin/python3.11": (3, 11), "bin/python3.14": (3, 14)}, "python3.11"),
        ({"bin/python3.11": None, "bin/python3.13": (3, 13)}, "python3.13"),
        ({"bin/python3": (3, 14)}, "python3"),
        ({"bin/python3": (3, 10), "home/.pyenv/versions/3.12.1/bin/python": (3, 12)}, "{home}/.pyenv/versions/3.12.1/bin/python"),
    ],
    ids=["3.12 alone", "the first", "a shim that fails", "python3", "below .pyenv"],
)
def test_make_finds_a_python_that_runs(programs: dict[str, tuple[int, int] | None], expected: str, tmp_path: Path) -> None:
    for name, version in programs.items():
        put_python(tmp_path, name, version)
    result = make("python", tmp_path)
    assert (result.returncode, result.stdout.strip()) == (0, expected.format(home=tmp_path / "home")), result.stderr


def test_without_a_python_make_says_which_versions_will_do(tmp_path: Path) -> None:
    put_python(tmp_path, "bin/python3", (3, 10))
    result = make("venv", tmp_path)
    assert result.returncode != 0
    assert "no Python 3.11 to 3.14 found" in result.stderr
    assert "make PYTHON=" in result.stderr


def test_a_python_can_be_named(tmp_path: Path) -> None:
    assert make("python", tmp_path, "PYTHON=/opt/python").stdout.strip() == "/opt/python"


def test_the_demo_says_its_size_and_leaves_the_developers_tools_out(tmp_path: Path) -> None:
    put_python(tmp_path, "bin/python3.13", (3, 13))
    commands = make("demo", tmp_path, "--dry-run").stdout
    assert re.search(r"echo .*about [\d.]+ GB.*minutes", commands)
    assert "requirements.py --cpu train" in commands
    assert "otel,dev" not in commands
    assert commands.rstrip().endswith(".venv-demo/bin/tlcli demo")


def test_the_demo_uses_the_developers_environment_where_it_is(tmp_path: Path) -> None:
    put_python(tmp_path, "bin/python3.13", (3, 13))
    make("python", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.ready").touch()
    assert make("demo", tmp_path, "--dry-run").stdout.rstrip().splitlines()[-1] == ".venv/bin/tlcli demo"


def test_every_target_is_documented() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    shown = set(re.findall(r'@echo "make ([\w-]+)', text))
    assert set(phony.split()) - shown == {"help", "venv", "kserve"}
