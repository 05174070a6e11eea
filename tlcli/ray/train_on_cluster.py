"""Fine-tuning in several processes on a Ray cluster: what `torchrun -m tlcli finetune` does on one machine.

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

_RAYS = ".ray"
"""In the run's folder while it lasts: what Ray Train notes of it. All nodes must see it, as they must see the run."""


@dataclass(frozen=True)
class Workers:
    """The processes of a training.

    count: how many.
    gpu: each has a GPU.
    cpus: cores of each, for as many threads of PyTorch's.
    max_failures: how often all may be started again where one, or its node, fails; -1: without end.
    """

    count: int
    gpu: bool = False
    cpus: float = 1
    max_failures: int = 0


def train(config: FinetuneConfig, workers: Workers) -> dict[str, float]:
    """Fine-tune as `config` says, in several processes, wherever Ray has room for them.

    The run is that of `torchrun` with as many processes and the same settings. Where they are started again, they go on after the last
    whole epoch.

    Args:
        config: names `output`, the run's folder, on storage that all nodes share; so are its images, its weights, and `$TLCLI_CACHE`.
        workers: the processes.

    Returns:
        The final figures, by name, see `tlcli.training.metrics.scores.Results.metrics`.

    Raises:
        TlcliError: what `tlcli.training.finetune` raises.
        ray.train.TrainingFailedError: a process failed otherwise, once more than it may.
    """
    config = absolute(config)
    assert config.output is not None, "processes that are started again find the run by its folder"
    require_output(config)
    return _in_processes(config, config.output, workers)


def go_on(folder: Path, workers: Workers) -> dict[str, float]:
    """Go on with a run that was cut short, after its last whole epoch, wherever it was begun.

    Args:
        folder: the run's.
        workers: the processes; where they are as many as before, the run ends as if it had not been cut short, on CPUs to the bit.

    Returns:
        See `train`.

    Raises:
        TlcliError: what `tlcli.training.resume` raises.
        ray.train.TrainingFailedError: see `train`.
    """
    folder = folder.absolute()
    return _in_processes(read_config(folder).asked, folder, workers)


def _in_processes(config: FinetuneConfig, folder: Path, workers: Workers) -> dict[str, float]:
    resources = {"CPU": workers.cpus, "GPU": 1} if workers.gpu else {"CPU": workers.cpus}
    shutil.rmtree(folder / _RAYS, ignore_errors=True)  # of a program that was killed
    trainer = TorchTrainer(
        work,
        train_loop_config={"config": config.model_dump(mode="json"), "folder": str(folder), "cache": str(cache_dir().absolute())},
        scaling_config=ScalingConfig(num_workers=workers.count, use_gpu=workers.gpu, resources_per_worker=resources),
        run_config=RunConfig(name=_RAYS, storage_path=str(folder), failure_config=FailureConfig(max_failures=workers.max_failures)),
    )
    try:
        figures: dict[str, float] = trainer.fit().return_value
    except TrainingFailedError as error:
        ours = [failure for failure in getattr(error, "worker_failures", {}).values() if isinstance(failure, TlcliError)]
        if ours:
            raise ours[0] from error
        raise
    finally:
        shutil.rmtree(folder / _RAYS, ignore_errors=True)
        with suppress(OSError):  # there is something in it: a run, whole or to go on with
            folder.rmdir()
    return figures


def work(job: dict[str, Any]) -> dict[str, float]:
    """What each process does, when Ray has joined it to the others."""
    os.environ["TLCLI_CACHE"] = job["cache"]
    from tlcli.training import finetune, resume

    folder = Path(job["folder"])
    # Seen alike by all: the first one writes it when each of the others has come to wait for it, and so has looked.
    begun = (folder / CONFIG).is_file()
    return (resume(folder, log=_say) if begun else finetune(FinetuneConfig.model_validate(job["config"]), log=_say)).metrics


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")  # Ray Train has put its own in the place of `print`, which says everything twice
    sys.stdout.flush()


@click.command()
@click.argument("settings", type=click.Path(path_type=Path), required=False)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="The run's folder, which all nodes see.")
@click.option("--resume", "begun", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run that was cut short.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Processes that train together.")
@click.option("--gpu", is_flag=True, help="Each has a GPU.")
@click.option("--cpus", type=click.IntRange(min=1), default=1, show_default=True, help="Cores of each.")
@click.option("--max-failures", type=click.IntRange(min=-1), default=3, show_default=True, help="How often they may be started again.")
@click.option("--address", help="Of the cluster.  [default: $RAY_ADDRESS, one that runs here, or one started for this]")
def main(
    settings: Path | None,
    output: Path | None,
    begun: Path | None,
    workers: int,
    gpu: bool,
    cpus: int,
    max_failures: int,
    address: str | None,
) -> None:
    """Fine-tune on a Ray cluster.

    SETTINGS is a TOML file, as `tlcli finetune --print-config` prints it.
    """
    processes = Workers(workers, gpu, cpus, max_failures)
    try:
        if begun is not None and settings is None and output is None:
            read_config(begun)
            folder, work_on = begun, partial(go_on, begun, processes)
        elif begun is None and settings is not None and output is not None:
            config = finetune_config(settings, output=output)
            require_output(config)
            folder, work_on = output, partial(train, config, processes)
        else:
            raise click.UsageError("give SETTINGS and --output RUN to begin a run, or --resume RUN alone to go on with one")
        ray.init(address=address, log_to_driver=True)
        try:
            figures = work_on()
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
