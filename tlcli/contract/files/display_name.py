"""Conversion of file names to text: on one printable line for display, in NFC for comparison, and safe for spreadsheets."""

from __future__ import annotations

import unicodedata

_FORMULA = ("=", "+", "-", "@")
"""Characters at the start of a cell that make a spreadsheet evaluate it as a formula."""


def printable(text: str) -> str:
    r"""Return `text` as valid Unicode on one line.

    Bytes that are not UTF-8 are escaped as, for example, `\xe9`, and control characters as `\n` or `\x1b`. Python represents a byte of a
    file name that is not UTF-8 as a lone surrogate (PEP 383), which encoders reject.
    """
    if text.isprintable():
        return text
    return "".join(_escape(letter) for letter in text)


def label(folder: str) -> str:
    """Return the class name for a folder name: normalised to NFC, since macOS may return NFD, and made `printable`."""
    return printable(unicodedata.normalize("NFC", folder))


def same_name(text: str) -> str:
    """Normalise a name to NFC for comparison."""
    return unicodedata.normalize("NFC", text)


def csv_cell(text: str) -> str:
    """Return `printable` text for a CSV cell, prefixed with an apostrophe if a spreadsheet would evaluate it as a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def from_csv_cell(cell: str) -> str:
    """Remove the apostrophe that `csv_cell` adds. Escape sequences from `printable` are kept."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    category = unicodedata.category(letter)
    if category in ("Cc", "Cs", "Zl", "Zp"):
        return letter.encode("unicode_escape").decode("ascii")
    return letter
