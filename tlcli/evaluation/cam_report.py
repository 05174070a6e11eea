"""Report of `tlcli evaluate-cam`: tables as CSV, all results as JSON, and a figure."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.files.display_name import csv_cell
from tlcli.contract.maps.method_names import METHODS
from tlcli.evaluation.baselines import BASELINES, CENTRE, RANDOM
from tlcli.evaluation.cam_metrics import DELETION, INSERTION, Column
from tlcli.evaluation.measure_maps import Mean, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

TABLE, IMAGES, SUMMARY, PLOT = "table.csv", "images.csv", "summary.json", "plot.png"

_DPI = 130
_INK, _FAINT = "#2b2f36", "#8a8f98"
_COLOURS = ("#1f5fbf", "#d1495b", "#2a9d6f", "#e08a1e", "#7a4fb5", "#12a5b8", "#b0307f", "#7d8c1f", "#8c5a2b", "#4a5a78")
"""Colours of the methods. With more methods than colours, the colours repeat with a different line style."""
_LINES = ("-", (0, (5, 2)), (0, (3, 1.5, 1, 1.5)))
_BASELINE_LINES = {RANDOM: (0, (1, 1.5)), CENTRE: (0, (4, 2))}
_NARROWEST = 0.04
"""Minimum range of a panel's axis, so that nearly equal values do not look different."""
_INTERVAL_ERRORS = 1.96
"""Half-width of a 95 % confidence interval in standard errors."""


def table_rows(measurement: Measurement) -> list[dict[str, Any]]:
    """Return one row per method with the mean of each column, and its standard error as `<column>_se`. Missing values are None."""
    rows = []
    for name in measurement.settings.names:
        row: dict[str, Any] = {"method": name, "baseline": name in BASELINES, "images": len(measurement.images)}
        for column in measurement.settings.columns:
            figure = measurement.figure(name, column.name)
            row[column.name] = None if figure is None else figure.mean
            row[f"{column.name}_se"] = None if figure is None or math.isnan(figure.error) else figure.error
        rows.append(row)
    return rows


def image_rows(measurement: Measurement, labels: Sequence[str]) -> Iterable[dict[str, Any]]:
    """Yield one row per image and method."""
    for image in measurement.images:
        for name in measurement.settings.names:
            row: dict[str, Any] = {
                "path": image.name,
                "class": image.class_name,
                "explained": labels[image.class_id],
                "probability": image.probability,
                "method": name,
            }
            yield row | {column.name: image.values[name].get(column.name) for column in measurement.settings.columns}


def write_report(folder: Path, measurement: Measurement, labels: Sequence[str], about: dict[str, Any], title: str) -> list[Path]:
    """Write `table.csv`, `images.csv`, `summary.json` and `plot.png`, each atomically.

    Args:
        folder: output folder; created if it does not exist.
        measurement: result of `measure`.
        labels: labels of the model.
        about: additional entries for `summary.json`: model, data, settings.
        title: title of the figure.

    Returns:
        The paths of the four files.

    Raises:
        OSError: a file cannot be written.
    """
    rows = table_rows(measurement)
    _write_csv(folder / TABLE, rows)
    _write_csv(folder / IMAGES, image_rows(measurement, labels))
    curves = {kind: {name: curve.tolist() for name, curve in by_name.items()} for kind, by_name in measurement.curves.items()}
    document = {"format_version": 1, **about, "table": rows, "curves": curves}
    with whole_file(folder / SUMMARY) as temporary:
        temporary.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")
    draw(measurement, title, folder / PLOT)
    return [folder / name for name in (TABLE, IMAGES, SUMMARY, PLOT)]


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}"
    return csv_cell(value) if isinstance(value, str) else value


