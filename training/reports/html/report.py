"""Renderer of `report.html`, a one-page report of a run in a single file that loads no external resources.

The page is rendered from the Jinja2 templates in `templates/`, which escape all inserted values. The module `content` prepares those
values.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tlcli.contract.files.atomic_file import whole_file
from tlcli.training.reports.datasheet import read_data_sheet
from tlcli.training.reports.html import formats
from tlcli.training.reports.html.content import report_content
from tlcli.training.runs.summary import RunSummary, read_summary
from tlcli.training.settings.run_file_names import REPORT

if TYPE_CHECKING:
    from jinja2 import Environment

SECTIONS = ("Figures", "Training", "Classes", "Confusion", "Calibration", "Mistakes", "Data", "Settings", "Reproduce")
"""Section titles. Each section has a template of the same name."""

MULTI_LABEL_SECTIONS = {"Figures": "label_figures", "Classes": "label_classes", "Mistakes": "label_mistakes"}
"""Names of the templates that replace those of sections with several labels per image."""
_ONE_LABEL_ONLY = ("Confusion", "Calibration")

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content Security Policy of the page. Browsers that enforce it load no external resources, regardless of the content."""


def write_report(run: str | Path) -> Path:
    """Write `report.html` to a run folder, based on the files in it. The page names any missing files.

    Returns:
        Path of the report.

    Raises:
        NotFoundError, SettingsError: see `tlcli.training.runs.summary.read_summary`.
        OSError: the file cannot be written.
    """
    record = read_summary(run)
    path = record.path / REPORT
    with whole_file(path) as temporary:
        temporary.write_text(render(record), encoding="utf-8")
    return path


def render(record: RunSummary) -> str:
    """Render the report of a run as HTML."""
    content = report_content(record, read_data_sheet(record.path))
    sections = {name: name.lower() for name in SECTIONS}
    if record.task == "multi-label":
        sections = {name: file for name, file in {**sections, **MULTI_LABEL_SECTIONS}.items() if name not in _ONE_LABEL_ONLY}
    return _environment().get_template("report.html.j2").render(content, sections=sections, policy=_POLICY)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # needed only to write a report

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (formats.plain, formats.percent, formats.number, formats.duration, formats.interval)
    environment.filters.update({function.__name__: function for function in filters})
    return environment
