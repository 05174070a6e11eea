"""Training on Ray gives the same result as `torchrun`, even if a process is killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ray.train import TrainingFailedError

from tests.helpers.deploy.ray_cluster import RayCluster, command, processes_of, ray_cluster, wait_until
from tests.helpers.training.tiny_training import config, put_colours
from tests.training.runtime.test_distributed import SGD, of_two
from tlcli.contract.errors import DatasetError, NotFoundError, SettingsError
from tlcli.ray.train_on_cluster import Workers, main, resume_on_cluster, train
from tlcli.training.runs import resume_state

SETTINGS: dict[str, Any] = {**SGD, "backbone": "lenet5", "mode": "full", "epochs": 25, "lr": 1e-2, "batch_size": 7}


def workers(cluster: RayCluster) -> list[int]:
    return [pid for pid in processes_of(cluster.nodes[0]) if command(pid).startswith("ray::RayTrainWorker")]


@pytest.mark.slow
def test_two_processes_end_as_with_torchrun_though_one_was_killed_twice(tmp_path: Path) -> None:
    """The first time the workers are not restarted, so the run is resumed by hand."""
    colours = put_colours(tmp_path / "colours", train=16, val=5)
    of_two(colours, tmp_path / "by torchrun", **SETTINGS)
    output = tmp_path / "by ray"
    kept = output / resume_state.FILE

    def kill_one(run: Future[Any], before: int) -> None:
        wait_until(lambda: run.done() or (kept.exists() and kept.stat().st_mtime_ns > before))
        there = workers(cluster)
        assert len(there) == 2
        os.kill(there[1], signal.SIGKILL)

    with ray_cluster(nodes=1, cpus=2) as cluster, ThreadPoolExecutor(1) as pool:
        run = pool.submit(train, config(colours, output, **SETTINGS), Workers(2))
        kill_one(run, 0)
        with pytest.raises(TrainingFailedError):
            run.result(120)
        assert not (output / ".ray").exists()
        before = kept.stat().st_mtime_ns
        run = pool.submit(resume_on_cluster, output, Workers(2, max_failures=1))
        kill_one(run, before)
        figures = run.result(120)
    assert figures["test_top1"] > 0.5
    for name in ("metrics.csv", "checkpoint.safetensors"):
        assert (output / name).read_bytes() == (tmp_path / "by torchrun" / name).read_bytes(), name
    assert not (output / ".ray").exists()


def test_what_a_process_raises_is_raised_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train import WorkerGroupError

    class Trainer:
        def __init__(self, loop: Callable[[dict[str, Any]], Any], **settings: Any) -> None:
            self.run = partial(loop, settings["train_loop_config"])
            Path(settings["run_config"].storage_path, settings["run_config"].name).mkdir(parents=True)

        def fit(self) -> None:
            try:
                self.run()
            except DatasetError as error:
                raise WorkerGroupError("a traceback", {0: RuntimeError("Connection closed by peer"), 1: error}) from None

    monkeypatch.setattr("tlcli.ray.train_on_cluster.TorchTrainer", Trainer)
    with pytest.raises(DatasetError, match="nowhere"):
        train(config(tmp_path / "nowhere", tmp_path / "run"), Workers(2))
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_is_said_before_a_cluster_is_asked(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text('backbone = "test_resnet"\nepoch = 3\n')
    done = CliRunner().invoke(main, [str(settings), "--output", str(tmp_path / "run")])
    assert done.exit_code == SettingsError.exit_code
    assert done.output == f"Error: {settings}: epoch: no such setting: did you mean epochs?\n"
    settings.write_text('backbone = "test_resnet"\n')
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    done = CliRunner().invoke(main, [str(settings), "--output", str(tmp_path / "run")])
    assert "already exists, and nothing is overwritten" in done.output
    done = CliRunner().invoke(main, ["--resume", str(tmp_path / "run")])
    assert done.exit_code == NotFoundError.exit_code
    assert done.output.startswith(f"Error: {tmp_path / 'run'} is not a run (config.json is missing)")


@pytest.mark.parametrize("arguments", [[], ["settings.toml"], ["settings.toml", "--output", "run", "--resume", "run"]])
def test_a_run_is_begun_or_gone_on_with(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "give SETTINGS and --output RUN to start a run, or --resume RUN alone to resume one" in done.output
