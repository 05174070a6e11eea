"""`tlcli export`: a run, or a backbone as it is, to one ONNX file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlcli.cli import options
from tlcli.cli.console import Console, show, table
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.contract.model.description import Agreement, Precision
    from tlcli.exports import Exported, SmallerNumbers
    from tlcli.exports.fold_temperature import Temperature
    from tlcli.training.models.network import Network


def _parse_temperature(ctx: click.Context, option: click.Parameter, value: str) -> Temperature:
    try:
        return "fit" if value == "fit" else float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected a number above 0, or fit") from None


@click.command("export", cls=Command)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@options.models_option
@click.option("--name", help="The model's name.  [default: the run's, or the backbone's]")
@click.option("--methods", help="Map methods for the graph, with commas, or `none`.  [default: all that the head allows]")
@click.option(
    "--cam-layer",
    "layers",
    multiple=True,
    metavar="LAYER",
    help="Explain this layer, by its module's name. May be repeated: the maps are then fused too.  [default: the last one with an extent]",
)
@click.option("--list-cam-layers", "list_them", is_flag=True, help="List the layers that maps can explain, and export nothing.")
@click.option("--dynamic-size", is_flag=True, help="Let the file take images of any height and width.")
@click.option(
    "--temperature",
    default="1",
    show_default=True,
    metavar="NUMBER|fit",
    callback=_parse_temperature,
    help="Divide the logits by it, so that scores mean more; `fit` finds the one that suits the run's validation part.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Smaller numbers: fp16 for GPUs; int8 for CPUs, calibrated on the run's training images.",
)
@click.option(
    "--calibration",
    "calibration_paths",
    multiple=True,
    type=click.Path(path_type=Path),
    help="With --backbone: images to calibrate int8 on, files or folders. May be repeated.",
)
@click.option("--calibration-images", type=click.IntRange(min=1), help="How many images to calibrate int8 on.  [default: 256]")
@click.option(
    "--max-accuracy-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Percentage points that smaller numbers may lose.  [default: 0.5; where classes are not known, 10 may change]",
)
@click.option(
    "--min-map-correlation",
    type=click.FloatRange(-1, 1),
    metavar="CORRELATION",
    help="The least mean rank correlation of each map in smaller numbers with its map in fp32.  [default: 0.9]",
)
@click.option("--check-images", type=click.IntRange(min=1), default=16, show_default=True, help="How many images to check the file on.")
@click.option(
    "--labels",
    "label_file",
    type=click.Path(path_type=Path),
    help="With --backbone: a file of labels, one a line or JSON, in the order of the classes.",
)
@click.option("--dataset", metavar="FOLDER", help="Where the run's images are now, if they have moved: they must be the same.")
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Likewise, of a data set known by name.")
@click.option("--images", "image_paths", multiple=True, type=click.Path(path_type=Path), help="With --backbone: images to check on.")
@options.network_options
@options.seed_option
@options.quiet_option
def command(
    run: Path | None,
    models: Path,
    name: str | None,
    methods: str | None,
    layers: tuple[str, ...],
    list_them: bool,
    dynamic_size: bool,
    temperature: Temperature,
    precision: Precision,
    calibration_paths: tuple[Path, ...],
    calibration_images: int | None,
    max_accuracy_drop: float | None,
    min_map_correlation: float | None,
    check_images: int,
    label_file: Path | None,
    image_paths: tuple[Path, ...],
    dataset: str | None,
    data_dir: Path | None,
    backbone: str | None,
    seed: int,
    quiet: bool,
    **network: Any,
) -> None:
    """Write a run, or a backbone as it is, to one ONNX file with maps in its graph.

    RUN is a run's folder, such as runs/NAME. Instead of it, --backbone exports a network with the classifier it
    was published with: an ImageNet classifier with maps. The file is checked against PyTorch on images, and
    put in place only if it agrees. Maps that are computed beside the graph (Eigen-CAM, Score-CAM and their kin) need nothing of it.
    Smaller numbers (--precision) are tried on the run's validation part, and refused if they lose accuracy (--max-accuracy-drop) or change
    the maps (--min-map-correlation) too much.
    """
    if (run is None) == (backbone is None):
        raise click.UsageError("give a run's folder, or --backbone NAME to export a network as it was published: one of the two")
    if precision == "fp32" and max_accuracy_drop is not None:
        raise click.UsageError("--max-accuracy-drop: is what smaller numbers may lose: add --precision fp16 or int8")
    if precision != "int8" and calibration_images is not None:
        raise click.UsageError("--calibration-images: nothing but --precision int8 is calibrated: add it, or leave the number out")
    if precision == "fp32" and min_map_correlation is not None:
        raise click.UsageError("--min-map-correlation: is for maps in smaller numbers: add --precision fp16 or int8")
    chosen = _methods(methods)
    if chosen == () and min_map_correlation is not None:
        raise click.UsageError("--min-map-correlation with --methods none: there are no maps: leave one of them out")
    if chosen == () and layers:
        raise click.UsageError("--cam-layer with --methods none: says what maps explain, and there are none: leave one of them out")
    if run is not None and precision != "int8" and options.is_given_by_flag("seed"):
        raise click.UsageError("--seed: nothing but the images that --precision int8 is calibrated on is drawn: leave it out")
    if list_them:
        _refuse_with_list()
    console = Console(quiet)
    numbers = _numbers(precision, calibration_images, seed, max_accuracy_drop, min_map_correlation)
    if run is not None:
        options.require_backbone_flags((*network, "label_file", "image_paths", "calibration_paths"))
        from tlcli.exports import export_run
        from tlcli.training.runs.load_run import load_run

        loaded = load_run(run).on(dataset, data_dir)
        if list_them:
            _list_layers(loaded.network)
            return
        exported = export_run(
            loaded,
            name=name or loaded.config.name or model_name(run.resolve().name),
            repository=models,
            methods=chosen,
            layers=layers or None,
            dynamic_size=dynamic_size,
            temperature=temperature,
            numbers=numbers,
            check_images=check_images,
            progress=console.progress,
            say=console.say,
        )
    else:
        if dataset is not None or data_dir is not None:
            raise click.UsageError("--dataset, --data-dir: a run's; with --backbone give --images or --calibration")
        if temperature == "fit":
            raise click.UsageError("--temperature fit: is found on a run's validation part; with --backbone give a number")
        labels = None if label_file is None else _read_labels(label_file)
        from tlcli.cli.finetune_settings import finetune_config
        from tlcli.exports import export_backbone

        config = finetune_config(backbone=backbone, seed=seed, **network)
        if list_them:
            from tlcli.exports import published_network

            _list_layers(published_network(config))
            return
        exported = export_backbone(
            config,
            name=name or model_name(str(backbone)),
            repository=models,
            labels=labels,
            image_paths=image_paths,
            methods=chosen,
            layers=layers or None,
            dynamic_size=dynamic_size,
            temperature=temperature,
            numbers=numbers,
            calibration_paths=calibration_paths,
            check_images=check_images,
            say=console.say,
        )
    report(exported, console)
    click.echo(exported.path)


def _methods(text: str | None) -> tuple[str, ...] | None:
    """The names in `--methods`; None for all that the head allows, empty for none."""
    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names) or ("none" in names and len(names) > 1):
        raise click.UsageError(f"--methods {text!r}: expected map methods with commas between them, such as gradcam,layercam; or none")
    if names in (("none",), ("all",)):
        return () if names == ("none",) else None
    return names


def _refuse_with_list() -> None:
    """Refuse flags that say how a file is written, where none is."""
    for name in ("methods", "layers", "name", "temperature", "precision", "label_file", "image_paths"):
        if options.is_given_by_flag(name):
            flag = next(parameter.opts[0] for parameter in click.get_current_context().command.params if parameter.name == name)
            raise click.UsageError(f"{flag} with --list-cam-layers, which lists the layers and exports nothing: leave one of them out")


def _read_labels(path: Path) -> list[str]:
    """The labels; those that several classes share are named on standard error."""
    from tlcli.contract.model.labels import LabelIndex, read_labels

    labels = read_labels(path)
    for label, ids in LabelIndex(labels).repeated().items():
        click.echo(f"{path}: {label!r} is the label of the classes {', '.join(map(str, ids))}: only their ids tell them apart", err=True)
    return labels


def _numbers(
    precision: Precision,
    calibration_images: int | None,
    seed: int,
    max_accuracy_drop: float | None,
    min_map_correlation: float | None,
) -> SmallerNumbers | None:
    if precision == "fp32":
        return None
    from tlcli.exports.precision.convert import CALIBRATION_IMAGES, SmallerNumbers

    return SmallerNumbers(precision, calibration_images or CALIBRATION_IMAGES, seed, max_accuracy_drop, min_map_correlation)


def _list_layers(network: Network) -> None:
    from tlcli.exports import list_layers

    rows = [
        {"layer": layer.name, "module": layer.kind, "channels": layer.channels, "height": layer.height, "width": layer.width}
        for layer in list_layers(network)
    ]
    show(rows, ("layer", "module", "channels", "height", "width"), as_json=False)


def report(exported: Exported, console: Console) -> None:
    """Say how far the file is from PyTorch, and in smaller numbers from itself in float32."""
    parity = exported.parity
    apart = ""
    if parity.maps:
        worst = max(parity.maps, key=lambda name: parity.maps[name])
        apart = f", maps {parity.maps[worst]:.1e} of their largest value ({worst})"
    console.say(
        f"exported {exported.name} version {exported.version} with {', '.join(exported.description.methods) or 'no maps'}:"
        f" on {parity.images} images the first class agrees on {parity.top1_agreement:.0%};"
        f" largest differences: logits {parity.logits:.1e}{apart}"
    )
    agreement = exported.description.provenance.agreement
    if agreement is not None:
        _report_agreement(agreement, exported.description.precision, console)


def _report_agreement(agreement: Agreement, precision: Precision, console: Console) -> None:
    right = "" if agreement.top1 is None else f"right on {agreement.top1:.2%}, in fp32 on {agreement.top1_before:.2%}; "
    quicker = f"; scores take {agreement.time:.2f} of the time on this CPU" if precision == "int8" else ""
    console.say(
        f"{precision} and fp32 on {agreement.images:,} images ({agreement.source}): {right}"
        f"the same first class for {agreement.agreement:.2%}{quicker}; maps:"
    )
    rows: list[dict[str, Any]] = []
    for name, found in agreement.maps.items():
        row = {"map": name, "images": found.images, "rank_correlation": found.rank_correlation, "median": found.rank_correlation_median}
        if found.pointing is not None:
            row |= {"pointing_fp32": found.pointing_before, f"pointing_{precision}": found.pointing}
        rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for line in table(rows, columns):
        console.say(f"  {line}")


def model_name(text: str) -> str:
    """A model's name made of a folder's or a backbone's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"
