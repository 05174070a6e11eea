"""Execution of a fine-tuning run, from setup to the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tlcli.contract.errors import ImageError, SettingsError
from tlcli.contract.process.malloc import keep_freed_memory
from tlcli.training.data.dataset import Dataset, Part
from tlcli.training.data.load import load_dataset, save_split
from tlcli.training.engine.all_layers import AllLayers, classify_images, smallest_micro_batch
from tlcli.training.engine.callbacks import Callback, CallbackList
from tlcli.training.engine.ema import snapshot
from tlcli.training.engine.head import classify_embeddings, train_head
from tlcli.training.engine.head_search import Features, heads_to_try, search_head, search_size, write_search
from tlcli.training.engine.model_selection import describe_kept
from tlcli.training.engine.stage import Best
from tlcli.training.engine.step import Log, no_log
from tlcli.training.features.cache import FeatureCache, View
from tlcli.training.features.part_overlap import near_duplicates_across_parts
from tlcli.training.metrics.multi_label import MultiLabelScores
from tlcli.training.metrics.scores import EpochRow, PartScores, Results, score_parts
from tlcli.training.models.batch_norms import require_more_than_one_image
from tlcli.training.models.fingerprint import output_of
from tlcli.training.models.known_classes import with_classes
from tlcli.training.models.network import Network, NetworkConfig
from tlcli.training.models.pretrained_preprocessing import resolve_preprocessing
from tlcli.training.models.weights import fingerprint, load_backbone
from tlcli.training.reports.datasheet import describe_dataset, origin_of, read_data_sheet, with_near_duplicates, write_data_sheet
from tlcli.training.reports.figures import draw_curves, draw_figures, gradcam_of
from tlcli.training.reports.html.report import write_report
from tlcli.training.reports.label_figures import draw_label_mistakes
from tlcli.training.run_messages import EpochLog, metric_of, result_lines, setup_messages
from tlcli.training.runs import resume_state
from tlcli.training.runs.load_run import Run, load_run
from tlcli.training.runs.predictions import predictions, write_label_predictions, write_predictions
from tlcli.training.runs.recorder import RunRecorder
from tlcli.training.runs.resume_check import changed_versions, require_unchanged
from tlcli.training.runs.resume_state import Unfinished
from tlcli.training.runs.run_folder import RunConfig, RunFolder, make_folder, now, read_results, versions
from tlcli.training.runs.split_file import read_fingerprints
from tlcli.training.runs.starting_run import describe_classes
from tlcli.training.runs.tensorboard import TensorboardLog
from tlcli.training.runtime.device import keep_to_usable_cores
from tlcli.training.runtime.distributed import DistributedContext, is_rank_zero
from tlcli.training.runtime.progress import Advance, ProgressFactory, silent
from tlcli.training.runtime.timer import Timer
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.plan import Plan, plan_for_task
from tlcli.training.settings.run_file_names import CONFIG, CURVES, DATA_SHEET, MISTAKES, PREDICTIONS, REPORT, SEARCH, SPLIT


@dataclass(frozen=True)
class RunResult:
    """Result of a finished run.

    path: run folder, which can be read with `tlcli.training.runs.load_run.load_run`.
    trained: False if the run had already finished earlier.
    """

    path: Path
    results: Results
    trained: bool = True

    @property
    def metrics(self) -> dict[str, float]:
        """Final metrics by name; see `Results.metrics`."""
        return self.results.metrics


class SavedRun(NamedTuple):
    """Unfinished run on disk, with its folder and saved config."""

    path: Path
    config: RunConfig


class FinetuneRun:
    """Fine-tuning run.

    `run` executes all phases: set up the network and the data, open the folder, train the head, train all layers, evaluate, save and
    report.

    network: network to train, set by `setup`.
    dataset: data set, set by `setup`.
    resolved: config as saved in the run folder, set by `setup`.
    folder: run folder, set when it is claimed.
    """

    network: Network
    dataset: Dataset
    resolved: RunConfig
    folder: RunFolder

    def __init__(
        self,
        config: FinetuneConfig,
        plan: Plan,
        device: torch.device,
        dist: DistributedContext,
        progress: ProgressFactory,
        log: Log,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Create a run. In processes other than rank 0, it logs nothing, shows no progress and runs no callbacks.

        Args:
            config: settings of the run.
            plan: training plan resolved from the settings.
            device: device to train on.
            dist: distributed context of the processes that train together.
            progress, log, callbacks: see `tlcli.training.fine_tuning.finetune`.
        """
        self._config = config
        self._plan = plan
        self._device = torch.device(device.type, dist.local) if device.type == "cuda" else device
        self._dist = dist
        self._progress: ProgressFactory = progress if dist.is_rank_zero else silent
        self._log: Log = log if dist.is_rank_zero else no_log
        self._callbacks: tuple[Callback, ...] = tuple(callbacks) if dist.is_rank_zero else ()
        self._timer = Timer()
        self._starting_run: Run | None = None

    def run(self, saved: SavedRun | None = None) -> RunResult:
        """Train the network and write the run folder.

        Args:
            saved: interrupted run to resume; None starts a new run.

        Raises:
            Exception: see `tlcli.training.fine_tuning.finetune` and `resume`.
        """
        with ExitStack() as resources:
            if saved is None:
                self.setup()
                self._create_folder(resources)
            else:
                self._claim(saved.path, resources)
                results = self._dist.broadcast(read_results(saved.path) if self._dist.is_rank_zero else None)
                if results is not None:  # another process finished the run before this one claimed it
                    return complete_report(saved.path, results, self._log)
                CallbackList(self._callbacks).on_run_start(saved.path)
                self.setup(is_new=False)
                self._check_unchanged(saved)
            if self._dist.is_rank_zero:
                self._describe_data()
                if self._config.tensorboard:
                    self._callbacks += (resources.enter_context(closing(TensorboardLog(self.folder.path, self._log))),)
            best = self._train(resumes=saved is not None)
            return self._finish(best)

    # ---- setup

    def setup(self, *, is_new: bool = True) -> None:
        """Load the backbone and the data set, and build the network. Sets `network`, `dataset` and `resolved`.

        Args:
            is_new: see `tlcli.training.data.load.load_dataset`.
        """
        config, plan = self._config, self._plan
        if self._device.type == "cpu":
            keep_freed_memory()
            keep_to_usable_cores()
        build_network, weights_fingerprint = self._start()
        with self._timer("data"), self._dist.rank_zero_first():
            self.dataset = load_dataset(config, self._progress, is_new=is_new)
        plan = self._plan = plan_for_task(plan, self.dataset.task)
        self._require_weights_can_be_used()
        torch.manual_seed(config.seed)
        self.network = build_network(self.dataset.classes).to(self._device)
        network_config = self.network.config
        if plan.full_epochs and smallest_micro_batch(len(self.dataset.train), plan) == 1:
            require_more_than_one_image(self.network, plan.from_scratch)
        for line in setup_messages(config, network_config, self.dataset):
            self._log(line)
        if self._starting_run is not None:
            self._log(describe_classes(self._starting_run.path, self._starting_run.classes, self.dataset.classes))
        self.resolved = RunConfig(
            created=now(),
            asked=config,
            network=network_config,
            plan=plan,
            classes=self.dataset.classes,
            task=self.dataset.task,
            device=str(self._device),
            weights_fingerprint=weights_fingerprint,
            dataset_fingerprint=self.dataset.fingerprint,
            versions=versions(),
        )

    def _start(self) -> tuple[Callable[[Sequence[str]], Network], str]:
        """Load the initial weights. Return a function that builds the network for the classes of the data set, and their fingerprint."""
        config = self._config
        if config.from_run is not None:
            start = self._starting_run = load_run(config.from_run)
            return lambda classes: with_classes(start.network, start.classes, classes), fingerprint(start.network.state_dict())
        with self._dist.rank_zero_first():
            backbone, weights_fingerprint = load_backbone(config, self._progress)
        preprocessing = resolve_preprocessing(config, backbone)

        def build_network(classes: Sequence[str]) -> Network:
            network_config = NetworkConfig(
                backbone=config.backbone,
                model_kwargs=config.model_kwargs,
                head=config.head,
                num_classes=len(classes),
                preprocessing=preprocessing,
                pretrained=config.weights != "none",
            )
            return Network(network_config, backbone)

        return build_network, weights_fingerprint

    def _require_weights_can_be_used(self) -> None:
        """Check that images with weights are not mixed, since the mixture would need a weight for each of its images.

        Raises:
            SettingsError: they are.
        """
        for flag, alpha in (("--mixup", self._config.mixup), ("--cutmix", self._config.cutmix)):
            if alpha and self.dataset.train.weights is not None:
                raise SettingsError(
                    f"{flag} cannot be combined with the weights of images in {self.dataset.spec}: leave {flag} out, or remove the weights"
                )

    def _create_folder(self, resources: ExitStack) -> None:
        """Create and claim the folder of a new run, and write its config.

        Raises:
            SettingsError: another process started a run in the same folder.
        """
        path = self._dist.broadcast(make_folder(self._config).path if self._dist.is_rank_zero else Path())
        self._claim(path, resources)
        if self._dist.broadcast((path / CONFIG).exists()):
            raise SettingsError(f"{path}: another process trained here in the meantime: name a new folder with --output")
        if self._dist.is_rank_zero:
            self.folder.write_config(self.resolved)
        CallbackList(self._callbacks).on_run_start(path)

    def _claim(self, path: Path, resources: ExitStack) -> None:
        self.folder = RunFolder(path)
        if self._dist.is_rank_zero:
            resources.enter_context(self.folder.claimed(self._log))

    def _check_unchanged(self, saved: SavedRun) -> None:
        require_unchanged(saved.path, saved.config, self.resolved)
        changed = changed_versions(saved.config, self.resolved)
        if changed:
            self._log(f"package versions changed since this run started, so results may not be bit-identical: {'; '.join(changed)}")
        if self._dist.is_rank_zero and saved.config.asked != self.resolved.asked:  # the data set has moved
            self.folder.write_config(saved.config.model_copy(update={"asked": self.resolved.asked}))

    def _describe_data(self) -> None:
        """Write the split and the data sheet if they do not exist yet, and log the warnings of a new data sheet."""
        path = self.folder.path
        if not (path / SPLIT).exists():
            save_split(self.dataset, path / SPLIT)
        if (path / DATA_SHEET).exists():
            return
        start = self._starting_run
        origin = None if start is None else origin_of(start.path.name, start.classes, read_fingerprints(start.path), self.dataset)
        sheet = describe_dataset(self.dataset, origin)
        write_data_sheet(path / DATA_SHEET, sheet)
        for warning in sheet.warnings:
            self._log(f"warning: {warning}")

    # ---- training

    def _train(self, *, resumes: bool) -> Best:
        """Train the head and then all layers, according to the plan. Return the best epoch."""
        plan = self._plan
        unfinished = resume_state.load(self.folder.path, self._device) if resumes and plan.full_epochs else None
        self._cache = FeatureCache(self.network.eval(), self.resolved.weights_fingerprint, plan.workers, self._progress, self._log)
        best = None
        if plan.config.head_search:
            best = self._search_head()
        elif plan.head_epochs and unfinished is None:
            best = self._train_head()
        if plan.full_epochs and (best is None or best.stopped is None):
            best = self._train_all_layers(best, unfinished)
        assert best is not None, "a plan has a stage of at least one epoch"
        for reason in (best.stopped, best.ended):
            if reason is not None:
                self._log(f"{reason}; the weights of epoch {best.kept.epoch} are kept")
        return best

    def _features(self, cache: FeatureCache) -> Features:
        """Return the features of the training and validation parts, computed or read from the cache."""
        train, seed = self.dataset.train, self._config.seed
        with self._timer("features"), self._dist.rank_zero_first():
            views = [View(self._plan.augmentation, number, seed) for number in range(self._plan.config.augment)]
            embeddings = [cache.embeddings(train, f"Features of the train part, view {view.number + 1}", view) for view in views]
            if not views:
                embeddings = [cache.embeddings(train, "Features of the train part")]
            return Features(embeddings, cache.embeddings(self.dataset.val, "Features of the val part"))

    def _train_head(self) -> Best:
        plan, dataset = self._plan, self.dataset
        views, val = self._features(self._cache)
        with self._timer("head"), self._progress("Training the head", plan.head_epochs) as advance:
            callback = _HeadCallback(self._callbacks, advance)
            best = train_head(
                self.network,
                views,
                dataset.train.labels,
                val,
                dataset.val.labels,
                plan,
                self._config.seed,
                callback,
                dataset.train.weights,
            )
        row, seconds = best.kept, self._timer.seconds
        self._log(
            f"head: best of {len(best.rows)} epochs is {row.epoch}, validation {metric_of(row)}, loss {row.val_loss:.4f}"
            f" (features {seconds['features']:.1f} s, training {seconds['head']:.1f} s)"
        )
        return best

    def _search_head(self) -> Best:
        """Run the head search, write its table, and continue with the network that has the best head."""
        heads, labels, val_labels = heads_to_try(self._config.head), self.dataset.train.labels, self.dataset.val.labels
        computed = {self._config.head: self._features(self._cache)}

        def features(network: Network) -> Features:
            head = network.config.head
            if head not in computed:
                computed[head] = self._features(replace(self._cache, network=network))
            return computed[head]

        with self._timer("head"), self._progress("Trying heads", search_size(heads, self._plan)) as advance:
            search = search_head(
                self.network,
                heads,
                features,
                labels,
                val_labels,
                self._plan,
                self._config.seed,
                on_trial=lambda _: advance(1),
                weights=self.dataset.train.weights,
            )
        table = self.folder.path / SEARCH
        if self._dist.is_rank_zero:
            write_search(table, search.trials)
        self._log(f"head: best of {len(search.trials)} settings is {search.chosen} (all of them in {table})")
        if search.network is not self.network:
            self.network, self._cache = search.network, replace(self._cache, network=search.network)
            if self._dist.is_rank_zero:
                self.folder.write_config(self.resolved.model_copy(update={"network": search.network.config}))
        return search.best

    def _train_all_layers(self, head: Best | None, unfinished: Unfinished | None) -> Best:
        """Train all layers, from the start or from the state of an interrupted run.

        Args:
            head: result of the head stage; None without one.
            unfinished: state of an interrupted run; None starts fresh.
        """
        best = Best(snapshot(self.network), len(self.dataset.val))
        checkpoint = None
        if head is not None:
            best.row, best.rows = head.row, head.rows
        if unfinished is not None:
            checkpoint = unfinished.checkpoint
            best.row, best.rows = unfinished.best, list(unfinished.rows)
            if unfinished.best.epoch == len(unfinished.rows):  # the run may have been interrupted before its weights were written
                best.state = checkpoint.average or checkpoint.model
            else:
                best.state = self.folder.read_checkpoint(self._device)
            self._log(f"resuming after epoch {len(best.rows)}; the best so far is epoch {unfinished.best.epoch}")
        callbacks: list[Callback] = [*self._callbacks, EpochLog(self._log)]
        if self._dist.is_rank_zero:
            callbacks.insert(0, RunRecorder(self.folder, best))
            if best.row is not None:
                self.folder.write_checkpoint(best.state)
        first_epoch = len(best.rows) + 1 - (0 if checkpoint is None else checkpoint.epochs)
        stage = AllLayers(self.network, self.dataset, self._plan, self._config.seed, self._dist, self._progress, self._log, first_epoch)
        with self._timer("full"):
            stage.train(best, CallbackList(callbacks), checkpoint)
        return best

    # ---- results

    def _finish(self, best: Best) -> RunResult:
        """Evaluate the best network, write the results and the report, and log the results."""
        if self._dist.is_rank_zero:
            self.folder.write_checkpoint(self.network.state_dict())
            self.folder.write_metrics(best.rows)
        with self._timer("evaluation"):
            parts = {name: part for name, part in self.dataset.parts.items() if name != "train"}
            logits = {name: self._evaluate(part, f"Evaluating on the {name} part") for name, part in parts.items()}
        scores = score_parts(logits, {name: torch.from_numpy(part.labels) for name, part in parts.items()}, self.dataset.classes)
        if self._dist.is_rank_zero:
            with self._timer("report"):
                self._draw_figures(best, scores["val"], logits["val"])
            self._write_predictions(scores["val"], logits["val"])
        results = self._results(best, scores)
        if self._dist.is_rank_zero:
            self.folder.write_results(results)
            resume_state.remove(self.folder.path)
            self._describe_near_duplicates()
            write_report(self.folder.path)
        self._log_results(results, scores)
        return RunResult(self.folder.path, results)

    def _draw_figures(self, best: Best, scores: PartScores, logits: Tensor) -> None:
        folder = self.folder.path
        if isinstance(scores, MultiLabelScores):
            draw_curves(best.rows, best.kept.epoch, folder / CURVES)
            draw_label_mistakes(gradcam_of(self.network), self.dataset.val, logits, scores, folder / MISTAKES)
        else:
            draw_figures(folder, self.network, self.dataset, best, scores, logits)

    def _write_predictions(self, scores: PartScores, logits: Tensor) -> None:
        path, val, classes = self.folder.path / PREDICTIONS, self.dataset.val, self.dataset.classes
        if isinstance(scores, MultiLabelScores):
            write_label_predictions(path, val, logits, classes, scores.thresholds)
        else:
            write_predictions(path, predictions(val, logits, classes))

    def _describe_near_duplicates(self) -> None:
        """Add the near-duplicates across parts to the data sheet, if the features of all parts were computed for the training."""
        path = self.folder.path / DATA_SHEET
        sheet = read_data_sheet(self.folder.path)
        if self._plan.full_epochs or self._plan.config.augment or sheet is None or sheet.near_duplicate_count is not None:
            return
        embeddings = {name: self._cache.embeddings(part, f"Features of the {name} part") for name, part in self.dataset.parts.items()}
        try:
            pairs = near_duplicates_across_parts(self.dataset, embeddings)
        except ImageError:
            return  # the run is finished, and an image that was removed since then does not fail it
        if pairs is None:
            return
        described = with_near_duplicates(sheet, self.dataset, pairs)
        write_data_sheet(path, described)
        for warning in described.warnings[len(sheet.warnings) :]:
            self._log(f"warning: {warning}")

    def _evaluate(self, part: Part, description: str) -> Tensor:
        """Return the logits `[n, C]` for a part. Cached features are used if only the head was trained."""
        if self._plan.full_epochs == 0:
            with self._dist.rank_zero_first():
                embeddings = self._cache.embeddings(part, description)
            return classify_embeddings(self.network, embeddings)
        with self._progress(description, len(range(self._dist.rank, len(part), self._dist.world))) as advance:
            return classify_images(self.network, part, self._plan, advance, self._dist)

    def _results(self, best: Best, scores: dict[str, PartScores]) -> Results:
        return Results(
            best_epoch=best.kept.epoch,
            best_stage=best.kept.stage,
            stopped=best.stopped or best.ended,
            val=scores["val"],
            test=scores.get("test"),
            seconds=self._timer.seconds,
            images={name: len(part) for name, part in self.dataset.parts.items()},
            left_out=len(self.dataset.left_out),
            network_output=output_of(self.network),
        )

    def _log_results(self, results: Results, scores: dict[str, PartScores]) -> None:
        self._log(f"kept: the network of {describe_kept(results.best_epoch, results.best_stage, self._config.mode)}")
        classes = self.dataset.classes
        for line in result_lines(scores, dict(zip(classes, self.dataset.train.class_counts(len(classes)), strict=True))):
            self._log(line)
        self._log(f"run written to {self.folder.path}; its report is {self.folder.path / REPORT}")


class _HeadCallback(CallbackList):
    """Callbacks of a run during the head stage. Steps are too short to report, and each epoch advances a progress bar."""

    def __init__(self, callbacks: Sequence[Callback], advance: Advance) -> None:
        super().__init__(callbacks)
        self._advance = advance

    def on_step_end(self, number: int, loss: float) -> None:
        pass

    def on_checkpoint(self, checkpoint: object) -> None:
        pass

    def on_epoch_end(self, row: EpochRow, is_best: bool) -> None:
        super().on_epoch_end(row, is_best)
        self._advance(1)


def complete_report(path: Path, results: Results, log: Log) -> RunResult:
    """Return the result of a run that had already finished, and write its report if it is missing."""
    if is_rank_zero() and not (path / REPORT).exists():
        write_report(path)
    log(f"{path}: this run is finished: there is nothing to resume")
    return RunResult(path, results, trained=False)
