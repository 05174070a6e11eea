"""Entry points for fine-tuning: start a run, resume a run, and find a learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tlcli.contract.errors import SettingsError
from tlcli.training.engine.all_layers import AllLayers
from tlcli.training.engine.callbacks import Callback
from tlcli.training.engine.lr_finder import RateCurve, try_rates
from tlcli.training.engine.step import Log, no_log
from tlcli.training.finetune_run import FinetuneRun, RunResult, SavedRun, complete_report
from tlcli.training.models.backbone_names import built_for_size, with_timms_name
from tlcli.training.reports.lr_plot import draw_rates
from tlcli.training.runs.load_run import moved, require_dataset
from tlcli.training.runs.run_folder import absolute, read_config, read_results, require_output
from tlcli.training.runs.starting_run import take_over
from tlcli.training.runs.tensorboard import require_tensorboard
from tlcli.training.runtime.device import torch_device
from tlcli.training.runtime.distributed import DistributedContext, join_processes
from tlcli.training.runtime.progress import ProgressFactory, silent
from tlcli.training.runtime.torch_compile import require_compiler
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.plan import plan_for_task, resolve_plan

__all__ = ["RunResult", "find_lr", "finetune", "resume"]


def finetune(
    config: FinetuneConfig,
    progress: ProgressFactory = silent,
    log: Log = no_log,
    callbacks: Sequence[Callback] = (),
) -> RunResult:
    """Fine-tune a network and write the run folder.

    On a CPU, the same config produces bit-identical weights as long as PyTorch uses the same number of threads. Under `torchrun`, all
    processes train one network together, and only rank 0 writes files, reports progress and runs callbacks.

    Args:
        config: settings of the run.
        progress: factory of progress bars for long tasks.
        log: function that prints a line for the user, such as resolved settings, findings and results.
        callbacks: hooks to run during training.

    Raises:
        SettingsError: settings conflict with each other or with the backbone, the folder is in use, or `compile` finds no compiler.
        DeviceError: the device does not exist.
        WeightsError, HubError, NotFoundError: see `tlcli.training.models.weights.load_backbone`.
        DatasetError, HubError: see `tlcli.training.data.load.load_dataset`.
        ImageError: an image can no longer be read.
    """
    config = built_for_size(with_timms_name(absolute(take_over(config)), log), log)
    plan = resolve_plan(config)
    if config.tensorboard:
        require_tensorboard()
    device = torch_device(config.device)
    if plan.config.compile:
        require_compiler(device)
    with join_processes(device) as dist:
        require_output(config)
        return FinetuneRun(config, plan, device, dist, progress, log, callbacks).run()


def resume(
    path: str | Path,
    progress: ProgressFactory = silent,
    log: Log = no_log,
    callbacks: Sequence[Callback] = (),
    dataset: str | None = None,
    data_dir: Path | None = None,
    workers: int | None = None,
) -> RunResult:
    """Resume an interrupted run after its last complete epoch.

    On a CPU, the result is bit-identical to that of an uninterrupted run.

    Args:
        path: run folder.
        progress, log, callbacks: see `finetune`.
        dataset: new location of the data set if it has moved; the images must be the same.
        data_dir: new folder of named data sets if it has moved.
        workers: number of worker processes that read images, which does not affect the result; None to use the original number.

    Raises:
        NotFoundError: the folder is not a run folder.
        SettingsError: the images, classes, initial weights or settings changed since the run started.
        Exception: see `finetune`.
    """
    path = Path(path).absolute()
    saved = read_config(path)
    config = moved(saved.asked, dataset, data_dir)
    results = read_results(path)
    if results is not None:
        return complete_report(path, results, log)
    if saved.asked.tensorboard:
        require_tensorboard()
    require_dataset(config, path)
    device, plan = torch_device(saved.asked.device), resolve_plan(saved.asked)
    if workers is not None:
        plan = plan.model_copy(update={"workers": workers})
    if plan.config.compile:
        require_compiler(device)
    with join_processes(device) as dist:
        return FinetuneRun(config, plan, device, dist, progress, log, callbacks).run(SavedRun(path, saved))


def find_lr(config: FinetuneConfig, path: Path, progress: ProgressFactory = silent, log: Log = no_log) -> RateCurve:
    """Run a learning rate range test for training all layers, and plot the result.

    Args:
        config: settings of the run; see `finetune`.
        path: output path of the plot, a PNG file.
        progress, log: see `finetune`.

    Raises:
        SettingsError: the config trains only the head; see also `tlcli.training.engine.lr_finder.try_rates`.
        Exception: see `finetune`.
    """
    config = built_for_size(with_timms_name(absolute(take_over(config)), log), log)
    plan = resolve_plan(config)
    if not plan.full_epochs:
        raise SettingsError("--find-lr needs --mode full: for a head on cached features, use --head-search")
    run = FinetuneRun(config, plan, torch_device(config.device), DistributedContext(), progress, log)
    run.setup()
    plan = plan_for_task(plan, run.dataset.task)
    curve = try_rates(AllLayers(run.network, run.dataset, plan, config.seed, log=log).stage(), progress)
    draw_rates(curve, path)
    log(f"the loss falls fastest at --lr {curve.suggestion:.1e}; plot in {path}")
    return curve
