"""An interrupted run resumes, and ends as if it had not been interrupted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.helpers.training.tiny_training import config, put_colours, put_image_of
from tlcli.contract.errors import DatasetError, NotFoundError, SettingsError, WeightsError
from tlcli.training import Callback, RunResult, finetune, load_run, resume
from tlcli.training.metrics.scores import EpochRow
from tlcli.training.models.weights import load_backbone
from tlcli.training.runs.run_folder import RunFolder
from tlcli.training.settings.config import FinetuneConfig

pytestmark = pytest.mark.usefixtures("blank_figures")


class CutError(Exception):
    """The run is interrupted."""


class CutAt(Callback):
    """Callback that interrupts a run after a step or an epoch."""

    def __init__(self, step: int | None = None, epoch: int | None = None) -> None:
        self._step, self._epoch = step, epoch

    def on_step_end(self, number: int, loss: float) -> None:
        if number == self._step:
            raise CutError

    def on_epoch_end(self, row: EpochRow, is_best: bool) -> None:
        if row.epoch == self._epoch:
            raise CutError


class Begun(Callback):
    """Callback that records the folders of the runs that start."""

    def __init__(self) -> None:
        self.folders: list[Path] = []

    def on_run_start(self, folder: Path) -> None:
        self.folders.append(folder)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_colours(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, colours: Path) -> str:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    safetensors.torch.save_file(load_backbone(config(colours))[0].state_dict(), path)
    return str(path)


def cut_short(asked: FinetuneConfig, at: CutAt) -> Path:
    with pytest.raises(CutError):
        finetune(asked, callbacks=[at])
    assert asked.output is not None
    assert not (asked.output / "results.json").exists()
    return asked.output


def left_by(path: Path) -> dict[str, bytes]:
    """Return the files that must be identical, byte for byte."""
    return {name: (path / name).read_bytes() for name in ("checkpoint.safetensors", "metrics.csv", "predictions.csv", "split.json")}


EVERYTHING: list[dict[str, Any]] = [
    {},
    {"optimizer": "sgd", "schedule": "constant", "accumulate": 2},
    {"optimizer": "rmsprop", "lr": 1e-4, "class_weights": "balanced"},
    {"optimizer": "adam", "ema": 0.9},
    {"sampler": "balanced", "loss": "focal", "label_smoothing": 0.1},
    {"head": "mlp:8", "mixup": 0.2, "cutmix": 0.5, "rand_augment": 5, "random_erasing": 0.3, "shear": 5, "zoom": 0.1},
]


@pytest.mark.parametrize("settings", EVERYTHING, ids=["default", "sgd", "rmsprop", "ema", "balanced", "mixed"])
def test_a_run_interrupted_anywhere_ends_bitwise_identical(colours: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Four epochs of five or three steps, interrupted in the first step, within an epoch, after an epoch, and twice."""
    asked = config(colours, tmp_path / "whole", mode="full", epochs=4, **settings)
    whole = finetune(asked)
    ways = {"twice": [CutAt(step=5), CutAt(epoch=3)]}
    if not settings:
        ways |= {"first": [CutAt(step=1)], "middle": [CutAt(step=7)], "after": [CutAt(epoch=2)]}
    for name, cuts in ways.items():
        path = cut_short(asked.model_copy(update={"output": tmp_path / name}), cuts[0])
        for again in cuts[1:]:
            with pytest.raises(CutError):
                resume(path, callbacks=[again])
        gone_on = resume(path)
        assert left_by(path) == left_by(whole.path), name
        assert gone_on.results.model_dump(exclude={"seconds"}) == whole.results.model_dump(exclude={"seconds"})
        assert not (path / "resume.safetensors").exists()


@pytest.mark.parametrize("settings", [{}, {"gradual_unfreezing": True, "patience": 2}])
def test_a_run_with_a_head_stage_resumes_bitwise_identical(colours: Path, weights: str, tmp_path: Path, settings: dict[str, Any]) -> None:
    asked = config(colours, tmp_path / "whole", mode="full", weights=weights, epochs=8, head_epochs=2, lr=2e-3, **settings)
    whole = finetune(asked)
    for name, at in {"head": CutAt(epoch=1), "first": CutAt(step=2), "later": CutAt(epoch=4)}.items():
        path = cut_short(asked.model_copy(update={"output": tmp_path / name}), at)
        resume(path)
        assert left_by(path) == left_by(whole.path), name


