"""Fine-tuning, from settings to a finished run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from tlcli.contract.errors import SettingsError
from tlcli.contract.files.display_name import printable
from tlcli.contract.images.find_images import describe
from tlcli.contract.process.malloc import keep_freed_memory
from tlcli.training.data.dataset import Part
from tlcli.training.data.load import Dataset, load_dataset, save_split
from tlcli.training.engine.all_layers import Listeners, classify_images, smallest_part, stage_of_all_layers, train_all
from tlcli.training.engine.callbacks import Watcher
from tlcli.training.engine.ema import snapshot
from tlcli.training.engine.head import classify_embeddings, train_head
from tlcli.training.engine.head_search import Features, heads_to_try, search_head, search_size, write_search
from tlcli.training.engine.lr_finder import RateCurve, try_rates
from tlcli.training.engine.model_selection import describe_kept
from tlcli.training.engine.stage import Best, Position
from tlcli.training.features.cache import FeatureCache, View
from tlcli.training.metrics.scores import EpochRow, Results, score
from tlcli.training.models.backbone_names import with_timms_name
from tlcli.training.models.batch_norms import require_more_than_one_image
from tlcli.training.models.fingerprint import output_of
from tlcli.training.models.network import Network, NetworkConfig
from tlcli.training.models.pretrained_preprocessing import resolve_preprocessing
from tlcli.training.models.weights import load_backbone
from tlcli.training.reports import figures
from tlcli.training.reports.datasheet import data_sheet, write_data_sheet
from tlcli.training.reports.html.report import write_report
from tlcli.training.reports.lr_plot import draw_rates
from tlcli.training.runs import resume_state
from tlcli.training.runs.load_run import moved, require_dataset
from tlcli.training.runs.predictions import predictions, write_predictions
from tlcli.training.runs.run_folder import (
    RunConfig,
    RunFolder,
    absolute,
    make_folder,
    now,
    read_config,
    read_results,
    require_output,
    versions,
    with_pretrained,
)
from tlcli.training.runs.tensorboard import TensorboardLog, require_tensorboard
from tlcli.training.runtime.device import keep_to_usable_cores, torch_device
from tlcli.training.runtime.distributed import DistributedContext, is_rank_zero, join_processes
from tlcli.training.runtime.progress import ProgressFactory, silent
from tlcli.training.runtime.timer import Timer
from tlcli.training.runtime.torch_compile import require_compiler
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.plan import Plan, resolve_plan
from tlcli.training.settings.run_file_names import (
    CONFIG,
    CONFUSION,
    CURVES,
    DATA_SHEET,
    MISTAKES,
    PREDICTIONS,
    RELIABILITY,
    REPORT,
    SEARCH,
    SPLIT,
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run. path: its folder, which `tlcli.training.runs.load_run.load_run` reads. trained: False if it was finished before."""

    path: Path
    results: Results
    trained: bool = True

    @property
    def metrics(self) -> dict[str, float]:
        """The final figures, by name, see `Results.metrics`."""
        return self.results.metrics


def finetune(
    config: FinetuneConfig,
    progress: ProgressFactory = silent,
    say: Say = lambda _: None,
    watchers: Sequence[Watcher] = (),
    on_begin: Callable[[Path], None] = lambda _: None,
) -> RunResult:
    """Train as `config` says, and write the run folder.

    On a CPU the same config gives the same weights, to the bit, given the same number of PyTorch's threads. Started by
    `torchrun`, all its processes train together; the first writes and speaks.

    Args:
        config: what was asked for.
        progress: told of all that lasts.
        say: told, a line at a time, what was resolved, found and reached.
        watchers: told of every epoch and step.
        on_begin: called with the run's folder as soon as `resume` takes it.

    Raises:
        SettingsError: settings that contradict each other or the backbone, a folder that is in use, or nothing to compile with.
        DeviceError: a device that is not there.
        WeightsError, HubError, NotFoundError: see `tlcli.training.models.weights.load_backbone`.
        DatasetError, HubError: see `tlcli.training.data.load.load_dataset`.
        ImageError: an image that cannot be read any more.
    """
    config = with_timms_name(absolute(config), say)
    plan = resolve_plan(config)
    if config.tensorboard:
        require_tensorboard()
    device = torch_device(config.device)
    if plan.config.compile:
        require_compiler(device)
    with join_processes(device) as together:
        require_output(config)
        return _Work(config, plan, device, together, progress, say, watchers, on_begin).do(None)


