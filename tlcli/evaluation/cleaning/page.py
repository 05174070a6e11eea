"""Renderer of the page of findings, a single HTML file that loads no external resources."""

from __future__ import annotations

import base64
import io
import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

import tlcli.training.reports.html
from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.files.display_name import printable
from tlcli.evaluation.cleaning.findings import KINDS, Finding, Findings, Kind
from tlcli.evaluation.cleaning.images import LabelledParts
from tlcli.training.data.dataset import Part

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE = "clean.html"
TABLE = "findings.csv"

_SIDE = 160
"""Height and width of the images on the page, in pixels."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content Security Policy of the page. Browsers that enforce it load no external resources, regardless of the content."""

_ABOUT: dict[Kind, str] = {
    "label-error": "Images whose label is less probable than another class, least probable first, each next to the nearest images of other"
    " classes. The probabilities are of regressions that did not see the image. A red border marks confident errors.",
    "near-duplicate": "Pairs whose features and perceptual hashes agree. A red border marks pairs in two splits, which come first: metrics"
    " on them are too optimistic. The table names the image of the training split first.",
    "outlier": "Images far from all others, each next to the nearest images of other classes.",
    "dark": "Images whose brightest percentile is dark.",
    "blurred": "Images with far less fine detail than the others.",
    "near-uniform": "Images with nearly one colour: they teach nothing.",
    "odd-size": "Images whose area or aspect ratio is far from that of the others.",
}


def write_page(path: Path, images: LabelledParts, findings: Findings, source: str, limit: int) -> None:
    """Write the page.

    Args:
        path: file to write.
        images: images that were examined.
        findings: findings on them.
        source: argument of the command, a run or a data set.
        limit: maximum number of images of each kind.

    Raises:
        OSError: the file cannot be written.
        ImageError: an image can no longer be read.
    """
    tiles = _Tiles(images)
    sections = []
    for kind, title in KINDS.items():
        rows = findings.of(kind)
        cards = [_card(row, tiles, images) for row in rows[:limit]]
        sections.append({"kind": kind, "title": title, "about": _ABOUT[kind], "count": len(rows), "cards": cards})
    warnings = [*images.notes]
    if findings.not_judged:
        warnings.append(f"labels are not judged in classes with fewer than five images: {', '.join(findings.not_judged[:20])}")
    text = (
        _environment()
        .get_template("clean.html.j2")
        .render(
            title=f"Findings in {printable(Path(images.where).name)}",
            subtitle=f"{len(tiles.part):,} images in {len(images.classes):,} classes",
            sections=sections,
            warnings=warnings,
            policy=_POLICY,
            table=TABLE,
            apply_command=f"tlcli clean {shlex.quote(printable(source))} --apply {TABLE}",
        )
    )
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class _Tiles:
    """Images as the page shows them. Each is read once."""

    def __init__(self, images: LabelledParts) -> None:
        self.part: Part = images.images
        self._images = images
        self._splits = images.splits
        self._sources: dict[int, str] = {}

    def of(self, index: int) -> dict[str, str]:
        if index not in self._sources:
            self._sources[index] = _data_url(self.part.load(index))
        return {
            "source": self._sources[index],
            "name": printable(self.part.names[index]),
            "label": self._images.classes[self.part.labels[index]],
            "split": self._splits[index],
        }


def _card(finding: Finding, tiles: _Tiles, images: LabelledParts) -> dict[str, Any]:
    text = finding.detail
    if finding.suggested is not None:
        text = f"{text}: {images.classes[finding.suggested]} instead?"
    others = finding.others if finding.twin is None else (finding.twin, *finding.others[:2])
    return {"text": text, "confident": finding.confident, "image": tiles.of(finding.image), "others": [tiles.of(index) for index in others]}


def _data_url(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # needed only to write a page

    of_reports = Path(tlcli.training.reports.html.__file__).parent / "templates"
    return Environment(
        loader=FileSystemLoader([Path(__file__).parent / "templates", of_reports]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
