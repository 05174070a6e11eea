"""Tests of the documentation site: it builds without a warning, from pages whose names, links, commands and figures are right."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from tlcli.__main__ import cli

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
README = ROOT / "README.md"
PROSE = [README, ROOT / "CONTRIBUTING.md", *PAGES]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
HISTORY = ("log.md",)
"""Pages that name files as they were called at the time."""


def blocks(page: Path, language: str) -> list[str]:
    return [match[2] for match in BLOCK.finditer(page.read_text(encoding="utf-8")) if match[1] == language]


def lines_of(page: Path) -> list[str]:
    """Return the commands of a page, lines that continue joined."""
    return [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines() if line.strip()]


COMMANDS = [(page.name, line) for page in PROSE for line in lines_of(page) if re.match(r"tlcli [a-z]", line)]
INSTALLS = [(page.name, line) for page in PROSE for line in lines_of(page) if line.startswith("pip install")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """Build the site as `make docs` does, in a copy."""
    copy = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, copy / "docs", ignore=shutil.ignore_patterns("reference", "__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", copy)
    generate = [sys.executable, str(DOCS / "generate_reference.py"), str(copy / "docs/reference")]
    subprocess.run(generate, check=True, timeout=180)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=copy, env=quiet, capture_output=True, text=True, check=False, timeout=180)


def site_of(built: subprocess.CompletedProcess[str]) -> Path:
    (folder,) = re.findall(r"Building documentation to directory: (\S+)", built.stderr)
    return Path(folder)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(built: subprocess.CompletedProcess[str]) -> None:
    """`--strict` fails on links, anchors and pages that are missing from the navigation, too."""
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr


@pytest.mark.slow
def test_the_reference_names_every_command_setting_method_and_path(built: subprocess.CompletedProcess[str]) -> None:
    reference = site_of(built) / "reference"
    commands, settings, wire, http, python = (
        (reference / f"{name}.html").read_text(encoding="utf-8") for name in ("cli", "settings", "wire", "http", "python")
    )
    with click.Context(cli) as context:
        names = cli.list_commands(context)
    assert all(f"tlcli {name}" in commands for name in names)
    assert all(name in settings for name in ("max_batch_size", "tls_certificate", "metrics_port"))
    assert all(name in wire for name in ("ClassifyStream", "ModelInfer", "RepositoryModelLoad"))
    assert all(path in http for path in ("/v1/classify", "/v2/health/ready", "/v2/models/{name}/infer"))
    assert all(name in python for name in ("tlcli.service.Client", "tlcli.training.finetune", "tlcli.exports.export_run"))


@pytest.mark.parametrize("page", [README, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_of_pages_outside_of_the_site_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("page", [page for page in PROSE if page.name not in HISTORY], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Paths in the repository, in backticks: modules, scripts, tests, manifests."""
    tops = "|".join(("service", "training", "exports", "tlcli", "tests", "benchmarks", "deploy", "proto"))
    for path in re.findall(rf"`((?:{tops})/[\w./-]+\.(?:py|proto|yml|yaml|sh))`", page.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_python_in_a_page_is_valid(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line}" for page, line in COMMANDS])
def test_a_command_in_a_page_exists_with_its_options(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    words = words[: next((index for index, word in enumerate(words) if word in (">", "|", "&&", "||")), len(words))]
    with click.Context(cli) as context:
        command = cli.get_command(context, words[0])
        assert command is not None, words[0]
        known = {name for parameter in command.get_params(context) for name in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-z]", word)}
    assert given <= known, f"{page}: {sorted(given - known)}"


@pytest.mark.parametrize(("page", "line"), INSTALLS, ids=[f"{page}: {line}" for page, line in INSTALLS])
def test_an_installation_names_extras_that_exist(page: str, line: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for named in re.findall(r"(?:tlcli|\.)\[([\w,]+)\]", line):
        assert set(named.split(",")) <= extras.keys(), f"{page}: {line}"


def test_the_installation_page_explains_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"^\| `(\w+)` \|", (DOCS / "install.md").read_text(encoding="utf-8"), re.MULTILINE)) == extras.keys()


@pytest.mark.parametrize("page", [README, DOCS / "benchmarks.md"], ids=lambda page: page.name)
def test_a_table_of_figures_has_one_number_a_cell(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---")]
    cells = [cell.strip() for row in rows for cell in row.strip("|").split("|")[1:]]
    assert len(cells) > 5
    assert not [cell for cell in cells if re.search(r"\d[^`]*[;,] \d", cell)]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 900


def test_every_picture_has_a_description() -> None:
    for page in PROSE:
        for description, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert len(description.split()) >= 4, (page.name, target)
