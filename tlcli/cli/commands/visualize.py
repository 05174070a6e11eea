"""`tlcli visualize`: draw filters and activations as PNG sheets."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlcli.cli import options
from tlcli.cli.console import Console, show
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.training.models.network import Network
    from tlcli.training.models.spatial_layers import Layer
    from tlcli.training.visualize.write_sheets import WrittenSheet


@click.command("visualize", cls=Command)
@click.argument("paths", nargs=-1, metavar="[SOURCE] [IMAGE]", type=click.Path(path_type=Path))
@click.option(
    "--layer", "names", multiple=True, metavar="NAME", help="Draw this layer; may be repeated. `all`: every layer with activation maps."
)
@click.option("--list-layers", is_flag=True, help="List the layers that have activation maps, and exit.")
@click.option(
    "--filters",
    "every_filter",
    is_flag=True,
    help="Draw the filters of every convolution, not only the first; 1x1 convolutions need --layer.",
)
@options.folder_option("sheets", "Folder for the sheets. A number is appended if it is not empty, such as sheets-2.")
@click.option(
    "--max-channels",
    type=click.IntRange(1, 4096),
    default=64,
    show_default=True,
    help="Maximum number of channels per sheet; the most active are shown.",
)
@click.option("--columns", type=click.IntRange(1, 64), help="Number of columns per sheet.  [default: depends on the number of channels]")
@options.network_options
@options.seed_option
@options.json_option
@options.quiet_option
def command(
    paths: tuple[Path, ...],
    names: tuple[str, ...],
    list_layers: bool,
    every_filter: bool,
    output: Path,
    max_channels: int,
    columns: int | None,
    as_json: bool,
    quiet: bool,
    **source: Any,
) -> None:
    """Draw the filters of a network, and the activations of its layers for an image.

    SOURCE is a run's folder, such as runs/NAME; to draw a published network instead, use --backbone. With an IMAGE, the activation maps
    of each selected layer are drawn on a sheet, and overview.png shows all of these layers. The default layers are the stem, the pooling
    layers and the last layer of each size. Without an image, only filters are drawn.

    \b
    tlcli visualize runs/NAME image.jpg
    tlcli visualize --backbone resnet18 --list-layers
    """
    run, path = _sources(paths, source["backbone"])
    from tlcli.contract.files.atomic_file import fresh_folder
    from tlcli.contract.files.display_name import printable
    from tlcli.contract.images import decoding
    from tlcli.training.models.spatial_layers import spatial_layers
    from tlcli.training.visualize.select_layers import asked_layers, convolutions, default_layers
    from tlcli.training.visualize.write_sheets import SheetOptions, write_filters, write_maps

    image = None if path is None else decoding.read(path)
    network = _network(run, source)
    layers = spatial_layers(network)
    if list_layers:
        for flag, is_given in (("--layer", bool(names)), ("--filters", every_filter), (f"{path}", path is not None)):
            if is_given:
                raise click.UsageError(f"{flag} cannot be combined with --list-layers, which draws nothing: use only one of them")
        _show_layers(layers, default_layers(network.backbone, layers), as_json)
        return
    chosen = asked_layers(network.backbone, layers, names) if names else default_layers(network.backbone, layers)
    kernels = convolutions(network.backbone, layers, names, every_filter or (image is None and bool(names)))
    if image is None and not kernels:
        raise click.UsageError("none of these layers is a convolution with filters to draw: give an IMAGE to draw activations")
    folder = fresh_folder(output)
    sheet_options, last = SheetOptions(max_channels, columns), max(layer.number for layer in layers)
    sheets, count = write_filters(network, kernels, folder, sheet_options, last), len(kernels)
    if image is not None and path is not None:
        pixels = network.config.preprocessing.apply(image)
        sheets = chain(sheets, write_maps(network, pixels, printable(path.name), chosen, folder, sheet_options, last))
        count += len(chosen) + 1
    written: list[WrittenSheet] = []
    with Console(quiet).progress("Drawing", count) as advance:
        for sheet in sheets:
            written.append(sheet)
            advance(1)
    _show_written(sorted(written, key=lambda sheet: sheet.path.name), as_json)


def _sources(paths: tuple[Path, ...], backbone: str | None) -> tuple[Path | None, Path | None]:
    """Return the run and the image from the positional arguments; None for one that was not given."""
    if len(paths) > (2 if backbone is None else 1) or (not paths and backbone is None):
        raise click.UsageError("give a run's folder, or --backbone NAME for a published network, and then at most one image")
    run = paths[0] if backbone is None else None
    rest = paths if backbone is not None else paths[1:]
    return run, rest[0] if rest else None


def _network(run: Path | None, source: dict[str, Any]) -> Network:
    if run is None:
        from tlcli.cli.finetune_settings import finetune_config
        from tlcli.training.visualize.write_sheets import without_classifier

        return without_classifier(finetune_config(**source))
    options.require_backbone_flags(source)
    from tlcli.training.runs.load_run import load_run

    return load_run(run).network


def _show_layers(layers: list[Layer], default: list[Layer], as_json: bool) -> None:
    rows = [
        {
            "number": layer.number,
            "layer": layer.label,
            "type": layer.kind,
            "shape": list(layer.shape) if as_json else _shape(layer.shape),
            "default": layer in default if as_json else "yes" if layer in default else "",
        }
        for layer in layers
    ]
    show(rows, ["number", "layer", "type", "shape", "default"], as_json)


def _show_written(sheets: list[WrittenSheet], as_json: bool) -> None:
    rows: list[dict[str, Any]] = [
        {
            "file": str(sheet.path),
            "layer": sheet.layer.label if sheet.layer else None,
            "type": sheet.layer.kind if sheet.layer else None,
            "shape": list(sheet.shape) if as_json else _shape(sheet.shape),
            "sheet": sheet.what,
            "shown": list(sheet.shown),
            "flat": sheet.flat,
        }
        for sheet in sheets
    ]
    show(rows, ["file", "layer", "type", "shape"], as_json)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
