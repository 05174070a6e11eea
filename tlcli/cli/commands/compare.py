"""`tlcli compare`: compare runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlcli.cli import options
from tlcli.cli.console import show
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.training.runs.comparison import Comparison
    from tlcli.training.runs.summary import RunSummary


@click.command("compare", cls=Command)
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN ...", type=click.Path(path_type=Path))
@click.option("--sort", "column", metavar="FIELD", help="Sort the runs by this column, the best first.  [default: in the order given]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Draw the validation curves of all runs to this PNG file."
)
@options.json_option
def command(runs: tuple[Path, ...], column: str | None, output: Path | None, as_json: bool) -> None:
    """Compare the settings and metrics of runs side by side.

    RUN is a run's folder, such as runs/NAME. Only settings that differ between the runs are shown, with their resolved values if
    they were not set. A note is printed for runs that were validated on different images, whose metrics cannot be compared.

    Two runs are also compared by McNemar's exact test of significance, on the validation images that they have in common. Images whose
    content is in the training split of either run are left out.

    \b
    tlcli compare runs/a runs/b
    tlcli compare runs/* --sort val_top1 --output curves.png
    """
    from tlcli.training.runs.comparison import compare
    from tlcli.training.runs.summary import read_summary

    if len(runs) < 2:
        raise click.UsageError("give two or more runs: their folders, such as runs/A runs/B")
    if output is not None and output.suffix.lower() != ".png":
        raise click.BadParameter(f"{output}: expected a file name that ends with .png", param_hint="--output")
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
    """Format a row for the table, with settings such as 1e-05 in short form and times rounded to seconds."""
    legible = {name: f"{value:g}" if name in settings and isinstance(value, float) else value for name, value in row.items()}
    return {**legible, "seconds": round(row["seconds"])}


def _draw(compared: Comparison, records: list[RunSummary], output: Path) -> None:
    from tlcli.contract.errors import NotFoundError
    from tlcli.training.reports.comparison_plot import draw_compared

    without = [str(record.path) for record in records if not record.epochs]
    if without:
        raise NotFoundError(f"{without[0]}: no metrics.csv, so there is no curve to draw: leave out --output, or this run")
    names = [row["run"] for row in compared.rows]
    draw_compared(dict(zip(names, (record.epochs for record in records), strict=True)), output)


def _document(compared: Comparison, rows: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    test = compared.test
    return {
        "runs": rows,
        "differing": compared.differing,
        "not_comparable_with_the_first": compared.others,
        "left_out": None if compared.pairs is None else compared.pairs.seen,
        "mcnemar": None if test is None else {"only_first": test.only_first, "only_second": test.only_second, "p": test.p},
    }


def _remarks(compared: Comparison, records: list[RunSummary]) -> list[str]:
    names = [row["run"] for row in compared.rows]
    lines = []
    if compared.others:
        them = ", ".join(compared.others)
        lines = [f"\nnot comparable: {them}: validated on other images than {names[0]} (the fingerprints of the data sets differ)"]
    pairs = compared.pairs
    if compared.others and pairs is None:
        return lines
    if len(records) > 2:
        return ["\nall runs were validated on the same images; compare two of them for a significance test"]
    if pairs is None:
        return ["\nno significance test: it needs the predictions.csv of both runs, for images of the same names"]
    if pairs.seen:
        images = "1 validation image" if pairs.seen == 1 else f"{pairs.seen:,} validation images"
        lines.append(f"\nleft out: {images} of either run, whose content is in the training split of one of them")
    test = compared.test
    if test is None:
        return [*lines, "\nno significance test: no validation image of both runs is new to both; evaluate them on other images"]
    verdict = (
        "significant at 0.05"
        if test.p < 0.05
        else "not significant at 0.05"
        if test.only_first + test.only_second
        else "both are correct on the same images"
    )
    if pairs.seen or compared.others:
        shares = ", ".join(f"{name} {share:.2%}" for name, share in zip(names, pairs.top1, strict=True))
        what = "all labels right" if records[0].task == "multi-label" else "top-1"
        lines.append(f"\n{what} on the images that both have not seen: {shares}")
    return [
        *lines,
        f"\nMcNemar's exact test on the same {pairs.count:,} validation images: {test.only_first} correct in"
        f" {names[0]} only, {test.only_second} in {names[1]} only, p = {test.p:.3g}: {verdict}",
    ]
