"""Contact sheets, which show tiles in a grid below a title."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tlcli.contract.files.atomic_file import whole_file
from tlcli.contract.images.heatmap import ByteArray, FloatArray, encode

Box = tuple[int, int, int, int]

WIDEST = 2400
"""Maximum width of a sheet, in pixels."""

_MARGIN = 44
RULE = (222, 222, 222)
"""Colour of the lines around tiles and between kernels, which makes the edges of white tiles visible."""

_GROUND, _INK, _SOFT = (252, 252, 251), (28, 30, 34), (112, 116, 122)
_TITLE, _DETAIL, _CAPTION = 34, 19, 14
"""Font sizes in pixels."""

_LEGEND = (180, 14)
_USUAL_COLUMNS = 8


@dataclass(frozen=True)
class Tile:
    """Image on a contact sheet.

    pixels: RGB pixels `[h, w, 3]`, drawn without scaling. captions: lines of text below the image.
    """

    pixels: ByteArray
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Legend:
    """Colour legend of a contact sheet, drawn as a strip between two labels.

    colors: RGB colours `[n, 3]`. low, high: labels of the lowest and highest colour.
    """

    colors: ByteArray
    low: str
    high: str


@dataclass(frozen=True)
class ContactSheet:
    """Rendered contact sheet.

    boxes: position of each tile in the image, as left, top, right and bottom.
    """

    image: Image.Image
    boxes: tuple[Box, ...]

    def save(self, path: Path) -> None:
        """Write the sheet to a PNG file atomically."""
        with whole_file(path) as temporary:
            temporary.write_bytes(encode(self.image))


def columns_for(count: int) -> int:
    """Return the number of columns for `count` tiles.

    The default is eight. There are more if a square grid has more, and fewer if that fills the last row better.
    """
    rows = math.ceil(count / max(_USUAL_COLUMNS, math.ceil(math.sqrt(count))))
    return math.ceil(count / max(rows, 1))


def room(columns: int) -> int:
    """Return the maximum tile width in pixels for a given number of columns."""
    return max(1, (WIDEST - 2 * _MARGIN - (columns - 1) * _gap(columns)) // columns)


def enlarge(pixels: ByteArray, side: int) -> ByteArray:
    """Enlarge an RGB image `[h, w, 3]` by the largest integer factor, at least 1, that keeps its longer side within `side` pixels."""
    zoom = max(1, side // max(pixels.shape[:2]))
    return pixels.repeat(zoom, 0).repeat(zoom, 1)


def reduce(values: FloatArray, most: int) -> FloatArray:
    """Downsample a map `[h, w]` by area averaging so that no side is longer than `most`. Smaller maps are returned unchanged."""
    height, width = values.shape
    scale = most / max(height, width)
    if scale >= 1:
        return values
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(values, np.float32)).resize(size, Image.Resampling.BOX))


def lay_out(title: str, detail: str, tiles: Sequence[Tile], columns: int, legend: Legend | None = None) -> ContactSheet:
    """Draw a contact sheet with tiles in rows, below a title and a line of details with the legend on its right.

    Args:
        title: title in one line; characters that the font lacks become question marks.
        detail: details in one line, treated like the title.
        tiles: tiles to draw, at least one; every cell has the size of the largest tile.
        columns: maximum number of tiles per row.
        legend: colour legend; None to omit it.
    """
    columns = min(columns, len(tiles))
    gap, line = _gap(columns), round(_CAPTION * 1.3)
    cell_width = max(tile.pixels.shape[1] for tile in tiles)
    cell_height = max(tile.pixels.shape[0] for tile in tiles)
    lines = _lines_that_fit(tiles, cell_width)
    below = lines * line + 4 if lines else 0
    grid_width = columns * cell_width + (columns - 1) * gap
    legend_width = _legend_width(legend) if legend else 0
    needed = max(grid_width, _width(title, _TITLE), _width(detail, _DETAIL) + (legend_width + 40 if legend else 0))
    inner = min(WIDEST - 2 * _MARGIN, needed)
    top = _MARGIN + round(_TITLE * 1.35) + round(_DETAIL * 1.3) + 26
    rows = math.ceil(len(tiles) / columns)
    height = top + rows * (cell_height + below) + (rows - 1) * gap + _MARGIN

    image = Image.new("RGB", (inner + 2 * _MARGIN, height), _GROUND)
    pen = ImageDraw.Draw(image)
    pen.text((_MARGIN, _MARGIN), _shorten(title, _TITLE, inner), fill=_INK, font=_font(_TITLE), anchor="lt")
    baseline = _MARGIN + round(_TITLE * 1.35) + _DETAIL
    pen.text((_MARGIN, baseline), _shorten(detail, _DETAIL, inner - legend_width), fill=_SOFT, font=_font(_DETAIL), anchor="ls")
    if legend:
        _draw_legend(image, pen, legend, _MARGIN + inner, baseline)

    boxes = []
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        left, upper = _MARGIN + column * (cell_width + gap), top + row * (cell_height + below + gap)
        high, wide = tile.pixels.shape[:2]
        pen.rectangle((left - 1, upper - 1, left + wide, upper + high), outline=RULE)
        image.paste(Image.fromarray(tile.pixels), (left, upper))
        boxes.append((left, upper, left + wide, upper + high))
        for number, caption in enumerate(tile.captions[:lines]):
            text = _shorten(caption, _CAPTION, cell_width)
            shade = _INK if number == 0 and lines > 1 else _SOFT
            pen.text((left, upper + high + 4 + (number + 1) * line - 4), text, fill=shade, font=_font(_CAPTION), anchor="ls")
    return ContactSheet(image, tuple(boxes))


def _lines_that_fit(tiles: Sequence[Tile], width: int) -> int:
    """Return the number of caption lines to draw; 0 if single-line captions would overlap."""
    lines = max(len(tile.captions) for tile in tiles)
    if lines == 1 and max(_width(tile.captions[0], _CAPTION) for tile in tiles if tile.captions) > width:
        return 0
    return lines


def _draw_legend(image: Image.Image, pen: ImageDraw.ImageDraw, legend: Legend, right: int, baseline: int) -> None:
    width, height = _LEGEND
    pen.text((right, baseline), legend.high, fill=_SOFT, font=_font(_DETAIL), anchor="rs")
    right -= round(_width(legend.high, _DETAIL)) + 10
    strip = Image.fromarray(legend.colors[None]).resize((width, height), Image.Resampling.NEAREST)
    pen.rectangle((right - width - 1, baseline - height - 1, right, baseline), outline=RULE)
    image.paste(strip, (right - width, baseline - height))
    pen.text((right - width - 10, baseline), legend.low, fill=_SOFT, font=_font(_DETAIL), anchor="rs")


def _legend_width(legend: Legend) -> int:
    return _LEGEND[0] + 20 + _width(legend.low, _DETAIL) + _width(legend.high, _DETAIL)


def _gap(columns: int) -> int:
    return max(4, min(14, 200 // columns))


def _shorten(text: str, size: int, width: int) -> str:
    """Shorten a text to the given width. Its end is kept, since that is where names differ."""
    text = _plain(text)
    if _width(text, size) <= width:
        return text
    kept = text[-5 * width // size :]  # no character is narrower than a fifth of its height
    while kept and _width(f"…{kept}", size) > width:
        kept = kept[1:]
    return f"…{kept}"


def _width(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(_plain(text)))


def _plain(text: str) -> str:
    """Replace characters that Pillow's built-in font lacks with question marks."""
    return "".join(letter if " " <= letter <= "~" or letter in "·…" else "?" for letter in text)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # returned whenever a size is given
    return font
