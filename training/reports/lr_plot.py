"""Plot of a learning rate range test."""

from __future__ import annotations

from pathlib import Path

from tlcli.training.engine.lr_finder import RateCurve
from tlcli.training.reports.matplotlib_style import new_figure, save_figure


def draw_rates(curve: RateCurve, path: Path) -> None:
    """Plot the raw and smoothed loss over the learning rate to a PNG file, and mark the suggested rate.

    Raises:
        OSError: the file cannot be written.
    """
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    axes.plot(curve.rates, curve.losses, color="#c3c7ce", linewidth=1, label="each step")
    axes.plot(curve.rates, curve.smoothed, color="#1f5fbf", label="smoothed")
    axes.axvline(curve.suggestion, color="#d1495b", linestyle=":", label=f"falls fastest: {curve.suggestion:.1e}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")  # superscripts require fonts that may be missing
    axes.xaxis.set_minor_formatter("")
    least, most = min(curve.smoothed), curve.smoothed[0]
    axes.set_ylim(least - 0.2 * (most - least), most + 0.8 * (most - least))
    axes.set_xlabel("learning rate of the head")
    axes.set_ylabel("cross-entropy")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)
