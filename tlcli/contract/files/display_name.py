"""File names as text: one line for people, NFC for comparison, harmless in a spreadsheet."""

from __future__ import annotations

import unicodedata

_FORMULA = ("=", "+", "-", "@")
"""A spreadsheet runs a cell that begins with one of these as a formula."""


def printable(text: str) -> str:
    r"""Return `text` as valid Unicode on one line: bytes that are not UTF-8 become `\xe9`, control characters `\n` or `\x1b`.

    Python keeps a byte of a file name that is not UTF-8 as a lone surrogate (PEP 383), which no encoder writes.
    """
    if text.isprintable():
        return text
    return "".join(_escape(letter) for letter in text)


def label(folder: str) -> str:
    """Return the class name of a folder: in NFC (macOS may hand over NFD), and `printable`."""
    return printable(unicodedata.normalize("NFC", folder))


def same_name(text: str) -> str:
    """Normalise a name to NFC for comparison."""
    return unicodedata.normalize("NFC", text)


def csv_cell(text: str) -> str:
    """Return `text` for a CSV file: `printable`, with an apostrophe in front if a spreadsheet would run it as a formula."""
    shown = printable(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def from_csv_cell(cell: str) -> str:
    """Undo the apostrophe of `csv_cell`; the text stays `printable`."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


def _escape(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    category = unicodedata.category(letter)
    if category in ("Cc", "Cs", "Zl", "Zp"):
        return letter.encode("unicode_escape").decode("ascii")
    return letter
