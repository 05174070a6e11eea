"""`report.html`: a run on one page, in one file that asks for nothing outside of itself."""

from __future__ import annotations

from pathlib import Path

from tlcli.contract.files.atomic_file import whole_file
from tlcli.training.reports.datasheet import DataSheet, read_data_sheet
from tlcli.training.reports.html import sections_results, sections_setup
from tlcli.training.reports.html.markup import Child, Markup, element
from tlcli.training.reports.html.style import STYLE
from tlcli.training.reports.html.tables import CALLED, bullets, duration, interval, number, percent
from tlcli.training.runs.summary import Record, read_record
from tlcli.training.settings.run_file_names import REPORT

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content Security Policy: a browser that holds to it loads nothing, whatever stands in the page."""


def write_report(run: str | Path) -> Path:
    """Write `report.html` into a run's folder, of the files in it. Those that it lacks are named in their place.

    Returns:
        Its path.

    Raises:
        NotFoundError, SettingsError: see `tlcli.training.runs.summary.read_record`.
        OSError: it cannot be written.
    """
    record = read_record(run)
    path = record.path / REPORT
    with whole_file(path) as temporary:
        temporary.write_text(render(record), encoding="utf-8")
    return path


def render(record: Record) -> str:
    """The page."""
    sheet = read_data_sheet(record.path)
    asked = record.config.asked
    title = f"{asked.get('backbone', 'A network')} on {Path(str(asked.get('dataset', 'images'))).name}"
    sections = {
        "figures": ("Figures", sections_results.figures(record)),
        "training": ("Training", sections_results.training(record)),
        "classes": ("Classes", sections_results.classes(record)),
        "confusion": ("Confusion", sections_results.confusion(record)),
        "calibration": ("Calibration", sections_results.calibration(record)),
        "mistakes": ("Mistakes", sections_results.mistakes(record)),
        "data": ("Data", sections_setup.data(record, sheet)),
        "settings": ("Settings", sections_setup.settings(record)),
        "repeat": ("Repeat it", sections_setup.repeat(record)),
    }
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element(
            "header",
            element("h1", title),
            element("div", _subtitle(record), class_="soft"),
            element("nav", [element("a", name, href=f"#{key}") for key, (name, _) in sections.items()]),
        ),
        element(
            "main",
            _warnings(record, sheet),
            _tiles(record),
            [element("section", element("h2", name), content, id=key) for key, (name, content) in sections.items()],
        ),
        element("footer", f"Made by tlcli of the files in the run's folder, {record.path.resolve().name}."),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _subtitle(record: Record) -> str:
    asked, when = record.config.asked, record.config.created.replace("T", " ").replace("+00:00", " UTC")
    mode = {"feature-extraction": "head trained on frozen features", "full": "all layers trained"}.get(str(asked.get("mode")), "")
    if asked.get("mode") == "full" and record.best_stage == "head":
        mode = "all layers trained, an epoch of the head alone kept"
    return " · ".join(part for part in (mode, f"head {asked.get('head', '?')}", f"{len(record.config.classes)} classes", when) if part)


def _warnings(record: Record, sheet: DataSheet | None) -> Child:
    found = [*([f"training ended early: {record.results.stopped}"] if record.results.stopped else []), *(sheet.warnings if sheet else ())]
    if not found:
        return None
    return element("div", element("b", "To be known before the figures are read"), bullets(found), class_="warning", role="note")


def _tiles(record: Record) -> Markup:
    name, part = list(record.parts.items())[-1]  # the test part, where there is one
    of_part = CALLED[name]
    images, last = record.results.images, max((one.epoch for one in record.epochs), default=None)
    stage = {"head": "head alone", "full": "all layers"}.get(record.best_stage or "", "")
    return element(
        "div",
        _tile(f"{of_part} top-1", percent(part.top1), f"95 % interval {interval(part)}"),
        _tile(f"{of_part} macro F1", number(part.macro_f1), "the mean over the classes"),
        _tile(f"{of_part} loss", number(part.loss), "cross-entropy, nats"),
        _tile(f"{of_part} ECE", percent(part.ece), "expected calibration error"),
        _tile("Images", f"{sum(images.values()):,}", ", ".join(f"{count:,} {key}" for key, count in images.items())),
        _tile("Best epoch", str(record.results.best_epoch), ", ".join(filter(None, ("" if last is None else f"of {last}", stage)))),
        _tile("Time", duration(record.seconds), f"on {record.config.device}" if record.config.device else ""),
        class_="tiles",
    )


def _tile(name: str, value: str, note: str) -> Markup:
    return element("div", element("span", name, class_="name"), element("b", value), element("span", note), class_="tile")
