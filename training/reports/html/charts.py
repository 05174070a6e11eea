"""SVG charts for the HTML report. They follow the reader's light or dark colour scheme."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from tlcli.training.metrics.calibration import Calibration
from tlcli.training.runs.summary import Epoch

_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 28, 34
_MOST_POINTS = 60
"""Maximum number of epochs for which a line chart shows individual points."""


class _Chart:
    """SVG chart with a title."""

    def __init__(self, title: str, height: int) -> None:
        self._svg = Element("svg", {"viewBox": f"0 0 {_WIDTH} {height}", "role": "img", "aria-label": title})
        self.text(title, _LEFT, 15, kind="title")

    def text(self, text: str, x: float, y: float, *, anchor: str | None = None, kind: str | None = None) -> None:
        self._add("text", {"class": kind, "x": x, "y": y, "text-anchor": anchor}).text = text

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._add("line", {"class": kind, "x1": x1, "y1": y1, "x2": x2, "y2": y2})

    def polyline(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        self._add("polyline", {"class": kind, "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points)})

    def point(self, x: float, y: float, radius: float, kind: str, tooltip: str) -> None:
        SubElement(self._add("circle", {"class": kind, "cx": x, "cy": y, "r": radius}), "title").text = tooltip

    def bar(self, x: float, y: float, width: float, height: float, kind: str, tooltip: str) -> None:
        bar = self._add("rect", {"class": kind, "x": x, "y": y, "width": width, "height": max(0.0, height)})
        SubElement(bar, "title").text = tooltip

    def markup(self) -> Markup:
        """Return the chart as SVG markup with escaped text and attributes."""
        return Markup(ElementTree.tostring(self._svg, encoding="unicode", short_empty_elements=False))  # already escaped by ElementTree

    def _add(self, name: str, attributes: dict[str, str | float | None]) -> Element:
        texts = {key: f"{value:.6g}" if isinstance(value, float) else str(value) for key, value in attributes.items() if value is not None}
        return SubElement(self._svg, name, texts)


def line_chart(
    title: str, epochs: Sequence[Epoch], train: Sequence[float], val: Sequence[float], best_epoch: int, unit: str = ""
) -> Markup:
    """Draw a line chart of training and validation values over the epochs. The best epoch and stage change are marked.

    Args:
        title: title of the chart.
        epochs: epochs of the run, at least one.
        train: training value of each epoch; NaN and infinite values are omitted.
        val: validation value of each epoch, treated like `train`.
        best_epoch: epoch whose network was kept.
        unit: unit to append to each value.
    """
    numbers = [epoch.epoch for epoch in epochs]
    finite = [value for value in (*train, *val) if math.isfinite(value)] or [0.0]
    ticks = _ticks(min(finite), max(finite))
    low, high = min(ticks[0], *finite), max(ticks[-1], *finite)

    def across(epoch: float) -> float:
        share = (epoch - numbers[0]) / (numbers[-1] - numbers[0]) if len(numbers) > 1 else 0.5
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * share

    def down(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    chart = _Chart(title, _HEIGHT)
    for tick in ticks:
        chart.line(_LEFT, down(tick), _WIDTH - _RIGHT, down(tick), "grid")
        chart.text(f"{tick:g}{unit}", _LEFT - 6, down(tick) + 4, anchor="end")
    for epoch in _whole_ticks(numbers[0], numbers[-1]):
        chart.text(str(epoch), across(epoch), _HEIGHT - _BOTTOM + 16, anchor="middle")
    chart.text("epoch", (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 4, anchor="middle")
    for before, after in pairwise(epochs):
        if before.stage != after.stage:
            x = across(before.epoch + 0.5)
            chart.line(x, _TOP, x, _HEIGHT - _BOTTOM, "dotted")
            chart.text("all layers", x, _TOP - 4, anchor="middle")
    for kind, values in (("train", train), ("val", val)):
        points = [(epoch, value) for epoch, value in zip(numbers, values, strict=True) if math.isfinite(value)]
        chart.polyline([(across(epoch), down(value)) for epoch, value in points], kind)
        for epoch, value in points if len(points) <= _MOST_POINTS else ():
            chart.point(across(epoch), down(value), 2.4, kind, f"epoch {epoch}: {value:.4g}{unit}")
    if best_epoch in numbers and math.isfinite(best := val[numbers.index(best_epoch)]):
        chart.point(across(best_epoch), down(best), 5.5, "best", f"best epoch {best_epoch}: {best:.4g}{unit}")
    return chart.markup()


def reliability_chart(title: str, calibration: Calibration) -> Markup:
    """Draw a reliability diagram: accuracy over the score compared to the ideal, and the number of predictions in each score bin."""
    height, bars = 330, 62
    bottom = height - _BOTTOM
    foot = bottom - bars - 16
    bins = calibration.bins
    most = max((bin_.count for bin_ in bins), default=0) or 1

    def across(share: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * share

    def down(share: float) -> float:
        return foot - (foot - _TOP) * share

    chart = _Chart(title, height)
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        chart.line(_LEFT, down(tick), _WIDTH - _RIGHT, down(tick), "grid")
        chart.text(f"{100 * tick:.0f} %", _LEFT - 6, down(tick) + 4, anchor="end")
        chart.text(f"{100 * tick:.0f} %", across(tick), bottom + 15, anchor="middle" if tick < 1 else "end")
    for bin_ in bins:
        if not bin_.count or bin_.accuracy is None or bin_.confidence is None:
            continue
        tooltip = (
            f"scores of {100 * bin_.low:.0f} to {100 * bin_.high:.0f} %: {bin_.count:,} predictions,"
            f" {100 * bin_.accuracy:.1f} % right, mean score {100 * bin_.confidence:.1f} %"
        )
        left, width = across(bin_.low) + 1, across(bin_.high) - across(bin_.low) - 2
        chart.bar(left, down(bin_.accuracy), width, foot - down(bin_.accuracy), "right", tooltip)
        chart.bar(left, down(bin_.confidence) - 1.5, width, 3, "score", tooltip)
        tall = max(1.5, bars * math.log1p(bin_.count) / math.log1p(most))
        chart.bar(left, bottom - tall, width, tall, "count", tooltip)
    chart.line(across(0), down(0), across(1), down(1), "dotted")
    chart.text(f"predictions, at most {most:,} (log)", _LEFT + 4, bottom - bars + 2)
    chart.text("score of the predicted class", (_LEFT + _WIDTH - _RIGHT) / 2, height - 4, anchor="middle")
    return chart.markup()


def matrix_image(strengths: npt.NDArray[np.float64]) -> str:
    """Encode a matrix `[C, C]` in [0, 1] as a PNG data URI with one pixel per cell, coloured from white to blue.

    Colours represent the square root of each value, so that small values are visibly different from zero.
    """
    blue = np.sqrt(strengths)[..., None]
    colours = 255 * (1 - blue) + np.array([31, 95, 191]) * blue
    file = io.BytesIO()
    Image.fromarray(colours.round().astype(np.uint8)).save(file, "PNG")
    return data_uri(file.getvalue(), "image/png")


def data_uri(content: bytes, media_type: str) -> str:
    """Encode `content` as a base64 data URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return at least two evenly spaced round numbers that cover the range from `low` to `high`."""
    reach = high - low or abs(high) or 1.0
    rough = reach / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _whole_ticks(first: int, last: int, most: int = 8) -> list[int]:
    """Return evenly spaced integers from `first` to `last`, about `most` at most, always including `first`."""
    step = next(step for power in range(9) for step in (10**power, 2 * 10**power, 5 * 10**power) if (last - first) / step <= most)
    return list(range(first, last + 1, step)) if step == 1 else sorted({first, *range(-(-(first + 1) // step) * step, last + 1, step)})
