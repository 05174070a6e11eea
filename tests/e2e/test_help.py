"""The command line is quick, says what it has, and answers mistakes with one line."""

from __future__ import annotations

import importlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from tlcli.__main__ import COMMANDS


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tlcli", *arguments], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


@pytest.mark.alone
def test_help_takes_at_most_three_tenths_of_a_second() -> None:
    times = []
    for _ in range(5):
        began = time.perf_counter()
        assert run("--help").returncode == 0
        times.append(time.perf_counter() - began)
    assert statistics.median(times) <= 0.3, times


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_in_eighty_columns(name: str) -> None:
    answer = run(name, "--help", COLUMNS="80")
    assert answer.returncode == 0
    assert COMMANDS[name] in " ".join(answer.stdout.split())
    assert max(map(len, answer.stdout.splitlines())) <= 80


@pytest.mark.parametrize("name", ["finetune", "export"])
def test_options_stand_under_headings(name: str) -> None:
    command = importlib.import_module(f"tlcli.cli.commands.{name}").command
    parameters = [str(parameter.name) for parameter in command.params if isinstance(parameter, click.Option)]
    grouped = [parameter for names in command.groups.values() for parameter in names]
    assert sorted(grouped) == sorted(parameters)
    lines = run(name, "--help", COLUMNS="80").stdout.splitlines()
    headings = [line.rstrip(":") for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == [*command.groups, "Options"]
    if name == "finetune":
        assert headings[:5] == ["Data", "Network", "Training", "Augmentation", "Output"]


def test_one_thing_has_one_flag() -> None:
    """`--cam` for maps, `--cam-class` for classes, `--output` for results."""
    for name in COMMANDS:
        command = importlib.import_module(f"tlcli.cli.commands.{name.replace('-', '_')}").command
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert flags.isdisjoint({"--method", "--methods", "--out", "--overlays", "--plot", "--explain", "--output-dir"}), name
        assert name not in ("predict", "classify", "evaluate-cam", "bench", "export") or "--cam" in flags
        assert name not in ("predict", "classify", "evaluate-cam") or "--cam-class" in flags
        writes = ("finetune", "export", "predict", "classify", "visualize", "compare", "evaluate", "evaluate-cam", "bench", "demo")
        assert name not in writes or "--output" in flags, name


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["finetune", "--backbone", "resnet1"], 2, "unknown backbone 'resnet1'"),
        (["finetune", "--head", "mlp"], 2, "--head: unknown head 'mlp': expected linear, original or mlp:<hidden units>"),
        (["finetune", "--mean", "1,2"], 2, "expected one number, or three with commas"),
        (["finetune", "--dataset", "no-such-set", "--backbone", "resnet18", "--weights", "none"], 1, "no-such-set"),
        (["export"], 2, "nothing to export: give a run's folder, --backbone NAME"),
        (["export", "runs/x", "--mean", "0.5"], 2, "--mean: determined by the run"),
        (["export", "no-such-run"], 1, "no-such-run"),
        (["compare", "no-such-run", "no-such-run"], 1, "no-such-run: no such folder: give a run's folder"),
        (["predict", "no-such-model", "x.jpg"], 1, "no-such-model: no model found"),
        (["serve", "no-such-folder"], 1, "no-such-folder: no such folder"),
        (["models", "--models", "no-such-folder"], 1, "no-such-folder: no such folder"),
        (["backbones", "nothing-like-it"], 1, "no backbone matches 'nothing-like-it'"),
        (["classify", __file__, "--port", "1"], 1, "no server responds at 127.0.0.1:1"),
        (["classify", "no-such-image.jpg"], 1, "no-such-image.jpg: no such file or folder"),
    ],
)
def test_mistakes_get_one_line_and_an_exit_code(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    answer = run(*arguments)
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.returncode == code
