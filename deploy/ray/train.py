"""Fine-tuning in several processes on a Ray cluster: what `torchrun -m tlcli finetune` does on one machine.

tlcli finetune --backbone resnet18 --dataset PATH/TO/FOLDER --print-config > settings.toml
python -m deploy.ray.train settings.toml --output runs/NAME --workers 2
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import click
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from contract.errors import TlcliError, first_line
from tlcli.settings import finetune_config
from training.config import FinetuneConfig, cache_dir
from training.run_files import CONFIG
from training.run_folder import absolute, require_output

_RAYS = ".ray"
"""In the run's folder while it lasts: what Ray Train notes of it. All nodes must see it, as they must see the run."""


def train(config: FinetuneConfig, workers: int, *, gpu: bool = False, cpus: float = 1, max_failures: int = 0) -> dict[str, float]:
    """Fine-tune as `config` says, in `workers` processes, wherever Ray has room for them.

    The run is that of `torchrun` with as many processes and the same settings. Where a process or a node fails, all are started again,
    and go on after the last whole epoch (`training.resume`).

    Args:
        config: names `output`, the run's folder, on storage that all nodes share; so are its pictures, its weights, and `$TLCLI_CACHE`.
        workers: processes.
        gpu: each has a GPU.
        cpus: cores of each, for as many threads of PyTorch's.
        max_failures: how often they may be started again; -1: without end.

    Returns:
        The final figures, by name, see `training.results.Results.metrics`.

    Raises:
        TlcliError: what `training.finetune` raises.
        ray.train.TrainingFailedError: a process failed otherwise, once more than it may.
    """
    config = absolute(config)
    folder = _folder_of(config)
    require_output(config)
    resources = {"CPU": cpus, "GPU": 1} if gpu else {"CPU": cpus}
    trainer = TorchTrainer(
        work,
        train_loop_config={"config": config.model_dump(mode="json"), "cache": str(cache_dir().absolute())},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(name=_RAYS, storage_path=str(folder), failure_config=FailureConfig(max_failures=max_failures)),
    )
    try:
        figures: dict[str, float] = trainer.fit().return_value
    except TrainingFailedError as error:
        ours = [failure for failure in getattr(error, "worker_failures", {}).values() if isinstance(failure, TlcliError)]
        raise ours[0] if ours else error from error
    shutil.rmtree(folder / _RAYS, ignore_errors=True)
    return figures


def work(job: dict[str, Any]) -> dict[str, float]:
    """What each process does, when Ray has joined it to the others."""
    os.environ["TLCLI_CACHE"] = job["cache"]
    from training import finetune, resume

    config = FinetuneConfig.model_validate(job["config"])
    folder = _folder_of(config)
    # Seen alike by all: the first one writes it when each of the others has come to wait for it, and so has looked.
    begun = (folder / CONFIG).is_file()
    return (resume(folder, say=_say) if begun else finetune(config, say=_say)).metrics


def _folder_of(config: FinetuneConfig) -> Path:
    assert config.output is not None, "processes that are started again find the run by its folder"
    return config.output


def _say(line: str) -> None:
    print(line, flush=True)


@click.command()
@click.argument("settings", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="The run's folder, which all nodes see.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Processes that train together.")
@click.option("--gpu", is_flag=True, help="Each has a GPU.")
@click.option("--cpus", type=click.IntRange(min=1), default=1, show_default=True, help="Cores of each.")
@click.option("--max-failures", type=click.IntRange(min=-1), default=3, show_default=True, help="How often they may be started again.")
@click.option("--address", help="Of the cluster.  [default: $RAY_ADDRESS, one that runs here, or one started for this]")
def main(settings: Path, output: Path, workers: int, gpu: bool, cpus: int, max_failures: int, address: str | None) -> None:
    """Fine-tune on a Ray cluster.

    SETTINGS is a TOML file, as `tlcli finetune --print-config` prints it.
    """
    try:
        config = finetune_config(settings, output=output)
        require_output(config)
        ray.init(address=address, log_to_driver=True)
        try:
            figures = train(config, workers, gpu=gpu, cpus=cpus, max_failures=max_failures)
        finally:
            ray.shutdown()
    except TlcliError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except (TrainingFailedError, ConnectionError) as error:
        click.echo(f"Error: {first_line(error)}", err=True)
        sys.exit(1)
    click.echo(f"{output}: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    click.echo(f"\nnext:\n  tlcli export {output}")


if __name__ == "__main__":
    main()
