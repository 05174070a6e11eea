"""Fine-tuning on a GPU: mixed precision, compilation, memory that does not suffice, and going on with a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.training.tiny_training import check_it_is_read_back, config, put_colours
from tests.training.runs.test_resume import CutAt, cut_short
from tlcli.contract.errors import SettingsError
from tlcli.training import finetune, load_run, resume


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_colours(tmp_path_factory.mktemp("colours"))


@pytest.mark.parametrize("settings", [{}, {"amp": "off"}, {"ema": 0.9, "mixup": 0.2, "cutmix": 0.5}])
def test_it_learns(colours: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    result = finetune(config(colours, tmp_path / "run", mode="full", epochs=8, device="cuda", **settings))
    assert result.metrics["val_top1"] > 0.8
    check_it_is_read_back(result)


def test_a_compiled_network_learns_or_is_refused(colours: Path, tmp_path: Path) -> None:
    """PyTorch's compiled code may not expect the strides that cuDNN returns if features shrink to 1 x 1."""
    try:
        result = finetune(config(colours, tmp_path / "run", mode="full", epochs=8, device="cuda", compile=True))
    except SettingsError as error:
        assert "leave --compile out" in str(error)  # noqa: PT017
        pytest.xfail(str(error))
    assert result.metrics["val_top1"] > 0.8


def test_features_are_those_of_the_cpu(colours: Path, tmp_path: Path) -> None:
    """The head's training begins with the same features, and so ends about the same."""
    on_cpu, on_gpu = (finetune(config(colours, tmp_path / name, epochs=10, device=name)) for name in ("cpu", "cuda"))
    assert on_gpu.metrics["val_loss"] == pytest.approx(on_cpu.metrics["val_loss"], rel=0.02)


def test_a_batch_that_does_not_fit_is_divided(colours: Path, tmp_path: Path) -> None:
    """The first epoch finds out; the results are those of the whole batch, but for rounding."""
    settings: dict[str, Any] = {"mode": "full", "epochs": 2, "device": "cuda", "amp": "off", "batch_size": 36, "image_size": 256}
    settings |= {"backbone": "vgg11", "jitter": 0, "hflip": False, "crop_scale": 1.0}
    whole = finetune(config(colours, tmp_path / "whole", **settings))
    said: list[str] = []
    taken = torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.7 * taken)
    try:
        divided = finetune(config(colours, tmp_path / "divided", **settings), log=said.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("out of memory: each batch now runs in 2 micro-batches" in line for line in said), said
    assert divided.metrics["val_loss"] == pytest.approx(whole.metrics["val_loss"], rel=0.05)


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch's own switches: sums in a fixed order, which its defaults on a GPU do not promise."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_a_resumed_run_ends_as_the_whole_one(colours: Path, tmp_path: Path) -> None:
    """To the bit, once PyTorch sums in a fixed order: nothing of the state is lost."""
    asked = config(colours, tmp_path / "whole", mode="full", epochs=4, device="cuda", amp="off")
    whole = finetune(asked)
    path = cut_short(asked.model_copy(update={"output": tmp_path / "cut"}), CutAt(epoch=2))
    gone_on = resume(path)
    states = [load_run(run.path).network.state_dict() for run in (whole, gone_on)]
    for name, tensor in states[0].items():
        np.testing.assert_array_equal(states[1][name].numpy(), tensor.numpy(), err_msg=name)