def resume(
    path: str | Path,
    progress: ProgressFactory = silent,
    say: Say = lambda _: None,
    watchers: Sequence[Watcher] = (),
    dataset: str | None = None,
    data_dir: Path | None = None,
    on_begin: Callable[[Path], None] = lambda _: None,
    workers: int | None = None,
) -> RunResult:
    """Go on with a run that was cut short, from its last whole epoch; on a CPU it ends, to the bit, as if it had not been.

    Args:
        path: its folder.
        progress, say, watchers, on_begin: see `finetune`.
        workers: processes that read images, which the result does not depend on; None for as many as the run was begun with.
        dataset, data_dir: where the data set lies now, if it has moved; the images must be those that the run began with.

    Raises:
        NotFoundError: no run's folder.
        SettingsError: what it was trained on, or with, is not what it was: other images, weights, classes or settings.
        Exception: see `finetune`.
    """
    path = Path(path).absolute()
    saved = read_config(path)
    asked = moved(saved.asked, dataset, data_dir)
    results = read_results(path)
    if results is not None:
        return _finished_before(path, results, say)
    if saved.asked.tensorboard:
        require_tensorboard()
    require_dataset(asked, path)
    device, plan = torch_device(saved.asked.device), resolve_plan(saved.asked)
    if workers is not None:
        plan = plan.model_copy(update={"workers": workers})
    if plan.config.compile:
        require_compiler(device)
    with join_processes(device) as together:
        return _Work(asked, plan, device, together, progress, say, watchers, on_begin).do((path, saved))


def _finished_before(path: Path, results: Results, say: Say) -> RunResult:
    """Complete the report, if that is what was cut short."""
    if is_rank_zero() and not (path / REPORT).exists():
        write_report(path)
    say(f"{path}: this run is finished: there is nothing to resume")
    return RunResult(path, results, trained=False)


def find_lr(config: FinetuneConfig, path: Path, progress: ProgressFactory = silent, say: Say = lambda _: None) -> RateCurve:
    """Try rates for the training of all layers that `config` asks for, and draw what came of it.

    Args:
        config: see `finetune`.
        path: of the plot, a PNG.
        progress, say: see `finetune`.

    Raises:
        SettingsError: the training of a head alone was asked for; or see `tlcli.training.engine.lr_finder.try_rates`.
        Exception: see `finetune`.
    """
    config = with_timms_name(absolute(config), say)
    plan = resolve_plan(config)
    if not plan.full_epochs:
        raise SettingsError("--find-lr goes with --mode full: for a head on features, --head-search tries rates")
    network, dataset, _ = _Work(config, plan, torch_device(config.device), DistributedContext(), progress, say).prepare()
    curve = try_rates(stage_of_all_layers(network, dataset, plan, config.seed, Listeners(say=say)), progress)
    draw_rates(curve, path)
    say(f"the loss falls fastest at --lr {curve.suggestion:.1e}; plot in {path}")
    return curve


