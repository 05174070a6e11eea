"""What people see: progress on standard error, results on standard output, as a table or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from tlcli.contract.files.display_name import printable


class Console:
    """Tells of progress, unless asked to be quiet: bars on a terminal, plain lines elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._terminal = sys.stderr.isatty()

    def say(self, message: str) -> None:
        """A line about what is going on."""
        if not self.quiet:
            click.echo(printable_lines(message), err=True)

    @contextmanager
    def progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar of `total` steps; the block calls what it gets with the number of steps done since the last call."""
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
        """A line at the end, and on the way no more often than every ten seconds."""
        done, began = 0, time.monotonic()
        spoken = began

        def advance(steps: int) -> None:
            nonlocal done, spoken
            done += steps
            if time.monotonic() - spoken >= 10:
                spoken = time.monotonic()
                self.say(f"{description}: {done} of {total}")

        yield advance
        self.say(f"{description}: {done} of {total} in {time.monotonic() - began:.1f} s")


def show(rows: Sequence[dict[str, Any]], columns: Sequence[str], as_json: bool) -> None:
    """Print rows: a table of `columns`, or everything as JSON, an array of objects."""
    if as_json:
        click.echo(json.dumps(_text(rows), indent=2, ensure_ascii=False))
        return
    for line in table(rows, columns):
        click.echo(printable(line))


def _text(value: Any) -> Any:
    """Return `value` with every string in it as `tlcli.contract.files.display_name.printable` text."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {key: _text(one) for key, one in value.items()}
    return [_text(one) for one in value] if isinstance(value, Sequence) else value


def printable_lines(text: str) -> str:
    """Return lines that any terminal can show, see `tlcli.contract.files.display_name.printable`."""
    return "\n".join(map(printable, text.split("\n")))


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """The lines of a table of `columns`, its head first."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(column), *(len(row[i]) for row in cells)) if cells else len(column) for i, column in enumerate(columns)]
    numeric = [bool(rows) and all(isinstance(row.get(column), int | float | None) for row in rows) for column in columns]
    lines = []
    for line in (list(columns), *cells):
        padded = (text.rjust(width) if right else text.ljust(width) for text, width, right in zip(line, widths, numeric, strict=True))
        lines.append("  ".join(padded).rstrip())
    return lines


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
