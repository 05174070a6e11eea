"""Terminal output. Progress goes to standard error; results go to standard output as a table or as JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from tlcli.contract.files.display_name import printable

_NARROWEST = 10
"""Minimum width of a wrapped column in characters. A table that is still too wide becomes one block per row."""
_WARNINGS = ("warning:", "left out:")
"""Prefixes of messages that `--quiet` does not hide."""


class Console:
    """Console that writes messages and progress to standard error.

    Progress is shown as bars on a terminal and as plain lines elsewhere. If quiet, only warnings are printed.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._terminal = sys.stderr.isatty()

    def say(self, message: str) -> None:
        """Print a message. If quiet, only warnings are printed."""
        if not self.quiet or message.startswith(_WARNINGS):
            click.echo(printable_lines(message), err=True)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a progress bar of `total` steps in the context.

        Yields:
            Function to call with the number of steps completed since the last call.
        """
        if self.quiet or total == 0:
            yield lambda _: None
        elif self._terminal:
            from rich.console import Console as RichConsole
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            with Progress(*columns, console=RichConsole(stderr=True)) as bar:
                task = bar.add_task(description, total=total)
                yield lambda steps: bar.advance(task, steps)
        else:
            yield from self._lines(description, total)

    def _lines(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """Report progress as plain lines: at most one every ten seconds, and one at the end."""
        done, began = 0, time.monotonic()
        printed = began

        def advance(steps: int) -> None:
            nonlocal done, printed
            done += steps
            if time.monotonic() - printed >= 10:
                printed = time.monotonic()
                self.say(f"{description}: {done} of {total}")

        yield advance
        self.say(f"{description}: {done} of {total} in {time.monotonic() - began:.1f} s")


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Print rows as a table of `columns` that fits the terminal, or with all their values as a JSON array of objects."""
    if as_json:
        click.echo(json.dumps(_text(rows), indent=2, ensure_ascii=False))
        return
    for line in table(rows, columns, terminal_width()):
        click.echo(line)


def terminal_width() -> int | None:
    """Return the width of the terminal in characters; None if standard output is not a terminal.

    The environment variable `COLUMNS` takes precedence if it is set.
    """
    if os.environ.get("COLUMNS", "").isdigit() or sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return None


def _text(value: Any) -> Any:
    """Return `value` with every string in it made printable by `tlcli.contract.files.display_name.printable`."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {key: _text(item) for key, item in value.items()}
    return [_text(item) for item in value] if isinstance(value, Sequence) else value


def printable_lines(text: str) -> str:
    """Return the text with each line made printable on any terminal; see `tlcli.contract.files.display_name.printable`."""
    return "\n".join(map(printable, text.split("\n")))


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str], width: int | None = None) -> list[str]:
    """Return the lines of a table of `columns`, starting with the header.

    Cells of the widest columns are wrapped until the table fits `width`. If the table cannot fit, each row becomes a block with one line
    per column.

    Args:
        rows: rows as mappings from column names to values.
        columns: names of the columns to show.
        width: maximum width in characters; None for no limit.
    """
    cells = [[printable(_cell(row.get(column))) for column in columns] for row in rows]
    natural = [max([len(column), *(len(row[i]) for row in cells)]) for i, column in enumerate(columns)]
    widths = _fit(natural, [max(len(column), _NARROWEST) for column in columns], width)
    if widths is None:
        return _blocks(cells, columns, width)
    numeric = [bool(rows) and all(isinstance(row.get(column), int | float | None) for row in rows) for column in columns]
    lines = []
    for row in (list(columns), *cells):
        wrapped = [_wrap(text, room) for text, room in zip(row, widths, strict=True)]
        for number in range(max(map(len, wrapped))):
            parts = [part[number] if number < len(part) else "" for part in wrapped]
            padded = (text.rjust(room) if right else text.ljust(room) for text, room, right in zip(parts, widths, numeric, strict=True))
            lines.append("  ".join(padded).rstrip())
    return lines


def _fit(natural: Sequence[int], least: Sequence[int], width: int | None) -> list[int] | None:
    """Return column widths with which the table fits, narrowing the widest columns first. Return None if the table cannot fit.

    Args:
        natural: widths without wrapping.
        least: minimum widths.
        width: maximum width of the table in characters; None for no limit.
    """
    widths = list(natural)
    excess = 0 if width is None else sum(widths) + 2 * (len(widths) - 1) - width
    while excess > 0:
        shrinkable = [i for i, (now, bound) in enumerate(zip(widths, least, strict=True)) if now > bound]
        if not shrinkable:
            return None
        widest = max(shrinkable, key=lambda i: widths[i])
        widths[widest] -= 1
        excess -= 1
    return widths


def _wrap(text: str, width: int) -> list[str]:
    return [text] if len(text) <= width else textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def _blocks(cells: Sequence[Sequence[str]], columns: Sequence[str], width: int | None) -> list[str]:
    margin = max(map(len, columns)) + 2
    lines: list[str] = []
    for number, row in enumerate(cells):
        lines += [""] if number else []
        for column, text in zip(columns, row, strict=True):
            if text:
                first, *rest = _wrap(text, max(_NARROWEST, (width or 80) - margin))
                lines += [f"{column.ljust(margin)}{first}", *(" " * margin + part for part in rest)]
    return lines


def shorten(names: Sequence[str], shown: int = 3) -> str:
    """Return the first names, joined by commas, and the number of remaining names."""
    return ", ".join(names[:shown]) + (f", {len(names) - shown} more" if len(names) > shown else "")


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