class _Work:
    """A run under way."""

    def __init__(
        self,
        config: FinetuneConfig,
        plan: Plan,
        device: torch.device,
        together: DistributedContext,
        progress: ProgressFactory,
        say: Say,
        watchers: Sequence[Watcher] = (),
        on_begin: Callable[[Path], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._plan = plan
        self._device = torch.device(device.type, together.local) if device.type == "cuda" else device
        self._together = together
        self._progress: ProgressFactory = progress if together.is_rank_zero else silent
        self._say: Say = say if together.is_rank_zero else lambda _: None
        self._watchers = watchers if together.is_rank_zero else ()
        self._on_begin = on_begin if together.is_rank_zero else lambda _: None
        self._clock = Timer()

    def do(self, before: tuple[Path, RunConfig] | None) -> RunResult:
        """`before`: the folder of a run to go on with, and what it holds as its config."""
        with ExitStack() as claim:
            if before is None:
                network, dataset, resolved = self.prepare()
                folder = self._claimed(self._folder(), claim)
                if self._together.broadcast((folder.path / CONFIG).exists()):
                    raise SettingsError(f"{folder.path}: another process has trained here meanwhile: name a fresh folder with --output")
                if self._together.is_rank_zero:
                    folder.write_config(resolved)
            else:
                folder = self._claimed(before[0], claim)
                results = self._together.broadcast(read_results(folder.path) if self._together.is_rank_zero else None)
                if results is not None:  # another process did it, while this one was about to begin
                    return _finished_before(folder.path, results, self._say)
                self._on_begin(folder.path)
                network, dataset, resolved = self.prepare(is_new=False)
                self._check_it_is_the_same(*before, resolved)
                if self._together.is_rank_zero and before[1].asked != resolved.asked:  # its data set has moved
                    folder.write_config(before[1].model_copy(update={"asked": resolved.asked}))
            self._on_begin(folder.path)
            if self._together.is_rank_zero:
                self._describe_data(dataset, folder)
            with self._logged(folder):
                return self._train(network, dataset, resolved, folder, goes_on=before is not None)

    def _claimed(self, path: Path, claim: ExitStack) -> RunFolder:
        folder = RunFolder(path)
        if self._together.is_rank_zero:
            claim.enter_context(folder.claimed(self._say))
        return folder

    def _describe_data(self, dataset: Dataset, folder: RunFolder) -> None:
        """Write what the data set is, unless a process that was cut short has; warn of what is odd about it."""
        if not (folder.path / SPLIT).exists():
            save_split(dataset, folder.path / SPLIT)
        if (folder.path / DATA_SHEET).exists():
            return
        sheet = data_sheet(dataset)
        write_data_sheet(folder.path / DATA_SHEET, sheet)
        for warning in sheet.warnings:
            self._say(f"warning: {warning}")

    def _train(self, network: Network, dataset: Dataset, resolved: RunConfig, folder: RunFolder, goes_on: bool) -> RunResult:
        plan = self._plan
        unfinished = resume_state.load(folder.path, self._device) if goes_on and plan.full_epochs else None

        best = None
        cache = FeatureCache(network.eval(), resolved.weights_fingerprint, plan.workers, self._progress, self._say)
        if plan.config.head_search:
            network, best = self._head_search(cache, dataset, folder)
            if network is not cache.network:
                cache = replace(cache, network=network)
                if self._together.is_rank_zero:
                    folder.write_config(resolved.model_copy(update={"network": network.config}))
        elif plan.head_epochs and unfinished is None:
            best = self._head_stage(cache, dataset)
        if plan.full_epochs and (best is None or best.stopped is None):
            best = self._full_stage(network, dataset, best, folder, unfinished)
        assert best is not None, "a plan has a stage of at least one epoch"
        for reason in (best.stopped, best.ended):
            if reason is not None:
                self._say(f"{reason}; the weights of epoch {best.kept.epoch} are kept")
        return self._finish(network, cache, dataset, best, folder)

    @contextmanager
    def _logged(self, folder: RunFolder) -> Iterator[None]:
        """TensorBoard is among those who watch, if it was asked for."""
        if not self._config.tensorboard or not self._together.is_rank_zero:
            yield
            return
        with closing(TensorboardLog(folder.path, self._say)) as log:
            self._watchers = (*self._watchers, log)
            yield

    def prepare(self, *, is_new: bool = True) -> tuple[Network, Dataset, RunConfig]:
        """Return the network before training, the images and the resolved settings. is_new: see `load_dataset`."""
        config, clock = self._config, self._clock
        if self._device.type == "cpu":
            keep_freed_memory()
            keep_to_usable_cores()
        with self._together.rank_zero_first():
            backbone, weights_fingerprint = load_backbone(config, self._progress)
        preprocessing = resolve_preprocessing(config, backbone)
        with clock("data"), self._together.rank_zero_first():
            dataset = load_dataset(config, self._progress, is_new=is_new)
        torch.manual_seed(config.seed)
        network = Network(
            NetworkConfig(
                backbone=config.backbone,
                model_kwargs=config.model_kwargs,
                head=config.head,
                num_classes=len(dataset.classes),
                preprocessing=preprocessing,
                pretrained=config.weights != "none",
            ),
            backbone,
        ).to(self._device)
        if self._plan.full_epochs and smallest_part(len(dataset.train), self._plan) == 1:
            require_more_than_one_image(network, self._plan.from_scratch)
        _say_what_was_found(config, network, dataset, self._say)
        resolved = RunConfig(
            created=now(),
            asked=config,
            network=network.config,
            plan=self._plan,
            classes=dataset.classes,
            device=str(self._device),
            weights_fingerprint=weights_fingerprint,
            dataset_fingerprint=dataset.fingerprint,
            versions=versions(),
        )
        return network, dataset, resolved

    def _folder(self) -> Path:
        return self._together.broadcast(make_folder(self._config).path if self._together.is_rank_zero else Path())

    def _check_it_is_the_same(self, path: Path, saved: RunConfig, resolved: RunConfig) -> None:
        if self._plan.config.head_search:  # it may have found another head
            saved = saved.model_copy(update={"network": saved.network.model_copy(update={"head": resolved.network.head})})
        plan, today_plan = (run.plan.model_dump(exclude={"workers"}) for run in (saved, resolved))  # the number of cores may change
        for what, then, today in (
            ("its images are not", saved.dataset_fingerprint, resolved.dataset_fingerprint),
            ("its classes are not, or not in the order,", saved.classes, resolved.classes),
            ("the weights it starts from are not", saved.weights_fingerprint, resolved.weights_fingerprint),
            ("its network and its input are not", with_pretrained(saved).network, resolved.network),
            ("its settings do not come to", plan, today_plan),
        ):
            if then != today:
                raise SettingsError(f"{path}: {what} what they were when it began: put that back, or fine-tune anew")
        changed = [
            f"{name} {old} then, {resolved.versions[name]} now" for name, old in saved.versions.items() if resolved.versions[name] != old
        ]
        if changed:
            self._say(f"not the versions that it began with, so not to the bit what it would have been: {'; '.join(changed)}")

    def _features(self, cache: FeatureCache, dataset: Dataset) -> Features:
        with self._clock("features"), self._together.rank_zero_first():
            wanted = [View(self._plan.augmentation, number, self._config.seed) for number in range(self._plan.config.augment)]
            views = [cache.embeddings(dataset.train, f"Features of the train part, view {view.number + 1}", view) for view in wanted]
            if not views:
                views = [cache.embeddings(dataset.train, "Features of the train part")]
            return Features(views, cache.embeddings(dataset.val, "Features of the val part"))

    def _head_stage(self, cache: FeatureCache, dataset: Dataset) -> Best:
        plan, clock = self._plan, self._clock
        views, val = self._features(cache, dataset)
        with clock("head"), cache.progress("Training the head", plan.head_epochs) as advance:

            def on_epoch(row: EpochRow, is_best: bool) -> None:
                for watcher in self._watchers:
                    watcher.epoch(row, is_best)
                advance(1)

            best = train_head(cache.network, views, dataset.train.labels, val, dataset.val.labels, plan, self._config.seed, on_epoch)
        row = best.kept
        self._say(
            f"head: best of {len(best.rows)} epochs is {row.epoch}, validation top-1 {row.val_top1:.2%}, loss {row.val_loss:.4f}"
            f" (features {clock.seconds['features']:.1f} s, training {clock.seconds['head']:.1f} s)"
        )
        return best

    def _head_search(self, cache: FeatureCache, dataset: Dataset, folder: RunFolder) -> tuple[Network, Best]:
        heads = heads_to_try(self._config.head)
        features = {self._config.head: self._features(cache, dataset)}

        def of(network: Network) -> Features:
            head = network.config.head
            if head not in features:
                features[head] = self._features(replace(cache, network=network), dataset)
            return features[head]

        with self._clock("head"), self._progress("Trying heads", search_size(heads, self._plan)) as advance:
            searched = search_head(
                cache.network, heads, of, dataset.train.labels, dataset.val.labels, self._plan, self._config.seed, lambda _: advance(1)
            )
        if self._together.is_rank_zero:
            write_search(folder.path / SEARCH, searched.tried)
        self._say(f"head: best of {len(searched.tried)} settings is {searched.chosen} (all of them in {folder.path / SEARCH})")
        return searched.network, searched.best

    def _full_stage(
        self, network: Network, dataset: Dataset, before: Best | None, folder: RunFolder, unfinished: resume_state.Unfinished | None
    ) -> Best:
        first = self._together.is_rank_zero
        best = Best(snapshot(network), len(dataset.val))
        if before is not None:
            best.row, best.rows = before.row, before.rows
        if unfinished is not None:
            best.row, best.rows = unfinished.best, list(unfinished.rows)
            if unfinished.best.epoch == len(unfinished.rows):  # it may have been cut short before the best was written
                best.state = unfinished.position.average or unfinished.position.model
            else:
                best.state = folder.read_checkpoint(self._device)
            self._say(f"going on after epoch {len(best.rows)}; the best so far is {unfinished.best.epoch}")
        if first and best.row is not None:
            folder.write_checkpoint(best.state)

        def on_epoch(row: EpochRow, is_best: bool) -> None:
            if first:
                folder.write_metrics(best.rows)
                if is_best:  # what a run that is cut short leaves
                    folder.write_checkpoint(best.state)
            for watcher in self._watchers:
                watcher.epoch(row, is_best)
            self._say(
                f"epoch {row.epoch}: training loss {row.train_loss:.4f}, top-1 {row.train_top1:.2%}; validation loss {row.val_loss:.4f},"
                f" top-1 {row.val_top1:.2%}{' (best)' if is_best else ''}; {row.seconds:.1f} s"
            )

        def on_step(number: int, loss: float) -> None:
            for watcher in self._watchers:
                watcher.step(number, loss)

        def keep(position: Position) -> None:
            if first:
                resume_state.keep(folder.path, position, best)

        with self._clock("full"):
            listeners = Listeners(self._progress, on_epoch, on_step, keep, self._say)
            begin = None if unfinished is None else unfinished.position
            train_all(network, dataset, self._plan, self._config.seed, best, listeners, self._together, begin)
        return best

    def _finish(self, network: Network, cache: FeatureCache, dataset: Dataset, best: Best, folder: RunFolder) -> RunResult:
        plan, clock, first = self._plan, self._clock, self._together.is_rank_zero
        if first:
            folder.write_checkpoint(network.state_dict())
            folder.write_metrics(best.rows)
        with clock("evaluation"):
            evaluate = _from_features(cache, self._together) if plan.full_epochs == 0 else self._from_images(network)
            logits = {name: evaluate(part, f"Evaluating on the {name} part") for name, part in dataset.parts.items() if name != "train"}
        scores = {name: score(values, torch.from_numpy(dataset.parts[name].labels), dataset.classes) for name, values in logits.items()}
        if first:
            with clock("report"):
                figures.draw_curves(best.rows, best.kept.epoch, folder.path / CURVES)
                figures.draw_confusion(scores["val"], "validation", folder.path / CONFUSION)
                figures.draw_reliability(scores["val"], "validation", folder.path / RELIABILITY)
                explain = figures.explained_by(network)
                figures.draw_mistakes(explain, dataset.val, logits["val"], dataset.classes, folder.path / MISTAKES)
            write_predictions(folder.path / PREDICTIONS, predictions(dataset.val, logits["val"], dataset.classes))
        results = Results(
            best_epoch=best.kept.epoch,
            best_stage=best.kept.stage,
            stopped=best.stopped or best.ended,
            val=scores["val"],
            test=scores.get("test"),
            seconds=clock.seconds,
            images={name: len(part) for name, part in dataset.parts.items()},
            left_out=len(dataset.left_out),
            network_output=output_of(network),
        )
        if first:
            folder.write_results(results)
            resume_state.forget(folder.path)
            write_report(folder.path)
        self._say(f"kept: the network of {describe_kept(best.kept.epoch, best.kept.stage, self._config.mode)}")
        for name, of_part in scores.items():
            self._say(f"{name}: {of_part.top1:.2%} of {of_part.count:,} images right, loss {of_part.loss:.4f}")
        self._say(f"run written to {folder.path}, all of it on one page in {folder.path / REPORT}")
        return RunResult(folder.path, results)

    def _from_images(self, network: Network) -> Callable[[Part, str], Tensor]:
        def evaluate(part: Part, description: str) -> Tensor:
            own = len(range(self._together.rank, len(part), self._together.world))
            with self._progress(description, own) as advance:
                return classify_images(network, part, self._plan, advance, self._together)

        return evaluate


def _from_features(cache: FeatureCache, together: DistributedContext) -> Callable[[Part, str], Tensor]:
    def evaluate(part: Part, description: str) -> Tensor:
        with together.rank_zero_first():
            embeddings = cache.embeddings(part, description)
        return classify_embeddings(cache.network, embeddings)

    return evaluate


def _say_what_was_found(config: FinetuneConfig, network: Network, dataset: Dataset, say: Say) -> None:
    size = network.config.preprocessing
    if config.weights == "none":
        weights = "random weights: nothing is pretrained (--weights none)"
    else:
        weights = "official weights" if config.weights == "pretrained" else f"weights of {config.weights}"
    frozen = ", all but the head frozen" if config.mode == "feature-extraction" else ""
    if config.weights == "none" and config.mode == "feature-extraction":
        say(
            "warning: --weights none with all but the head frozen: the head learns from random features; add --mode full,"
            " which trains all layers, or give weights with --weights FILE"
        )
    say(f"{config.backbone}: {weights}{frozen}; input {size.height}x{size.width}, head {config.head}")
    counts = ", ".join(f"{len(part):,} {name}" for name, part in dataset.parts.items())
    classes = ", ".join(dataset.classes[:8]) + (", ..." if len(dataset.classes) > 8 else "")
    say(f"{dataset.spec}: {len(dataset.classes)} classes ({classes}); images: {counts}")
    if dataset.layout:
        say(f"{dataset.spec}: {dataset.layout}")
    for line in describe(dataset.skipped):
        say(line)
    if dataset.left_out:
        first = dataset.left_out[0]
        many = "1 image" if len(dataset.left_out) == 1 else f"{len(dataset.left_out):,} images"
        say(f"left out: {many} that could not be read, such as {printable(first.name)}: {first.reason}")
