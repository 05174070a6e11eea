"""Fine-tuning with several worker processes on a Ray cluster, as `torchrun -m tlcli finetune` does on one machine.

Example:
    tlcli finetune --backbone resnet18 --dataset PATH/TO/FOLDER --print-config > settings.toml
    python -m tlcli.ray.train_on_cluster settings.toml --output runs/NAME --workers 2
    python -m tlcli.ray.train_on_cluster --resume runs/NAME --workers 2
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from tlcli.cli.finetune_settings import finetune_config
from tlcli.contract.errors import TlcliError, first_line
from tlcli.training.runs.run_folder import absolute, read_config, require_output
from tlcli.training.settings.config import FinetuneConfig, cache_dir
from tlcli.training.settings.run_file_names import CONFIG

_RAY_FOLDER = ".ray"
"""Subfolder of the run's folder where Ray Train keeps its state during training. Like the run itself, it must be visible to all nodes."""


@dataclass(frozen=True)
class Workers:
    """Worker processes of a training run.

    count: number of processes.
    gpu: True to give each process one GPU.
    cpus: number of CPU cores per process, and therefore its number of PyTorch threads.
    max_failures: maximum number of times that all processes are restarted after one of them or its node fails; -1 for no limit.
    """

    count: int
    gpu: bool = False
    cpus: float = 1
    max_failures: int = 0


def train(config: FinetuneConfig, workers: Workers) -> dict[str, float]:
    """Fine-tune with several worker processes on any nodes with free resources.

    The result is the same as that of `torchrun` with the same number of processes and the same settings. Restarted workers resume after
    the last complete epoch.

    Args:
        config: settings of the run. `output`, the run's folder, is required. The folder, the images, the weights, and `$TLCLI_CACHE` must
            be on storage that all nodes share.
        workers: number of worker processes and their resources.

    Returns:
        Final metrics by name; see `tlcli.training.metrics.scores.Results.metrics`.

    Raises:
        TlcliError: any error raised by `tlcli.training.finetune`.
        ray.train.TrainingFailedError: workers failed for another reason more than `max_failures` times.
    """
    config = absolute(config)
    assert config.output is not None, "restarted workers find the run by its folder"
    require_output(config)
    return _in_processes(config, config.output, workers)


def resume_on_cluster(folder: Path, workers: Workers) -> dict[str, float]:
    """Resume an interrupted run after its last complete epoch, whether it was started on a cluster or not.

    Args:
        folder: folder of the run.
        workers: number of worker processes and their resources. With the same number of processes as before, the result equals that of
            an uninterrupted run. On CPUs, it is bitwise identical.

    Returns:
        Final metrics by name, as in `train`.

    Raises:
        TlcliError: any error raised by `tlcli.training.resume`.
        ray.train.TrainingFailedError: see `train`.
    """
    folder = folder.absolute()
    return _in_processes(read_config(folder).asked, folder, workers)


def _in_processes(config: FinetuneConfig, folder: Path, workers: Workers) -> dict[str, float]:
    resources = {"CPU": workers.cpus, "GPU": 1} if workers.gpu else {"CPU": workers.cpus}
    shutil.rmtree(folder / _RAY_FOLDER, ignore_errors=True)  # left by a killed process
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "folder": str(folder), "cache": str(cache_dir().absolute())},
        scaling_config=ScalingConfig(num_workers=workers.count, use_gpu=workers.gpu, resources_per_worker=resources),
        run_config=RunConfig(name=_RAY_FOLDER, storage_path=str(folder), failure_config=FailureConfig(max_failures=workers.max_failures)),
    )
    try:
        figures: dict[str, float] = trainer.fit().return_value
    except TrainingFailedError as error:
        ours = [failure for failure in getattr(error, "worker_failures", {}).values() if isinstance(failure, TlcliError)]
        if ours:
            raise ours[0] from error
        raise
    finally:
        shutil.rmtree(folder / _RAY_FOLDER, ignore_errors=True)
        with suppress(OSError):  # not empty: it holds a run, complete or to be resumed
            folder.rmdir()
    return figures


def train_worker(job: dict[str, Any]) -> dict[str, float]:
    """Start or resume the run in one worker process. Ray calls this function in each worker once all workers are connected."""
    os.environ["TLCLI_CACHE"] = job["cache"]
    from tlcli.training import finetune, resume

    folder = Path(job["folder"])
    # All workers see the same state: the first worker writes the file only after all others have checked for it and wait.
    started = (folder / CONFIG).is_file()
    return (resume(folder, log=_say) if started else finetune(FinetuneConfig.model_validate(job["config"]), log=_say)).metrics


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")  # not `print`: Ray Train replaces it with a version that prints everything twice
    sys.stdout.flush()


@click.command()
@click.argument("settings", type=click.Path(path_type=Path), required=False)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Folder of the run, on storage that all nodes share.")
@click.option("--resume", "resumed", type=click.Path(path_type=Path), metavar="RUN", help="Resume an interrupted run.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Number of worker processes.")
@click.option("--gpu", is_flag=True, help="Use one GPU per worker.")
@click.option("--cpus", type=click.IntRange(min=1), default=1, show_default=True, help="Cores per worker.")
@click.option("--max-failures", type=click.IntRange(min=-1), default=3, show_default=True, help="Maximum number of restarts; -1: no limit.")
@click.option("--address", help="Address of the cluster.  [default: $RAY_ADDRESS, a cluster on this machine, or a new one]")
def main(
    settings: Path | None,
    output: Path | None,
    resumed: Path | None,
    workers: int,
    gpu: bool,
    cpus: int,
    max_failures: int,
    address: str | None,
) -> None:
    """Fine-tune on a Ray cluster.

    SETTINGS is a TOML file, as printed by `tlcli finetune --print-config`.
    """
    processes = Workers(workers, gpu, cpus, max_failures)
    try:
        if resumed is not None and settings is None and output is None:
            read_config(resumed)
            folder, training = resumed, partial(resume_on_cluster, resumed, processes)
        elif resumed is None and settings is not None and output is not None:
            config = finetune_config(settings, output=output)
            require_output(config)
            folder, training = output, partial(train, config, processes)
        else:
            raise click.UsageError("give SETTINGS and --output RUN to start a run, or --resume RUN alone to resume one")
        ray.init(address=address, log_to_driver=True)
        try:
            figures = training()
        finally:
            ray.shutdown()
    except TlcliError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except (TrainingFailedError, ConnectionError) as error:
        click.echo(f"Error: {first_line(error)}", err=True)
        sys.exit(1)
    click.echo(f"{folder}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    click.echo(f"\nnext:\n  tlcli export {folder}")


if __name__ == "__main__":
    main()
