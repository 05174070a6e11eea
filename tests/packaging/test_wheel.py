"""Tests of the wheel and the source distribution: they hold `tlcli` alone, and work where other packages have the folders' names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt")
FOLDERS = ("tlcli", "service", "training", "exports", "proto", "tests", "deploy", "benchmarks")
SHADOWS = ("service", "training", "contract", "exports", "evaluation", "deploy", "proto", "cli", "ray", "tests")
"""Top-level packages of a user's own project, named like folders of this one."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository, so that a build leaves nothing in it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(checkout, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def source(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=checkout, check=True, capture_output=True, timeout=120)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which pip has installed the wheel."""
    target = tmp_path_factory.mktemp("site-packages")
    pip("install", "--no-deps", "--no-index", "--target", str(target), str(wheel))
    return target


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose own packages fail loudly when something imports them in place of ours."""
    project = tmp_path_factory.mktemp("project")
    for name in SHADOWS:
        (project / name).mkdir()
        (project / name / "__init__.py").write_text(f"raise AssertionError('imported the project\\'s own {name}')\n")
    return project


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True, capture_output=True, timeout=120)


def build_wheel(source: Path, folder: Path) -> Path:
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    (wheel,) = folder.glob("*.whl")
    return wheel


def files_of(wheel: Path) -> set[str]:
    """Return the names of a wheel's files, without its metadata."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def files_below(folder: Path) -> set[str]:
    """Return the files of a package, those behind links to folders included."""
    return {
        (Path(parent) / name).relative_to(folder.parent).as_posix()
        for parent, _, names in os.walk(folder, followlinks=True)
        if "__pycache__" not in parent
        for name in names
    }


def run(arguments: Iterable[str], project: Path, installed: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run([*arguments], cwd=project, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    files = files_of(wheel)
    assert files == files_below(ROOT / "tlcli")
    assert {name.split("/")[0] for name in files} == {"tlcli"}
    assert "tlcli/py.typed" in files
    assert "tlcli/service/pb/inference/open_inference.binpb" in files
    assert "tlcli/training/reports/html/__init__.py" in files
    assert not any({"test", "tests"} & set(Path(name).parts) for name in files)


def test_a_source_distribution_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(source) as archive:
        assert {Path(name).parts[1] for name in archive.getnames() if "/" in name}.isdisjoint({"tests", "benchmarks", "deploy"})
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert files_of(build_wheel(unpacked, tmp_path / "wheel")) == files_of(wheel)


def test_the_client_is_imported_beside_a_project_s_own_service(project: Path, installed: Path) -> None:
    code = "import tlcli, tlcli.service; from tlcli.service import Client; print(tlcli.service.__file__, Client.__name__)"
    assert run([sys.executable, "-c", code], project, installed).split() == [str(installed / "tlcli/service/__init__.py"), "Client"]


def test_the_command_runs_beside_a_project_s_own_packages(project: Path, installed: Path) -> None:
    assert "finetune" in run([str(installed / "bin/tlcli"), "--help"], project, installed)


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("backbones", "resnet18"), ("finetune", "--help"), ("serve", "--print-config"), ("export", "--help")],
    ids=" ".join,
)
def test_python_m_runs_beside_a_project_s_own_packages(arguments: tuple[str, ...], project: Path, installed: Path) -> None:
    """In a project's folder, which `python -m` puts first on the path."""
    assert run([sys.executable, "-m", "tlcli", *arguments], project, installed)


def test_torchrun_runs_beside_a_project_s_own_packages(project: Path, installed: Path) -> None:
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "1"]
    assert "finetune" in run([*torchrun, "-m", "tlcli", "--help"], project, installed)
