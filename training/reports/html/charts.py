"""A report's charts, as SVG and tables that take the reader's colours, light or dark."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.training.metrics.calibration import Calibration
from tlcli.training.reports.html.markup import Markup, element
from tlcli.training.runs.summary import Epoch

_WIDTH, _HEIGHT = 480, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 28, 34
_MOST_POINTS = 60
"""More epochs than this are a line without points."""

_MOST_IN_TABLE = 20
"""More classes than this are an image with a pixel a cell."""

_MOST_UPRIGHT = 5
"""More classes than this have their names above the columns turned."""


def line_chart(
    title: str, epochs: Sequence[Epoch], train: Sequence[float], val: Sequence[float], best_epoch: int, unit: str = ""
) -> Markup:
    """Training and validation over the epochs; the best epoch and the change of stage are marked.

    Args:
        title: above it.
        epochs: at least one.
        train, val: a value each; those that are no numbers are left out.
        best_epoch: whose network was kept.
        unit: after each value.
    """
    numbers = [one.epoch for one in epochs]
    finite = [value for value in (*train, *val) if math.isfinite(value)] or [0.0]
    ticks = _ticks(min(finite), max(finite))
    low, high = min(ticks[0], *finite), max(ticks[-1], *finite)

    def across(epoch: float) -> float:
        share = (epoch - numbers[0]) / (numbers[-1] - numbers[0]) if len(numbers) > 1 else 0.5
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * share

    def down(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    drawn: list[Markup] = [element("text", title, class_="title", x=_LEFT, y=15)]
    for tick in ticks:
        drawn.append(_line(_LEFT, down(tick), _WIDTH - _RIGHT, down(tick), "grid"))
        drawn.append(element("text", f"{tick:g}{unit}", x=_LEFT - 6, y=down(tick) + 4, text_anchor="end"))
    drawn += [
        element("text", epoch, x=across(epoch), y=_HEIGHT - _BOTTOM + 16, text_anchor="middle")
        for epoch in _whole_ticks(numbers[0], numbers[-1])
    ]
    drawn.append(element("text", "epoch", x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 4, text_anchor="middle"))
    for before, after in pairwise(epochs):
        if before.stage != after.stage:
            x = across(before.epoch + 0.5)
            drawn.append(_line(x, _TOP, x, _HEIGHT - _BOTTOM, "dotted"))
            drawn.append(element("text", "all layers", x=x, y=_TOP - 4, text_anchor="middle"))
    for kind, values in (("train", train), ("val", val)):
        points = [(epoch, value) for epoch, value in zip(numbers, values, strict=True) if math.isfinite(value)]
        path = " ".join(f"{across(epoch):.1f},{down(value):.1f}" for epoch, value in points)
        drawn.append(element("polyline", class_=kind, points=path))
        if len(points) <= _MOST_POINTS:
            drawn += [_point(across(epoch), down(value), 2.4, kind, f"epoch {epoch}: {value:.4g}{unit}") for epoch, value in points]
    if best_epoch in numbers and math.isfinite(best := val[numbers.index(best_epoch)]):
        drawn.append(_point(across(best_epoch), down(best), 5.5, "best", f"the best, epoch {best_epoch}: {best:.4g}{unit}"))
    return _chart(title, _HEIGHT, drawn)


def reliability_chart(title: str, calibration: Calibration) -> Markup:
    """The share of right answers by their score, beside what it should be, and how many answers there are of each score."""
    height, bars = 330, 62
    bottom = height - _BOTTOM
    foot = bottom - bars - 16
    bins = calibration.bins
    most = max((one.count for one in bins), default=0) or 1

    def across(share: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * share

    def down(share: float) -> float:
        return foot - (foot - _TOP) * share

    drawn: list[Markup] = [element("text", title, class_="title", x=_LEFT, y=15)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawn.append(_line(_LEFT, down(tick), _WIDTH - _RIGHT, down(tick), "grid"))
        drawn.append(element("text", f"{100 * tick:.0f} %", x=_LEFT - 6, y=down(tick) + 4, text_anchor="end"))
        drawn.append(element("text", f"{100 * tick:.0f} %", x=across(tick), y=bottom + 15, text_anchor="middle" if tick < 1 else "end"))
    for one in bins:
        if not one.count or one.accuracy is None or one.confidence is None:
            continue
        says = (
            f"scores of {100 * one.low:.0f} to {100 * one.high:.0f} %: {one.count:,} answers,"
            f" {100 * one.accuracy:.1f} % right, mean score {100 * one.confidence:.1f} %"
        )
        left, width = across(one.low) + 1, across(one.high) - across(one.low) - 2
        drawn.append(_bar(left, down(one.accuracy), width, foot - down(one.accuracy), "right", says))
        drawn.append(_bar(left, down(one.confidence) - 1.5, width, 3, "score", says))
        tall = max(1.5, bars * math.log1p(one.count) / math.log1p(most))
        drawn.append(_bar(left, bottom - tall, width, tall, "count", says))
    drawn.append(_line(across(0), down(0), across(1), down(1), "dotted"))
    drawn.append(element("text", f"answers, at most {most:,} (log)", x=_LEFT + 4, y=bottom - bars + 2))
    drawn.append(element("text", "score of the predicted class", x=(_LEFT + _WIDTH - _RIGHT) / 2, y=height - 4, text_anchor="middle"))
    return _chart(title, height, drawn)


def matrix(labels: Sequence[str], counts: npt.NDArray[np.int64], *, normalised: bool) -> Markup:
    """A confusion matrix, the true class down and the predicted across: counts, or shares of the true class in per cent.

    Args:
        labels: C names.
        counts: `[C, C]`.
        normalised: shares instead of counts.
    """
    values = counts / np.maximum(counts.sum(1, keepdims=True), 1) if normalised else counts / max(1, int(counts.max(initial=0)))
    if len(labels) > _MOST_IN_TABLE:
        says = "Confusion matrix, a pixel a cell, the true class down, the predicted across"
        return element("img", class_="pixels", src=data_uri(_pixels(values), "image/png"), alt=says)
    cells = [[f"{100 * share:.1f}" if share else "0" for share in row] for row in values] if normalised else counts.astype(str).tolist()
    heads = [element("th", element("div", label), title=f"predicted: {label}") for label in labels]
    rows = [
        element("tr", element("th", label, title=f"true: {label}"), [_cell(text, value) for text, value in zip(texts, shares, strict=True)])
        for label, texts, shares in zip(labels, cells, values.tolist(), strict=True)
    ]
    kind = "matrix many" if len(labels) > _MOST_UPRIGHT else "matrix"
    table = element("table", element("thead", element("tr", element("th"), heads)), element("tbody", rows), class_=kind)
    return element("div", table, class_="scroll")


def data_uri(content: bytes, kind: str) -> str:
    """`content` as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _cell(text: str, value: float) -> Markup:
    colour = None if value == 0 else f"background: rgb(var(--heat) / {max(0.06, value):.3g})"
    return element("td", text, class_="none" if value == 0 else "full" if value > 0.55 else None, style=colour)


