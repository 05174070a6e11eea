"""`tlcli models`: what a model repository holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlcli.cli import options
from tlcli.cli.console import show
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.contract.model.description import Provenance


@click.command("models", cls=Command)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@options.models_option
@options.json_option
def command(folder: Path | None, models: Path, as_json: bool) -> None:
    """List the exported models in a folder.

    FOLDER is the model repository, the same as --models.
    """
    if folder is not None:
        if options.is_given_by_flag("models"):
            raise click.UsageError(f"{folder} and --models {models}: both name the model repository: give one of them")
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
            row: dict[str, Any] = {"name": name, "version": version, "size": f"{path.stat().st_size / 1e6:.1f} MB"}
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
                    "input": f"{description.preprocessing.height}x{description.preprocessing.width}",
                    "maps": list(description.methods),
                    "precision": description.precision,
                    "top1": top1,
                    "top1_part": top1_part,
                }
            rows.append(row)
    columns = ["name", "version", "backbone", "head", "classes", "input", "maps", "precision", "top1", "top1_part", "size"]
    show(rows, [*columns, "problem"] if any("problem" in row for row in rows) else columns, as_json)


def _top1(provenance: Provenance) -> tuple[float | None, str | None]:
    """The accuracy of this file, and the split it was measured on: a file in smaller numbers was only measured on the validation split."""
    if provenance.agreement is not None:
        return provenance.agreement.top1, None if provenance.agreement.top1 is None else "val"
    for part in ("test", "val"):
        if f"{part}_top1" in provenance.metrics:
            return provenance.metrics[f"{part}_top1"], part
    return None, None
