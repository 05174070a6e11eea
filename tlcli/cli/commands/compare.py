"""`tlcli compare`: several runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlcli.cli.console import show
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.training.runs.comparison import Comparison
    from tlcli.training.runs.summary import RunSummary


@click.command("compare", cls=Command)
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN ...", type=click.Path(path_type=Path))
@click.option("--sort", "column", metavar="FIELD", help="Order the runs by this column, the best first.  [default: as they are given]")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Draw the validation curves of all runs over each other, as a PNG."
)
@click.option("--json", "as_json", is_flag=True, help="Print the table, and what is said of it, as JSON.")
def command(runs: tuple[Path, ...], column: str | None, output: Path | None, as_json: bool) -> None:
    """Show several runs side by side: in what they differ, and how they did.

    RUN is a run's folder, such as runs/NAME. Only settings that are not the same in all of them are shown, each that was left open
    with what it came to. Runs that were judged on other validation images are named: their figures cannot be compared.

    Two runs on the same validation images get McNemar's exact test as well: whether one is better by more than chance.

    \b
    tlcli compare runs/a runs/b
    tlcli compare runs/* --sort val_top1 --output curves.png
    """
    from tlcli.training.runs.comparison import compare
    from tlcli.training.runs.summary import read_summary

    if len(runs) < 2:
        raise click.UsageError("give two runs or more: their folders, such as runs/A runs/B")
    if output is not None and output.suffix.lower() != ".png":
        raise click.BadParameter(f"{output}: a PNG is drawn: name a file that ends with .png", param_hint="--output")
    records = [read_summary(run) for run in runs]
    compared = compare(records)
    rows = _ordered(compared, column)
    if output is not None:
        _draw(compared, records, output)
    if as_json:
        click.echo(json.dumps(_document(compared, rows), indent=2, ensure_ascii=False))
        return
    show([_legible(row, compared.differing) for row in rows], compared.columns, as_json=False)
    for line in _remarks(compared, records):
        click.echo(line)
    if output is not None:
        click.echo(f"written: {output}", err=True)


def _ordered(compared: Comparison, column: str | None) -> tuple[dict[str, Any], ...]:
    if column is None:
        return compared.rows
    try:
        return compared.ordered_by(column)
    except KeyError as error:
        raise click.BadParameter(f"no column {column!r}: expected one of {', '.join(compared.columns)}", param_hint="--sort") from error


def _legible(row: dict[str, Any], settings: tuple[str, ...]) -> dict[str, Any]:
    """A row for people: a rate of 1e-05 as it is, and whole seconds."""
    told = {name: f"{value:g}" if name in settings and isinstance(value, float) else value for name, value in row.items()}
    return {**told, "seconds": round(row["seconds"])}


def _draw(compared: Comparison, records: list[RunSummary], output: Path) -> None:
    from tlcli.contract.errors import NotFoundError
    from tlcli.training.reports.comparison_plot import draw_compared

    without = [str(record.path) for record in records if not record.epochs]
    if without:
        raise NotFoundError(f"{without[0]}: no metrics.csv in it, so there is no curve to draw: leave out --output, or this run")
    names = [row["run"] for row in compared.rows]
    draw_compared(dict(zip(names, (record.epochs for record in records), strict=True)), output)


def _document(compared: Comparison, rows: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    test = compared.test
    return {
        "runs": rows,
        "differing": compared.differing,
        "not_comparable_with_the_first": compared.others,
        "mcnemar": None if test is None else {"only_first": test.only_first, "only_second": test.only_second, "p": test.p},
    }


def _remarks(compared: Comparison, records: list[RunSummary]) -> list[str]:
    names = [row["run"] for row in compared.rows]
    if compared.others:
        them = ", ".join(compared.others)
        return [f"\nnot comparable: {them}: judged on other validation images than {names[0]} (the data sets' fingerprints differ)"]
    if len(records) > 2:
        return ["\nthe same validation images in all of them; give two of them for a test of their difference"]
    if compared.test is None:
        return ["\nno test of their difference: the predictions.csv of both, on images of the same names, are needed for one"]
    test = compared.test
    says = (
        "more than chance would explain"
        if test.p < 0.05
        else "no more than chance would explain"
        if test.only_first + test.only_second
        else "they are right on the same ones"
    )
    return [
        f"\nMcNemar's exact test on the same {len(records[0].predictions):,} validation images: {test.only_first} that only {names[0]}"
        f" has right, {test.only_second} that only {names[1]} has right, p = {test.p:.3g}: {says}"
    ]
