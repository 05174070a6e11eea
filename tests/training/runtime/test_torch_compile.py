"""Training with `--compile`, and error messages where compilation fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.helpers.training.tiny_training import check_it_is_read_back, config, put_colours
from tlcli.contract.errors import SettingsError
from tlcli.training import finetune, load_run
from tlcli.training.engine.step import StepOptions, Stepper

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch needs g++ to compile on a CPU")
def test_a_compiled_network_learns_the_same_weights(tmp_path: Path) -> None:
    colours = put_colours(tmp_path / "colours")
    settings = {"backbone": "lenet5", "mode": "full", "epochs": 4, "lr": 1e-2}
    plain = finetune(config(colours, tmp_path / "plain", **settings))
    counters.clear()
    compiled = finetune(config(colours, tmp_path / "compiled", compile=True, **settings))
    assert counters["stats"]["unique_graphs"] > 1, "the network, and the function that tests the compiler"
    assert plain.metrics["val_top1"] > 0.5
    check_it_is_read_back(compiled)
    states = [load_run(run.path).network.state_dict() for run in (plain, compiled)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        np.testing.assert_allclose(states[1][name].numpy(), tensor.numpy(), atol=1e-3, err_msg=name)


def test_a_missing_compiler_is_reported_before_any_file_is_written(tmp_path: Path) -> None:
    colours = put_colours(tmp_path / "colours", train=2, val=1, test=1)
    flags = ["--backbone", "lenet5", "--weights", "none", "--mode", "full", "--image-size", "32", "--compile", "--output", "run"]
    environment = {**os.environ, "CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "tlcli", "finetune", *flags, "--device", "cpu", "--dataset", str(colours)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == SettingsError.exit_code
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: --compile: PyTorch cannot compile on this machine (")
    assert line.endswith("): install a C++ compiler, such as Debian's g++, or leave --compile out")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_be_compiled_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    def fail(*_: object) -> None:
        raise BackendCompilerFailed(lambda: None, ValueError("no such thing\nand more"), None)

    model = nn.Linear(2, 2)
    steps = Stepper(model, torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(compiled=True))
    steps.begin()
    monkeypatch.setattr(steps, "_wrapped", fail)
    with pytest.raises(SettingsError, match=r"^--compile: this network cannot be compiled \(.*no such thing.*\): leave --compile out$"):
        steps.step(0, torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))


def test_unexpected_strides_in_compiled_code_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Includes the strides that cuDNN returns on a GPU for features of 1 x 1."""

    def fail(*_: object) -> None:
        raise AssertionError("expected size 96==96, stride 9==1 at dim=1\nError in op: convolution_backward")

    model = nn.Linear(2, 2)
    steps = Stepper(model, torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(compiled=True))
    steps.begin()
    monkeypatch.setattr(steps, "_wrapped", fail)
    with pytest.raises(SettingsError, match=r"^--compile: this network cannot be compiled \(expected size.*dim=1\): leave --compile out$"):
        steps.step(0, torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))
