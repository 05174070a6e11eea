"""`tlcli models`: list the models of a repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlcli.cli import options
from tlcli.cli.console import shorten, show
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.contract.model.description import Provenance


@click.command("models", cls=Command)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@options.models_option
@options.json_option
def command(folder: Path | None, models: Path, as_json: bool) -> None:
    """List the exported models of a repository.

    FOLDER is the model repository, as with --models. The JSON output also lists the maps that each model offers.
    """
    if folder is not None:
        if options.is_given_by_flag("models"):
            raise click.UsageError(f"{folder} and --models {models} both name the model repository: use only one of them")
        models = folder
    from tlcli.contract.errors import ModelFileError, NotFoundError
    from tlcli.contract.model.description import Description
    from tlcli.contract.model.onnx_metadata import read_metadata
    from tlcli.contract.model.repository_layout import MODEL_FILE, model_names, not_a_repository, versions

    if problem := not_a_repository(models):
        raise NotFoundError(problem)
    rows: list[dict[str, Any]] = []
    for name in model_names(models):
        for version in versions(models / name):
            path = models / name / str(version) / MODEL_FILE
            row: dict[str, Any] = {"name": name, "version": version, "size_bytes": path.stat().st_size}
            try:
                description = Description.from_metadata(read_metadata(path), str(path))
            except ModelFileError as error:
                row["problem"] = str(error)
            else:
                provenance = description.provenance
                top1, top1_part = _top1(provenance)
                row |= {
                    "backbone": provenance.backbone,
                    "head": provenance.head,
                    "classes": len(description.labels),
                    "height": description.preprocessing.height,
                    "width": description.preprocessing.width,
                    "maps": list(description.methods),
                    "precision": description.precision,
                    "top1": top1,
                    "top1_part": top1_part,
                }
            rows.append(row)
    columns = ["name", "version", "backbone", "head", "classes", "input", "maps", "precision", "top1", "top1_part", "size_mb"]
    if any("problem" in row for row in rows):
        columns.append("problem")
    show(rows if as_json else [_legible(row) for row in rows], columns, as_json)


def _legible(row: dict[str, Any]) -> dict[str, Any]:
    """Format a row for the table, with the first maps, the input size in one cell, and the file size in MB."""
    legible = {**row, "size_mb": f"{row['size_bytes'] / 1e6:.1f}"}
    if "maps" in row:
        legible |= {"maps": shorten(row["maps"]), "input": f"{row['height']}x{row['width']}"}
    return legible


def _top1(provenance: Provenance) -> tuple[float | None, str | None]:
    """Return the top-1 accuracy of a file and the split on which it was measured; None for both if it was not measured.

    Files in fp16 and int8 are measured on the validation split only.
    """
    if provenance.agreement is not None:
        return provenance.agreement.top1, None if provenance.agreement.top1 is None else "val"
    for part in ("test", "val"):
        if f"{part}_top1" in provenance.metrics:
            return provenance.metrics[f"{part}_top1"], part
    return None, None
