"""`tlcli clean`: find label errors, near-duplicates, outliers and poor images, and apply fixes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlcli.cli import options
from tlcli.cli.console import Console, show
from tlcli.cli.finetune_settings import check_data_dir, finetune_config
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.evaluation.cleaning.images import LabelledParts
    from tlcli.training.runs.load_run import Run

DEFAULT_BACKBONE = "resnet18"
LABELS = "labels.csv"


@click.command("clean", cls=Command)
@click.argument("source")
@click.option(
    "--apply",
    "fixes_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="CSV",
    help="Apply the actions in this table and write a new label file.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=48, show_default=True, help="Images of each kind on the page; the table has all."
)
@options.network_options
@options.data_dir_option
@options.columns_option
@options.seed_option
@options.device_option
@options.folder_option("clean", "Folder for the results. A number is appended if it is not empty, such as clean-2.")
@options.json_option
@options.quiet_option
def command(
    source: str,
    fixes_path: Path | None,
    limit: int,
    data_dir: Path | None,
    columns: dict[str, str] | None,
    seed: int,
    device: str,
    output: Path,
    as_json: bool,
    quiet: bool,
    **network: Any,
) -> None:
    """Find probable label errors, near-duplicates, outliers and poor images.

    SOURCE is a run's folder, such as runs/NAME, or a data set: a folder with one folder of images per class, a label file such as
    labels.csv, or a known name. For a run, the features are those of its network, from its cache if it trained the head only. For a data
    set, they are those of --backbone, resnet18 by default.

    Writes clean.html, a page in a single file, and findings.csv. To change labels, write relabel, move or drop in its column action, and
    for relabel the class, for move the split, in its column value. --apply then writes labels.csv, a label file for `tlcli finetune`; the
    images, their folders and other label files stay as they are.

    \b
    tlcli clean runs/NAME
    tlcli clean PATH/TO/FOLDER --backbone resnet18
    tlcli clean PATH/TO/FOLDER --apply clean/findings.csv --output cleaned
    tlcli finetune cleaned/labels.csv
    """
    from tlcli.contract.model.repository_layout import is_run

    console = Console(quiet)
    if fixes_path is not None:
        options.reject_flags([*network, "limit", "seed", "device"], "has no effect with --apply: leave it out")
    run = None
    if is_run(Path(source)):
        from tlcli.training.runs.load_run import load_run

        options.require_backbone_flags(network)
        options.reject_flags(["data_dir", "columns"], "determined by the run: leave it out")
        run = load_run(source)
    else:
        options.check_images([source])
        if data_dir is not None:
            check_data_dir(source)
    network["backbone"] = network["backbone"] or DEFAULT_BACKBONE
    settings = {"dataset": source, "data_dir": data_dir, "columns": columns, "device": device, **network}
    images = _open(run, settings, console)
    if fixes_path is None:
        _examine(run, images, settings, source, seed, limit, output, as_json, console)
    else:
        _apply(images, fixes_path, output, as_json, console)


def _open(run: Run | None, settings: dict[str, Any], console: Console) -> LabelledParts:
    from tlcli.contract.files.display_name import printable
    from tlcli.evaluation.cleaning.images import open_dataset, open_run

    images = open_dataset(finetune_config(**settings), console.progress) if run is None else open_run(run, console.progress)
    for note in images.notes:
        console.say(f"warning: {note}")
    for left in images.left_out:
        console.say(printable(f"left out: {left.name}: {left.reason}"))
    return images


def _examine(
    run: Run | None,
    images: LabelledParts,
    settings: dict[str, Any],
    source: str,
    seed: int,
    limit: int,
    output: Path,
    as_json: bool,
    console: Console,
) -> None:
    """Write the page and the table, and print the number of findings of each kind."""
    from tlcli.contract.files.atomic_file import fresh_folder
    from tlcli.evaluation.cleaning.findings import KINDS, find_issues
    from tlcli.evaluation.cleaning.findings_table import write_findings
    from tlcli.evaluation.cleaning.images import features_of_backbone, features_of_run, look_at
    from tlcli.evaluation.cleaning.page import PAGE, TABLE, write_page
    from tlcli.training.runtime.device import keep_to_usable_cores

    keep_to_usable_cores()
    if run is None:
        features = features_of_backbone(finetune_config(**settings), images, console.progress, console.say)
    else:
        features = features_of_run(run, images, settings["device"], console.progress, console.say)
    qualities, thumbnails = look_at(images.images, console.progress)
    findings = find_issues(images, features, qualities, thumbnails, seed, console.progress)
    folder = fresh_folder(output)
    write_findings(folder / TABLE, findings.rows, images)
    write_page(folder / PAGE, images, findings, source, limit)
    counts = Counter(row.kind for row in findings.rows)
    confident = Counter(row.kind for row in findings.rows if row.confident)
    noted = {"label-error": "confident", "near-duplicate": "across splits"}
    rows = [
        {"issue": kind, "count": counts[kind], "of which": f"{confident[kind]} {noted[kind]}" if kind in noted else ""} for kind in KINDS
    ]
    if as_json:
        rows = [{"issue": kind, "count": counts[kind], "confident": confident[kind]} for kind in KINDS]
    show(rows, ["issue", "count", "of which"], as_json)
    if findings.not_judged:
        console.say(f"warning: labels are not judged in classes with fewer than five images: {', '.join(findings.not_judged[:20])}")
    console.say(f"\nwritten: {folder}; see {folder / PAGE} and {folder / TABLE}")


def _apply(images: LabelledParts, fixes_path: Path, output: Path, as_json: bool, console: Console) -> None:
    """Write the label file and print the number of images that each action changed."""
    from tlcli.contract.files.atomic_file import fresh_folder
    from tlcli.evaluation.cleaning.fixes import read_fixes, require_files, write_fixed

    require_files(images)
    fixes = read_fixes(fixes_path, images)
    folder = fresh_folder(output)
    count = write_fixed(folder / LABELS, images, fixes)
    rows = [
        {"action": "relabel", "count": sum(fix.label is not None for fix in fixes.values())},
        {"action": "move", "count": sum(fix.split is not None for fix in fixes.values())},
        {"action": "drop", "count": sum(fix.is_dropped for fix in fixes.values())},
    ]
    show(rows, ["action", "count"], as_json)
    console.say(f"\nwritten: {folder / LABELS}, {count:,} images; train on it with `tlcli finetune {folder / LABELS}`")