def test_feature_extraction_restarts_and_ends_bitwise_identical(colours: Path, weights: str, tmp_path: Path) -> None:
    asked = config(colours, tmp_path / "whole", weights=weights, epochs=6, head="mlp:8")
    whole = finetune(asked)
    path = cut_short(asked.model_copy(update={"output": tmp_path / "cut"}), CutAt(epoch=4))
    resume(path)
    assert left_by(path) == left_by(whole.path)


@pytest.fixture
def cut(colours: Path, tmp_path: Path) -> Path:
    return cut_short(config(colours, tmp_path / "cut", mode="full", epochs=3), CutAt(epoch=2))


def test_a_run_interrupted_before_the_best_weights_were_written_still_has_them(colours: Path, tmp_path: Path) -> None:
    """The state to resume from is written first, and contains the best network of that epoch."""
    asked = config(colours, tmp_path / "whole", mode="full", epochs=3)
    whole = finetune(asked)
    path = cut_short(asked.model_copy(update={"output": tmp_path / "cut"}), CutAt(epoch=whole.results.best_epoch))
    (path / "checkpoint.safetensors").write_bytes(b"torn")
    resume(path)
    assert left_by(path) == left_by(whole.path)


def test_a_finished_run_is_not_changed(colours: Path, tmp_path: Path) -> None:
    logged: list[str] = []
    whole = finetune(config(colours, tmp_path / "run", epochs=1))
    before = left_by(whole.path)
    again = resume(whole.path, log=logged.append)
    assert (again.results, again.trained, whole.trained) == (whole.results, False, True)
    assert logged == [f"{whole.path}: this run is finished: there is nothing to resume"]
    assert left_by(whole.path) == before


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"not a run \(config.json is missing\): give a run's folder"):
        resume(tmp_path)


def test_changed_images_are_rejected(tmp_path: Path) -> None:
    data = put_colours(tmp_path / "data", train=6)
    path = cut_short(config(data, tmp_path / "run", mode="full", epochs=2), CutAt(epoch=1))
    put_image_of(data / "train" / "red" / "new.png", "red", 77)
    with pytest.raises(SettingsError, match="run: the images changed since this run started: restore them, or start a new run"):
        resume(path)


def test_classes_in_another_order_are_rejected(cut: Path) -> None:
    """The network's outputs would mean other classes."""
    document = json.loads((cut / "config.json").read_text())
    document["classes"] = document["classes"][::-1]
    (cut / "config.json").write_text(json.dumps(document))
    with pytest.raises(SettingsError, match="the classes or their order changed since this run started"):
        resume(cut)


