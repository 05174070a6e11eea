"""Plot that compares the learning curves of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tlcli.training.reports.matplotlib_style import new_figure, plain, save_figure
from tlcli.training.runs.summary import Epoch

_COLOURS = ("#1f5fbf", "#d1495b", "#2a9d6f", "#e08a1e", "#7a4fb5", "#12a5b8", "#b0307f", "#7d8c1f", "#8c5a2b", "#4a5a78")
"""Colours of the runs. If there are more runs, the colours repeat with another line style."""
_LINES = ("-", "--", ":")


def draw_compared(runs: Mapping[str, Sequence[Epoch]], path: Path) -> None:
    """Plot the validation loss and top-1 accuracy, or mean average precision with several labels per image, of several runs to a PNG file.

    Args:
        runs: epochs of each run, by run name.
        path: output path of the PNG file.
    """
    figure = new_figure(10.8, 4.2)
    loss, top1 = figure.subplots(1, 2)
    has_mean_ap = any(epoch.val_mean_ap is not None for epochs in runs.values() for epoch in epochs)
    for axes, title in ((loss, "validation cross-entropy"), (top1, f"validation {'mAP' if has_mean_ap else 'top-1'}, %")):
        for number, (name, epochs) in enumerate(runs.items()):
            values = [epoch.val_loss if axes is loss else 100 * (epoch.val_mean_ap or epoch.val_top1) for epoch in epochs]
            axes.plot(
                [epoch.epoch for epoch in epochs],
                values,
                color=_COLOURS[number % len(_COLOURS)],
                linestyle=_LINES[number // len(_COLOURS) % len(_LINES)],
                marker="o" if len(epochs) <= 20 else None,
                markersize=3,
                label=plain(name),
            )
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, names = loss.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", frameon=False, fontsize=8, ncols=min(4, len(names)))
    save_figure(figure, path)
