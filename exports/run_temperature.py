"""Temperature for the export of a run, fitted on its validation split or given, and its effect on the calibration error."""

from __future__ import annotations

import torch
from torch import Tensor

from tlcli.exports.fold_temperature import Temperature
from tlcli.exports.publication import Say
from tlcli.training.data.dataset import Part
from tlcli.training.engine.all_layers import classify_images
from tlcli.training.engine.head import classify_embeddings
from tlcli.training.features.cache import FeatureCache
from tlcli.training.metrics.calibration import calibration
from tlcli.training.metrics.temperature_scaling import fit_temperature
from tlcli.training.runs.load_run import Run
from tlcli.training.runs.run_folder import read_config
from tlcli.training.runtime.progress import ProgressFactory


def settle_temperature(temperature: Temperature, run: Run, val: Part, progress: ProgressFactory, say: Say) -> float:
    """Resolve a temperature to a number, and report its effect on the calibration error of the validation split.

    `fit` is fitted on the validation split; a number is returned as it is.
    """
    logits, labels = logits_of(run, val, progress), torch.from_numpy(val.labels)
    origin = "as given"
    if temperature == "fit":
        temperature, origin = fit_temperature(logits, labels), f"fitted on {len(val):,} validation images"
    before, after = expected_error(logits, labels), expected_error(logits / temperature, labels)
    say(f"temperature {temperature:.4g}, {origin}: expected calibration error on them {after:.2%}, {before:.2%} without it")
    return temperature


def expected_error(logits: Tensor, labels: Tensor) -> float:
    """Compute the expected calibration error (ECE) of `softmax(logits)`, in [0, 1], for logits `[n, C]` and labels `[n]`."""
    confidence, first = logits.softmax(1).max(1)
    return calibration(confidence.numpy(), (first == labels).numpy()).ece


def logits_of(run: Run, part: Part, progress: ProgressFactory) -> Tensor:
    """Compute the logits `[n, C]` of a run's network for a data set split, from cached features if only the head was trained.

    Raises:
        ImageError: an image can no longer be read.
    """
    config = read_config(run.path)
    if run.config.mode == "feature-extraction":
        cache = FeatureCache(run.network, config.weights_fingerprint, config.plan.workers, progress)
        return classify_embeddings(run.network, cache.embeddings(part, "Features of the val part"))
    with progress("Evaluating on the val part", len(part)) as advance:
        return classify_images(run.network, part, config.plan, advance)
