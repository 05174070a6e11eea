"""The Dockerfile installs what pyproject.toml requires and constraints.txt pins. `make container-check` builds and runs it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINNED = {
    re.sub("[-_.]+", "-", line.split("==")[0]).lower()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
}


def folders() -> list[str]:
    """Return the package's folder, and the folders that its links point to."""
    (package,) = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    root = ROOT / package.removesuffix("*")
    return sorted([root.name, *(link.resolve().name for link in root.iterdir() if link.is_symlink())])


def printed(*arguments: str) -> list[str]:
    command = [sys.executable, "deploy/requirements.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def test_every_package_of_the_project_comes_in() -> None:
    stage = DOCKERFILE.partition("AS project\n")[2].partition("\nFROM ")[0]
    copied = re.findall(r"^COPY (\w+) (\w+)$", stage, re.MULTILINE)
    assert sorted(copied) == [(folder, folder) for folder in folders()]
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    lines = [line for line in kept if not line.startswith("#")]
    assert lines[0] == "*"
    sources = {source for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()}
    assert {line.removeprefix("!") for line in lines[1:] if line.startswith("!")} == sources


def test_the_packages_are_those_of_pyproject_and_pinned() -> None:
    assert printed() == PROJECT["project"]["dependencies"]
    extras = PROJECT["project"]["optional-dependencies"]
    for used in (["otel"], ["gpu", "otel"], ["gpu", "otel", "tensorboard", "train"]):
        asked = printed(*used)
        assert asked == [*PROJECT["project"]["dependencies"], *(one for extra in used for one in extras[extra])]
        names = {re.sub("[-_.]+", "-", re.match(r"[\w.-]+", one)[0]).lower() for one in asked}  # type: ignore[index]
        assert names <= PINNED, names - PINNED
    with_cpu = printed("--cpu", "otel")
    assert not any("onnxruntime-gpu" in one for one in with_cpu)
    assert len(with_cpu) == len(printed("otel"))
    assert "onnxruntime" in PINNED


def test_an_extra_that_is_none_ends_the_build() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        printed("gpus")


def test_nobodys_rights_and_a_base_of_ones_own() -> None:
    assert re.search(r"^ARG PYTHON_IMAGE=\S+:3\.11\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+) AS", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}", "build", "base"}
    for stage in ("train", "serve"):
        body = DOCKERFILE.partition(f"AS {stage}\n")[2].partition("\nFROM ")[0]
        assert re.search(r"^USER 10001:10001$", body, re.MULTILINE), stage
        assert "train-packages" not in body or stage == "train"
    assert re.findall(r"^HEALTHCHECK .*CMD (.+)$", DOCKERFILE, re.MULTILINE) == ['["tlcli", "health"]']
