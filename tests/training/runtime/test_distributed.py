"""Distributed training: two processes train the same network as one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.training.tiny_training import config, put_colours
from tlcli.training import Callback, finetune, load_run

TRAIN = """
import json, os, sys
from pathlib import Path
import torch
from tests.helpers.training.tiny_training import config
from tlcli.training import Callback, finetune

class Note(Callback):
    def __init__(self):
        self.losses = []
    def on_step_end(self, number, loss):
        self.losses.append(loss)

data, output, settings, precision = sys.argv[1:]
torch.set_default_dtype(getattr(torch, precision))
note = Note()
said = []
finetune(config(Path(data), Path(output), **json.loads(settings)), callbacks=[note], log=said.append)
Path(output + f".{os.environ['RANK']}.json").write_text(json.dumps({"losses": note.losses, "said": said}))
"""


class Note(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step_end(self, number: int, loss: float) -> None:
        self.losses.append(loss)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_colours(tmp_path_factory.mktemp("colours"), train=16, val=5)


def of_two(data: Path, output: Path, precision: str = "float32", **settings: Any) -> list[dict[str, Any]]:
    """Train in two processes; return what each of them recorded."""
    script = output.with_suffix(".py")
    script.write_text(TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [*command, str(data), str(output), json.dumps(settings), precision],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ".", "OMP_NUM_THREADS": "1", "TLCLI_CACHE": str(output.parent / "cache")},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(Path(f"{output}.{rank}.json").read_text()) for rank in range(2)]


SGD = {"optimizer": "sgd", "schedule": "constant"}


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    torch.set_default_dtype(getattr(torch, request.param))
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("precision", "settings"),
    [
        ("float32", {**SGD, "backbone": "lenet5", "lr": 0.01}),
        ("float64", {}),
        ("float64", {**SGD, "lr": 1e-3, "class_weights": "balanced", "accumulate": 2, "batch_size": 4, "ema": 0.9, "epochs": 9}),
        ("float64", {**SGD, "backbone": "lenet5", "lr": 0.01, "sampler": "balanced", "loss": "focal"}),
    ],
    indirect=["precision"],
    ids=["sgd", "adamw", "weights, accumulated, averaged", "balanced, focal"],
)
def test_two_processes_have_the_losses_of_one(colours: Path, tmp_path: Path, settings: dict[str, Any], precision: str) -> None:
    """Includes batch norms, whose statistics must be those of the whole batch, and batches of odd size.

    With batch norms over seven images, and with AdamW, a difference in the last bit of float32 grows to another network within some
    twenty steps; these cases are compared in float64.
    """
    settings = {"mode": "full", "epochs": 8, "batch_size": 7, **settings}
    note = Note()
    alone = finetune(config(colours, tmp_path / "one", **settings), callbacks=[note])
    first, second = of_two(colours, tmp_path / "two", precision, **settings)
    assert len(note.losses) >= 50
    assert note.losses[0] - np.mean(note.losses[-7:]) > 0.05  # the network learns
    assert np.abs(np.array(first["losses"][:50]) - note.losses[:50]).max() < 1e-5
    assert second["losses"] == []  # only the first process reports
    assert second["said"] == []
    together = load_run(tmp_path / "two")
    for name, tensor in load_run(alone.path).network.state_dict().items():
        torch.testing.assert_close(together.network.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert together.metrics["test_loss"] == pytest.approx(alone.metrics["test_loss"], abs=1e-4)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread, as each of the two processes does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_feature_extraction_is_the_same_to_the_bit(colours: Path, tmp_path: Path) -> None:
    settings = {"epochs": 4, "head": "mlp:8"}
    alone = finetune(config(colours, tmp_path / "one", **settings))
    of_two(colours, tmp_path / "two", **settings)
    assert (tmp_path / "two" / "metrics.csv").read_text() == (alone.path / "metrics.csv").read_text()
    assert (tmp_path / "two" / "checkpoint.safetensors").read_bytes() == (alone.path / "checkpoint.safetensors").read_bytes()
