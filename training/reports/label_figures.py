"""Contact sheet of wrong labels, for a network that gives an image several labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from tlcli.training.data.dataset import Part
from tlcli.training.metrics.multi_label import MultiLabelScores
from tlcli.training.reports.figures import MOST_TILES, Explain, Tile, draw_sheet
from tlcli.training.reports.matplotlib_style import plain


def draw_label_mistakes(
    explain: Explain | None,
    part: Part,
    logits: Tensor,
    scores: MultiLabelScores,
    path: Path,
    kind: str = "validation",
    method: str = "Grad-CAM",
) -> None:
    """Draw a contact sheet of the most confident wrong labels to a PNG file, with a map for the label next to each image.

    A label is wrong if it is assigned to an image without it, or missing on an image that has it. The least certain right labels fill the
    remaining tiles.

    Args:
        explain: function that computes the maps; None to draw only the images, for a model without maps.
        part: part with n images.
        logits: logits of the part, `[n, C]`.
        scores: scores of the part, with the thresholds.
        path: output path of the PNG file.
        kind: kind of images, for the title.
        method: name of the map method, for the title.
    """
    values = logits.double().sigmoid().cpu().numpy()
    thresholds = np.array(scores.thresholds)
    assigned, truth = values >= thresholds, part.labels == 1
    # Distance to the threshold, relative to the largest one possible on that side.
    certainty = np.where(assigned, (values - thresholds) / (1 - thresholds), (thresholds - values) / thresholds)
    wrong = assigned != truth
    order = np.argsort(np.where(wrong, -certainty, 1 + np.where(assigned, certainty, 2)), axis=None, kind="stable")[:MOST_TILES]
    tiles = []
    for image, label in (divmod(int(place), len(thresholds)) for place in order):
        verdict = "right" if not wrong[image, label] else "wrong" if assigned[image, label] else "missing"
        name, value, threshold = plain(scores.classes[label].label), values[image, label], thresholds[label]
        title = f"{verdict}: {name} {100 * value:.1f} % (threshold {100 * threshold:.1f} %)"
        tiles.append(Tile(image, label, title, bool(wrong[image, label])))
    images = f"{len(part):,}{kind and ' '}{kind} images"
    heading = f"{int(wrong.sum()):,} wrong or missing labels (red) on {images}; the most confident first"
    maps = f"\neach image next to its {method} map for the label" if explain is not None else ""
    draw_sheet(explain, part, tiles, heading + maps, path)