def draw(measurement: Measurement, title: str, path: Path) -> None:
    """Draw the figure and save it as a PNG.

    The figure has one panel per column, with a point per method and a line per baseline. The mean curves are below the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    methods = measurement.settings.methods
    columns = [column for column in measurement.settings.columns if column.shown]
    curves = [kind for kind in (DELETION, INSERTION) if kind in measurement.curves]
    upper, lower = 1.0 + 0.29 * (len(methods) + len(BASELINES)), 3.5 if curves else 0.0
    width = max(2.0 + 1.75 * len(columns), 8.0 if curves else 5.0)
    figure = Figure(figsize=(width, 0.75 + upper + lower), dpi=_DPI, layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))
    FigureCanvasAgg(figure)
    figure.suptitle(_escaped(title), fontsize=12, color=_INK, x=0.012, ha="left")
    subfigures: Any = figure.subfigures(2, 1, height_ratios=[upper, lower]) if curves else [figure.subfigures(1, 1)]
    _draw_panels(subfigures[0], measurement, columns)
    if curves:
        _draw_curves(subfigures[1], measurement, curves)
    with whole_file(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the font may lack the script of a label
        figure.savefig(temporary)


def _draw_panels(subfigure: SubFigure | Figure, measurement: Measurement, columns: Sequence[Column]) -> None:
    methods, names = measurement.settings.methods, measurement.settings.names
    heights = [index + (0.35 if name in BASELINES else 0.0) for index, name in enumerate(names)]
    panels = subfigure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axes, column in zip(panels, columns, strict=True):
        figures = {name: figure for name in names if (figure := measurement.figure(name, column.name)) is not None}
        means = [figure.mean for name, figure in figures.items() if name in methods]
        best = (max if column.higher_is_better else min)(means, default=math.nan)
        for height, name in zip(heights, names, strict=True):
            if name in figures:
                _draw_point(axes, height, name, column, figures[name], methods, is_best=name in methods and figures[name].mean == best)
        for name in BASELINES:
            if name in figures:
                axes.axvline(figures[name].mean, color=_INK, linestyle=_BASELINE_LINES[name], linewidth=1.0, zorder=0)
        axes.set_title(column.title, fontsize=9.5, color=_INK, pad=16)
        better = "higher is better →" if column.higher_is_better else "← lower is better"
        axes.text(0.5, 1.012, better, transform=axes.transAxes, fontsize=7, color=_FAINT, ha="center", va="bottom")
        axes.margins(x=0.12)
        low, high = axes.get_xlim()
        if high - low < _NARROWEST:
            axes.set_xlim((low + high - _NARROWEST) / 2, (low + high + _NARROWEST) / 2)
        axes.xaxis.get_major_locator().set_params(nbins=3, steps=[1, 2, 2.5, 5, 10])
        axes.tick_params(axis="x", labelsize=7.5, colors=_FAINT)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.spines["bottom"].set_color("0.8")
    panels[0].set_yticks(heights, [_title(name) for name in names], fontsize=9)
    for name, label in zip(names, panels[0].get_yticklabels(), strict=True):
        label.set_color(_style(methods, name)[0])
    panels[0].set_ylim(heights[-1] + 0.6, -0.6)
    subfigure.supxlabel("means with 95 % intervals; vertical lines: baseline maps", fontsize=7.5, color=_FAINT)


def _draw_point(axes: Axes, height: float, name: str, column: Column, figure: Mean, methods: Sequence[str], is_best: bool) -> None:
    """Draw one method's point in a panel and print its mean next to the panel."""
    colour, _ = _style(methods, name)
    reach = 0.0 if math.isnan(figure.error) else _INTERVAL_ERRORS * figure.error
    low, high = (min(reach, abs(limit - figure.mean)) for limit in column.limits)
    filled = "white" if name in BASELINES else colour
    axes.errorbar(
        [figure.mean],
        [height],
        xerr=[[low], [high]],
        fmt="o",
        markersize=6.5 if is_best else 5,
        color=colour,
        markerfacecolor=filled,
        capsize=0,
    )
    axes.text(
        1.03,
        height,
        f"{figure.mean:.3f}",
        transform=axes.get_yaxis_transform(),
        fontsize=7.5,
        va="center",
        color=_INK if is_best else _FAINT,
        fontweight="bold" if is_best else "normal",
    )


def _draw_curves(subfigure: SubFigure | Figure, measurement: Measurement, kinds: Sequence[str]) -> None:
    methods = measurement.settings.methods
    panels = subfigure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    titles = {
        DELETION: ("Deletion", "most important pixels painted over, %"),
        INSERTION: ("Insertion", "most important pixels inserted into the blurred image, %"),
    }
    for axes, kind in zip(panels, kinds, strict=True):
        for name in measurement.settings.names:
            colour, line = _style(methods, name)
            curve = measurement.curves[kind][name]
            percent = np.linspace(0, 100, len(curve))
            width = 1.2 if name in BASELINES else 1.5
            axes.plot(
                percent, curve, color=colour, linestyle=line, linewidth=width, label=_title(name), zorder=1 if name in BASELINES else 2
            )
        title, x_label = titles[kind]
        axes.set_title(title, fontsize=9.5, color=_INK)
        axes.set_xlabel(x_label, fontsize=8, color=_INK)
        axes.set_xlim(0, 100)
        axes.tick_params(labelsize=7.5, colors=_FAINT)
        axes.grid(color="0.92", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("0.8")
    panels[0].set_ylabel("mean probability of the class", fontsize=8, color=_INK)
    panels[0].set_ylim(bottom=0)
    handles, names = panels[0].get_legend_handles_labels()
    subfigure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8, handlelength=2.6, labelspacing=0.35)


def _style(methods: Sequence[str], name: str) -> tuple[str, Any]:
    """Return the colour and the line style of a method or a baseline."""
    if name in BASELINES:
        return _INK, _BASELINE_LINES[name]
    index = methods.index(name)
    return _COLOURS[index % len(_COLOURS)], _LINES[index // len(_COLOURS) % len(_LINES)]


def _title(name: str) -> str:
    """Return the title of a map: `gradcam@layer3` becomes `Grad-CAM, layer3`."""
    method, _, layer = name.partition("@")
    title = METHODS[method].title if method in METHODS else f"{name} map"
    return _escaped(f"{title}, {layer}" if layer else title)


def _escaped(text: str) -> str:
    """Escape `$`, which matplotlib would interpret as the start of a formula."""
    return text.replace("$", r"\$")
