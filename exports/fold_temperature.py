"""A temperature on its way into the graph: `softmax(logits / T)` at no cost, since the last layer's weights are divided by T.

Maps that are in proportion to the gradient are divided by it too, and look the same. Grad-CAM++ has shares of the gradient's powers for
weights, and Score-CAM and `softmax` explain probabilities: theirs change a little.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from tlcli.contract.errors import SettingsError
from tlcli.training.data.dataset import Part
from tlcli.training.engine.all_layers import classify_images
from tlcli.training.engine.head import classify_embeddings
from tlcli.training.features.cache import FeatureCache
from tlcli.training.metrics.calibration import calibration
from tlcli.training.runs.load_run import Run
from tlcli.training.runs.run_folder import read_config
from tlcli.training.runtime.progress import ProgressFactory

Temperature = float | Literal["fit"]
"""A number above 0, 1 for none; or `fit`, which finds the one that suits a run's validation part."""


def require_temperature(temperature: Temperature) -> None:
    """Raises: SettingsError: no number above 0, nor `fit`."""
    if temperature != "fit" and not (math.isfinite(temperature) and temperature > 0):
        raise SettingsError(f"--temperature {temperature:g}: expected a number above 0, or fit")


def expected_error(logits: Tensor, labels: Tensor) -> float:
    """The expected calibration error of `softmax(logits)`, in [0, 1]. logits: `[n, C]`. labels: `[n]`."""
    confidence, first = logits.softmax(1).max(1)
    return calibration(confidence.numpy(), (first == labels).numpy()).ece


def logits_of(run: Run, part: Part, progress: ProgressFactory) -> Tensor:
    """What a run's network answers to a part, `[n, C]`; from the cached features where only the head was trained.

    Raises:
        ImageError: an image that cannot be read any more.
    """
    config = read_config(run.path)
    if run.config.mode == "feature-extraction":
        cache = FeatureCache(run.network, config.weights_fingerprint, config.plan.workers, progress)
        return classify_embeddings(run.network, cache.embeddings(part, "Features of the val part"))
    with progress("Evaluating on the val part", len(part)) as advance:
        return classify_images(run.network, part, config.plan, advance)
