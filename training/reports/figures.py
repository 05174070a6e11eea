"""Figures of a run: learning curves, confusion matrix, reliability diagram, and the most confident mistakes with their maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from tlcli.contract.errors import ExportError
from tlcli.contract.images.heatmap import overlay
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.data.dataset import Dataset, Part
from tlcli.training.engine.stage import Best
from tlcli.training.metrics.scores import EpochRow, Scores
from tlcli.training.models.network import Network
from tlcli.training.models.target_layers import resolve_layers
from tlcli.training.reports.gradcam import gradcam, layer_gradients
from tlcli.training.reports.matplotlib_style import new_figure, plain, save_figure
from tlcli.training.settings.run_file_names import CONFUSION, CURVES, MISTAKES, RELIABILITY

Map = tuple[npt.NDArray[np.float32], Preprocessing]
"""Values of a map, `[h, w]`, and the preprocessing, which determines the image region that the map covers."""

Explain = Callable[[Image.Image, int], Map]
"""Function that computes the map of an image for a class."""

_TRAIN, _VAL, _BEST = "#8a8f98", "#1f5fbf", "#d1495b"
_MOST_CLASSES_WITH_COUNTS = 120
_MOST_CLASSES_WITH_ZEROS = 25
_SHEET_COLUMNS, _SHEET_ROWS = 3, 4
_TILE = 256
"""Length in pixels of the shorter side of an image on the contact sheet. The longer side is at most twice as long."""


MOST_TILES = _SHEET_COLUMNS * _SHEET_ROWS
"""Maximum number of images on a contact sheet."""


class Tile(NamedTuple):
    """Image of a contact sheet: its number in the part, the class whose map is drawn, the title, and True if that is to be red."""

    number: int
    class_index: int
    title: str
    is_wrong: bool


def draw_figures(folder: Path, network: Network, dataset: Dataset, best: Best, scores: Scores, logits: Tensor) -> None:
    """Draw all figures of a run with one label per image, and save them in its folder.

    Args:
        folder: run folder.
        network: best network, in eval mode.
        dataset: data set with a validation part.
        best: epochs of the run.
        scores: metrics of the validation part.
        logits: logits of the validation part, `[n, C]`.

    Raises:
        OSError: a figure cannot be written.
    """
    draw_curves(best.rows, best.kept.epoch, folder / CURVES)
    draw_confusion(scores, "validation", folder / CONFUSION)
    draw_reliability(scores, "validation", folder / RELIABILITY)
    draw_mistakes(gradcam_of(network), dataset.val, logits, dataset.classes, folder / MISTAKES)


def draw_curves(rows: Sequence[EpochRow], best_epoch: int, path: Path) -> None:
    """Plot training and validation loss and top-1 accuracy over the epochs to a PNG file. The best epoch and stage change are marked.

    With several labels per image, the validation part's mean average precision replaces the accuracy.
    """
    figure = new_figure(9.6, 3.8)
    loss, metric = figure.subplots(1, 2)
    epochs = [row.epoch for row in rows]
    marker = "o" if len(rows) <= 20 else None
    for axes, title, train, val in (
        (loss, "cross-entropy", [row.train_loss for row in rows], [row.val_loss for row in rows]),
        (metric, "top-1, %", [100 * row.train_top1 for row in rows], [100 * row.val_top1 for row in rows])
        if rows[0].val_mean_ap is None
        else (metric, "mAP, %", None, [100 * (row.val_mean_ap or 0.0) for row in rows]),
    ):
        if train is not None:
            axes.plot(epochs, train, color=_TRAIN, marker=marker, markersize=3, label="training")
        axes.plot(epochs, val, color=_VAL, marker=marker, markersize=3, label="validation")
        best = val[epochs.index(best_epoch)]
        axes.plot([best_epoch], [best], "o", color=_BEST, markersize=7, label=f"best: {best:.4g}, epoch {best_epoch}", zorder=3)
        for before, after in pairwise(rows):
            if before.stage != after.stage:
                axes.axvline(before.epoch + 0.5, color="0.6", linestyle=":", linewidth=1)
                axes.text(before.epoch + 0.6, 0.99, "all layers", transform=axes.get_xaxis_transform(), fontsize=8, color="0.4", va="top")
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_confusion(scores: Scores, part: str, path: Path) -> None:
    """Plot the confusion matrix to a PNG file. Cells show counts and are coloured by their fraction of the true class.

    If there are many classes, only those that occur are shown.

    Args:
        scores: metrics of the part.
        part: name of the part, for the title.
        path: output path of the PNG file.
    """
    counts = np.array(scores.confusion)
    shown = np.flatnonzero((counts.sum(0) + counts.sum(1) > 0) | (len(counts) <= _MOST_CLASSES_WITH_ZEROS))
    counts = counts[np.ix_(shown, shown)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    classes = len(counts)
    side = min(max(3.2, 0.42 * classes, 3.2 + 0.13 * classes), 18.0)
    figure = new_figure(side + 1.6, side + 0.9)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    labels = [plain(scores.classes[index].label) for index in shown]
    font = min(10.0, max(4.0, 0.5 * 72 * side / classes))  # half the height of a cell
    axes.set_xticks(range(classes), labels, rotation=0 if classes <= 4 else 90, fontsize=font)
    axes.set_yticks(range(classes), labels, fontsize=font)
    if classes <= _MOST_CLASSES_WITH_COUNTS:
        for true, predicted in np.argwhere((counts > 0) | (classes <= _MOST_CLASSES_WITH_ZEROS)):
            share = shares[true, predicted]
            colour = "white" if share > 0.55 else "0.75" if counts[true, predicted] == 0 else "black"
            axes.text(predicted, true, str(counts[true, predicted]), ha="center", va="center", fontsize=font, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{plain(part)}: {100 * scores.top1:.2f} % of {scores.count:,} images correct", fontsize=11)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, aspect=30)
    bar.set_label("fraction of the true class", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    save_figure(figure, path)


def draw_reliability(scores: Scores, part: str, path: Path) -> None:
    """Plot a reliability diagram to a PNG file: accuracy and number of predictions in each score bin.

    The diagram follows DeGroot and Fienberg 1983, as shown in Guo et al. 2017, arXiv:1706.04599, figure 1.

    Args:
        scores: metrics of the part.
        part: name of the part, for the title.
        path: output path of the PNG file.
    """
    figure = new_figure(4.6, 5.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [bin_ for bin_ in scores.calibration.bins if bin_.count]
    middle = [100 * (bin_.low + bin_.high) / 2 for bin_ in filled]
    width = 100 / len(scores.calibration.bins)
    confidence = [100 * (bin_.confidence or 0.0) for bin_ in filled]
    accuracy = [100 * (bin_.accuracy or 0.0) for bin_ in filled]
    upper.plot([0, 100], [0, 100], color="0.6", linestyle=":", linewidth=1)
    upper.bar(middle, accuracy, width=0.9 * width, color=_VAL, alpha=0.75, label="accuracy")
    upper.plot(confidence, confidence, "_", color=_BEST, markersize=14, markeredgewidth=2, label="mean score")
    upper.set_ylim(0, 102)
    upper.set_ylabel("accuracy, %")
    upper.set_title(f"{plain(part)}\nexpected calibration error {100 * scores.calibration.ece:.1f} %", fontsize=11)
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    lower.bar(middle, [bin_.count for bin_ in filled], width=0.9 * width, color=_TRAIN)
    lower.set_yscale("log")
    lower.yaxis.set_major_formatter("{x:,.0f}")
    lower.yaxis.set_minor_formatter("")
    lower.set_ylabel("predictions")
    lower.set_xlabel("score of the predicted class, %")
    lower.set_xlim(0, 100)
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def draw_mistakes(
    explain: Explain | None,
    part: Part,
    logits: Tensor,
    classes: Sequence[str],
    path: Path,
    kind: str = "validation",
    method: str = "Grad-CAM",
) -> None:
    """Draw a contact sheet of the most confident mistakes to a PNG file, with a map for the predicted class next to each image.

    The least confident correct predictions fill the remaining tiles.

    Args:
        explain: function that computes the maps; None to draw only the images, for a model without maps.
        part: part with n images.
        logits: logits of the part, `[n, C]`.
        classes: names of the C classes.
        path: output path of the PNG file.
        kind: kind of images, for the title.
        method: name of the map method, for the title.
    """
    scores, predicted = logits.softmax(1).max(1)
    labels = torch.from_numpy(part.labels)
    chosen = most_telling(logits, labels, MOST_TILES)
    wrong = predicted != labels
    mistakes, images = int(wrong.sum()), f"{len(part):,}{kind and ' '}{kind} images"
    if mistakes >= len(chosen):
        title = f"The most confident of {mistakes:,} mistakes on {images}"
    else:
        title = f"{f'{mistakes} wrong (red)' if mistakes else 'None wrong'} of {images}; the least confident correct ones (black)"
    maps = f"\neach image next to its {method} map for the predicted class" if explain is not None else ""
    tiles = []
    for index in chosen.tolist():
        predicted_class = int(predicted[index])
        prediction = f"{plain(classes[predicted_class])} {100 * float(scores[index]):.1f} %"
        tiles.append(Tile(index, predicted_class, f"{prediction}, is {plain(classes[int(labels[index])])}", bool(wrong[index])))
    draw_sheet(explain, part, tiles, f"{title}{maps}", path)


def draw_sheet(explain: Explain | None, part: Part, tiles: Sequence[Tile], title: str, path: Path) -> None:
    """Draw a contact sheet of a part's images to a PNG file, each next to a map of its class.

    Args:
        explain: function that computes the maps; None to draw only the images.
        part: part with the images.
        tiles: images to draw.
        title: title of the sheet.
        path: output path of the PNG file.
    """
    rows = -(-len(tiles) // _SHEET_COLUMNS)
    figure = new_figure(4.2 * _SHEET_COLUMNS, 2.45 * rows + 0.7)
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(rows, _SHEET_COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, tile in zip(grid, tiles, strict=False):
        axes.imshow(np.asarray(_with_map(explain, part.load(tile.number), tile.class_index)))
        axes.set_title(tile.title, fontsize=9, color=_BEST if tile.is_wrong else "black")
        axes.text(
            0.5, -0.02, plain(_ending(part.names[tile.number])), transform=axes.transAxes, fontsize=6.5, color="0.45", ha="center", va="top"
        )
    save_figure(figure, path)


def most_telling(logits: Tensor, labels: Tensor, most: int) -> Tensor:
    """Select the images that `draw_mistakes` shows.

    Wrong predictions come first, sorted from most to least confident, followed by correct predictions from least to most confident.

    Args:
        logits: class logits, `[n, C]`.
        labels: class indices, int64 `[n]`.
        most: maximum number of images.

    Returns:
        Image indices, int64, at most `most`.
    """
    scores, predicted = logits.softmax(1).max(1)
    wrong = predicted != labels
    return torch.where(wrong, -scores, 1 + scores).argsort(stable=True)[:most]


def gradcam_of(network: Network) -> Explain | None:
    """Return a function that computes Grad-CAM maps of the default layer for a network in eval mode; None if it has no such layer."""
    try:
        (layer,) = resolve_layers(network, None)
    except ExportError:  # every layer has a single position
        return None

    def explain(image: Image.Image, class_index: int) -> Map:
        pixels = torch.from_numpy(network.config.preprocessing.apply(image))
        _, activations, gradients = layer_gradients(network, layer, pixels[None], torch.tensor([[class_index]]))
        return gradcam(activations, gradients)[0, 0].float().cpu().numpy(), network.config.preprocessing

    return explain


def _with_map(explain: Explain | None, image: Image.Image, class_index: int) -> Image.Image:
    scale = min(_TILE / min(image.size), 2 * _TILE / max(image.size))
    shown = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC)
    if explain is None:
        return shown
    values, preprocessing = explain(image, class_index)
    mapped = overlay(shown, values, preprocessing.visible_box(*shown.size))
    pair = Image.new("RGB", (2 * shown.width + 6, shown.height), "white")
    pair.paste(shown, (0, 0))
    pair.paste(mapped.resize(shown.size), (shown.width + 6, 0))
    return pair


def _ending(name: str, most: int = 48) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]