def test_changed_initial_weights_are_rejected(colours: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    state = load_backbone(config(colours))[0].state_dict()
    safetensors.torch.save_file(state, path)
    run = cut_short(config(colours, tmp_path / "run", mode="full", weights=str(path), epochs=2, head_epochs=0), CutAt(epoch=1))
    safetensors.torch.save_file({name: tensor + (tensor.is_floating_point() * 1) for name, tensor in state.items()}, path)
    with pytest.raises(SettingsError, match="the initial weights changed since this run started"):
        resume(run)


def test_a_run_resumes_on_a_machine_with_other_cores(cut: Path) -> None:
    """The number of processes that read images does not affect the result."""
    document = json.loads((cut / "config.json").read_text())
    document["plan"]["workers"] += 5
    (cut / "config.json").write_text(json.dumps(document))
    assert resume(cut).results.best_epoch


def test_changed_versions_are_logged(cut: Path) -> None:
    document = json.loads((cut / "config.json").read_text())
    document["versions"]["timm"] = "0.0.1"
    (cut / "config.json").write_text(json.dumps(document))
    logged: list[str] = []
    resume(cut, log=logged.append)
    assert any("so results may not be bit-identical: timm 0.0.1 -> " in line for line in logged)


def test_a_damaged_state_is_named(cut: Path) -> None:
    (cut / "resume.safetensors").write_bytes(b"nonsense" * 100)
    with pytest.raises(WeightsError, match=r"resume.safetensors: damaged .*: remove it, and --resume starts from the first epoch"):
        resume(cut)
    (cut / "resume.safetensors").unlink()
    assert resume(cut).results.best_epoch


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.helpers.training.tiny_training import config
from tlcli.training import Callback, finetune
from tlcli.contract.errors import SettingsError

class Fill(Callback):
    def on_epoch_end(self, row, is_best):
        if row.epoch == 2:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    finetune(config(Path(sys.argv[1]), Path(sys.argv[2]), mode="full", epochs=4), callbacks=[Fill()])
except SettingsError as error:
    print(error)
"""


def test_a_full_disk_loses_no_saved_epoch(colours: Path, tmp_path: Path) -> None:
    """After the second epoch, files are limited to 1,000 bytes."""
    whole = finetune(config(colours, tmp_path / "whole", mode="full", epochs=4))
    command = [sys.executable, "-c", FULL_DISK, str(colours), str(tmp_path / "cut")]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3]).stdout
    assert "epoch 3 cannot be saved" in output
    assert f"{tmp_path / 'cut' / 'resume.safetensors'}: epoch 3 cannot be saved: File too large: free disk space, then" in output
    assert f"`tlcli finetune --resume {tmp_path / 'cut'}` resumes after the last saved epoch" in output
    assert [path.name for path in (tmp_path / "cut").iterdir() if path.name.startswith(".")] == []
    resume(tmp_path / "cut")
    assert left_by(tmp_path / "cut") == left_by(whole.path)


def test_a_resumed_run_can_be_loaded(cut: Path) -> None:
    result: RunResult = resume(cut)
    network = load_run(result.path).network
    assert all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values() if tensor.is_floating_point())
    assert torch.tensor(result.results.val.confusion).sum() == 12


def test_a_run_whose_data_set_moved_resumes_from_the_new_location(tmp_path: Path) -> None:
    data = put_colours(tmp_path / "data")
    asked = config(data, tmp_path / "run", mode="full", epochs=2)
    path = cut_short(asked, CutAt(epoch=1))
    data.rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"run: its data set .*data no longer exists: give its new location with --dataset$"):
        resume(path)
    other = put_colours(tmp_path / "other")
    next(other.rglob("*.png")).unlink()
    with pytest.raises(SettingsError, match="the images changed since this run started"):
        resume(path, dataset=str(other))
    assert json.loads((path / "config.json").read_text())["asked"]["dataset"] == str(data)
    resume(path, dataset=str(tmp_path / "elsewhere"))
    assert json.loads((path / "config.json").read_text())["asked"]["dataset"] == str(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(tmp_path / "third")
    with pytest.raises(DatasetError, match="give its new location with --dataset"):
        load_run(path).dataset()
    with pytest.raises(DatasetError, match="the images changed since"):
        load_run(path).on(str(other)).dataset()
    assert len(load_run(path).on(str(tmp_path / "third")).dataset().train) > 0


def test_a_run_that_another_process_trains_is_rejected_before_images_are_read(cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlcli.training.finetune_run.load_dataset", lambda *_: pytest.fail("the data set was read"))
    begun = Begun()
    with RunFolder(cut).claimed(), pytest.raises(SettingsError, match="cut: another process is training here: wait for it, or stop it"):
        resume(cut, callbacks=[begun])
    assert begun.folders == []


def test_a_run_that_another_process_has_just_finished_is_not_changed(cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is unfinished at the first check, and finished once it can be locked."""
    results = resume(cut).results
    before = left_by(cut)
    looks = [None, results]
    for module in ("fine_tuning", "finetune_run"):
        monkeypatch.setattr(f"tlcli.training.{module}.read_results", lambda path: looks.pop(0))
    again = resume(cut)
    assert (again.results, again.trained, looks) == (results, False, [])
    assert left_by(cut) == before


def test_a_folder_that_another_process_has_just_filled_is_not_changed(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finetune(config(colours, tmp_path / "run", epochs=1)).path
    before = left_by(run)
    monkeypatch.setattr("tlcli.training.runs.run_folder.require_output", lambda config: None)
    monkeypatch.setattr("tlcli.training.fine_tuning.require_output", lambda config: None)
    with pytest.raises(SettingsError, match="run: another process trained here in the meantime: name a new folder with --output"):
        finetune(config(colours, run, epochs=1))
    assert left_by(run) == before


def test_files_missing_after_a_kill_are_written_by_resume(cut: Path) -> None:
    written = {name: (cut / name).read_bytes() for name in ("split.json", "data_sheet.json")}
    for name in written:
        (cut / name).unlink()
    resume(cut, workers=3)
    assert {name: (cut / name).read_bytes() for name in written} == written
