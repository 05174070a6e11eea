"""Fine-tuning, from settings to a finished run folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from training import report
from training.clock import Clock
from training.config import FinetuneConfig
from training.datasets import Dataset, load_dataset, save_split
from training.device import torch_device
from training.features import FeatureCache, View
from training.full import classify_pictures, train_all
from training.head import classify_embeddings, train_head
from training.network import Network, NetworkConfig
from training.parts import Part
from training.plan import Plan, resolve_plan
from training.predictions import predictions, write_predictions
from training.preprocessing import resolve_preprocessing
from training.progress import ProgressFactory, silent
from training.results import EpochRow, Results, score
from training.run_folder import (
    CONFUSION,
    CURVES,
    MISTAKES,
    PREDICTIONS,
    RELIABILITY,
    SPLIT,
    RunConfig,
    RunFolder,
    absolute,
    make_folder,
    now,
    require_output,
    versions,
)  # fmt: skip
from training.stage import Best, snapshot
from training.transforms import augmentation_for
from training.weights import load_backbone

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run. path: its folder, which `training.run.load_run` reads."""

    path: Path
    results: Results

    @property
    def metrics(self) -> dict[str, float]:
        """The final figures, by name, see `Results.metrics`."""
        return self.results.metrics


def finetune(config: FinetuneConfig, progress: ProgressFactory = silent, say: Say = lambda _: None) -> RunResult:
    """Train as `config` says, and write the run folder.

    On a CPU the same config gives the same weights, to the bit, given the same number of PyTorch's threads.

    Args:
        config: what was asked for.
        progress: told of all that lasts.
        say: told, a line at a time, what was resolved, found and reached.

    Raises:
        SettingsError: settings that contradict each other or the backbone, or a folder that is in use.
        DeviceError: a device that is not there.
        WeightsError, HubError, NotFoundError: see `training.weights.load_backbone`.
        DatasetError, HubError: see `training.datasets.load_dataset`.
        PictureError: a picture that cannot be read any more.
    """
    config = absolute(config)
    plan = resolve_plan(config)
    require_output(config)
    device = torch_device(config.device)
    clock = Clock()

    backbone, weights_fingerprint = load_backbone(config, progress)
    preprocessing = resolve_preprocessing(config, backbone)
    with clock("data"):
        dataset = load_dataset(config, progress)
    torch.manual_seed(config.seed)
    network = Network(
        NetworkConfig(
            backbone=config.backbone,
            model_kwargs=config.model_kwargs,
            head=config.head,
            num_classes=len(dataset.classes),
            preprocessing=preprocessing,
        ),
        backbone,
    ).to(device)
    _say_what_was_found(config, network, dataset, say)

    folder = make_folder(config)
    folder.write_config(
        RunConfig(
            created=now(),
            asked=config,
            network=network.config,
            plan=plan,
            classes=dataset.classes,
            device=str(device),
            weights_fingerprint=weights_fingerprint,
            dataset_fingerprint=dataset.fingerprint,
            versions=versions(),
        )
    )
    save_split(dataset, folder.path / SPLIT)

    best = None
    cache = FeatureCache(network.eval(), weights_fingerprint, plan.workers, progress)
    if plan.head_epochs:
        best = _head_stage(config, plan, cache, dataset, clock, say)
    if plan.full_epochs and (best is None or best.stopped is None):
        best = _full_stage(config, plan, network, dataset, best, folder, clock, progress, say)
    assert best is not None, "a plan has a stage of at least one epoch"
    if best.stopped is not None:
        say(f"{best.stopped}; the weights of epoch {best.kept.epoch} are kept")
    folder.write_checkpoint(network.state_dict())
    folder.write_metrics(best.rows)

    with clock("evaluation"):
        evaluate = _from_features(cache) if plan.full_epochs == 0 else _from_pictures(network, plan, progress)
        logits = {name: evaluate(part, f"Evaluating on the {name} part") for name, part in dataset.parts.items() if name != "train"}
    scores = {name: score(values, torch.from_numpy(dataset.parts[name].labels), dataset.classes) for name, values in logits.items()}
    with clock("report"):
        report.draw_curves(best.rows, best.kept.epoch, folder.path / CURVES)
        report.draw_confusion(scores["val"], "validation", folder.path / CONFUSION)
        report.draw_reliability(scores["val"], "validation", folder.path / RELIABILITY)
        report.draw_mistakes(report.explained_by(network), dataset.val, logits["val"], dataset.classes, folder.path / MISTAKES)
    write_predictions(folder.path / PREDICTIONS, predictions(dataset.val, logits["val"], dataset.classes))
    results = Results(
        best_epoch=best.kept.epoch,
        stopped=best.stopped,
        val=scores["val"],
        test=scores.get("test"),
        seconds=clock.seconds,
        pictures={name: len(part) for name, part in dataset.parts.items()},
        left_out=len(dataset.left_out),
    )
    folder.write_results(results)
    for name, of_part in scores.items():
        say(f"{name}: {of_part.top1:.2%} of {of_part.count:,} pictures right, loss {of_part.loss:.4f}")
    say(f"run written to {folder.path}")
    return RunResult(folder.path, results)