def _pixels(values: npt.NDArray[np.float64]) -> bytes:
    """`[C, C]` in [0, 1] as a PNG, from white to blue; what is seldom can still be told from what is not."""
    strength = np.sqrt(values)[..., None]
    colours = 255 * (1 - strength) + np.array([31, 95, 191]) * strength
    file = io.BytesIO()
    Image.fromarray(colours.round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _chart(title: str, height: int, drawn: Sequence[Markup]) -> Markup:
    return element("svg", drawn, viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=title)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return element("line", class_=kind, x1=x1, y1=y1, x2=x2, y2=y2)


def _point(x: float, y: float, radius: float, kind: str, says: str) -> Markup:
    return element("circle", element("title", says), class_=kind, cx=x, cy=y, r=radius)


def _bar(x: float, y: float, width: float, height: float, kind: str, says: str) -> Markup:
    return element("rect", element("title", says), class_=kind, x=x, y=y, width=width, height=max(0.0, height))


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from below `low` to above `high`, at least two."""
    reach = high - low or abs(high) or 1.0
    rough = reach / most
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _whole_ticks(first: int, last: int, most: int = 8) -> list[int]:
    """At most about `most` whole numbers, `first` among them."""
    step = next(step for power in range(9) for step in (10**power, 2 * 10**power, 5 * 10**power) if (last - first) / step <= most)
    return list(range(first, last + 1, step)) if step == 1 else sorted({first, *range(-(-(first + 1) // step) * step, last + 1, step)})