def _head_stage(config: FinetuneConfig, plan: Plan, cache: FeatureCache, dataset: Dataset, clock: Clock, say: Say) -> Best:
    with clock("features"):
        augmentation = augmentation_for(dataset.spec)
        wanted = [View(augmentation, number, config.seed) for number in range(config.augment)]
        views = [cache.embeddings(dataset.train, f"Features of the train part, view {view.number + 1}", view) for view in wanted]
        if not views:
            views = [cache.embeddings(dataset.train, "Features of the train part")]
        val = cache.embeddings(dataset.val, "Features of the val part")
    with clock("head"), cache.progress("Training the head", plan.head_epochs) as advance:
        best = train_head(
            cache.network, views, dataset.train.labels, val, dataset.val.labels, plan, config.seed, lambda row, is_best: advance(1)
        )
    row = best.kept
    say(
        f"head: best of {len(best.rows)} epochs is {row.epoch}, validation top-1 {row.val_top1:.2%}, loss {row.val_loss:.4f}"
        f" (features {clock.seconds['features']:.1f} s, training {clock.seconds['head']:.1f} s)"
    )
    return best


def _full_stage(
    config: FinetuneConfig,
    plan: Plan,
    network: Network,
    dataset: Dataset,
    before: Best | None,
    folder: RunFolder,
    clock: Clock,
    progress: ProgressFactory,
    say: Say,
) -> Best:
    best = Best(snapshot(network)) if before is None else Best(snapshot(network), before.row, rows=before.rows)

    def on_epoch(row: EpochRow, is_best: bool) -> None:
        folder.write_metrics(best.rows)
        if is_best:  # what a run that is cut short leaves
            folder.write_checkpoint(best.state)
        say(
            f"epoch {row.epoch}: training loss {row.train_loss:.4f}, top-1 {row.train_top1:.2%}; validation loss {row.val_loss:.4f},"
            f" top-1 {row.val_top1:.2%}{' (best)' if is_best else ''}; {row.seconds:.1f} s"
        )

    with clock("full"):
        train_all(network, dataset, plan, config.seed, best, progress, on_epoch)
    return best


def _from_features(cache: FeatureCache) -> Callable[[Part, str], Tensor]:
    return lambda part, description: classify_embeddings(cache.network, cache.embeddings(part, description))


def _from_pictures(network: Network, plan: Plan, progress: ProgressFactory) -> Callable[[Part, str], Tensor]:
    def evaluate(part: Part, description: str) -> Tensor:
        with progress(description, len(part)) as advance:
            return classify_pictures(network, part, plan, advance)

    return evaluate


def _say_what_was_found(config: FinetuneConfig, network: Network, dataset: Dataset, say: Say) -> None:
    size = network.config.preprocessing
    if config.weights == "none":
        weights = "random weights: nothing is pretrained (--weights none)"
    else:
        weights = "official weights" if config.weights == "pretrained" else f"weights of {config.weights}"
    frozen = ", all but the head frozen" if config.mode == "feature-extraction" else ""
    say(f"{config.backbone}: {weights}{frozen}; input {size.height}x{size.width}, head {config.head}")
    counts = ", ".join(f"{len(part):,} {name}" for name, part in dataset.parts.items())
    classes = ", ".join(dataset.classes[:8]) + (", ..." if len(dataset.classes) > 8 else "")
    say(f"{dataset.spec}: {len(dataset.classes)} classes ({classes}); pictures: {counts}")
    if dataset.left_out:
        first = dataset.left_out[0]
        say(f"{len(dataset.left_out):,} pictures could not be read and are left out, such as {first.name}: {first.reason}")
