"""`tlcli export`: write a run, or a published backbone, to one ONNX file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from tlcli.cli import options
from tlcli.cli.console import Console, show, table
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.contract.model.description import Agreement, Plain, Precision
    from tlcli.exports import Exported, SmallerNumbers
    from tlcli.exports.fold_temperature import Temperature
    from tlcli.training.models.network import ImageNetwork

GROUPS = {
    "Output": ("output", "name", "quiet"),
    "Maps": ("cams", "layers", "list_them"),
    "Model": ("dynamic_size", "temperature"),
    "Plain graph": ("plain", "classes", "static_batch", "static_classes"),
    "Precision": ("precision", "calibration_paths", "calibration_images", "max_accuracy_drop", "min_map_correlation", "seed"),
    "Checks": ("check_images", "image_paths", "dataset", "data_dir"),
    "ONNX file, instead of a run": (
        "onnx_file",
        "input_range",
        "layout",
        "channel_order",
        "logits",
        "guess_folder",
    ),
    "Backbone, instead of a run": (
        "backbone",
        "weights",
        "model_kwargs",
        "image_size",
        "crop_pct",
        "crop_mode",
        "interpolation",
        "mean",
        "std",
        "label_file",
    ),
}
"""Parameter names under each heading of the help text."""


def _parse_temperature(ctx: click.Context, option: click.Parameter, value: str) -> Temperature:
    try:
        return "fit" if value == "fit" else float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected a number above 0, or fit") from None


@click.command("export", cls=Command, groups=GROUPS)
@click.argument("run", required=False, type=click.Path(path_type=Path))
@options.folder_option("models", "Model repository; the file becomes OUTPUT/NAME/VERSION/model.onnx.")
@click.option("--name", help="Name of the model.  [default: the run's, or the backbone's]")
@click.option(
    "--cam",
    "cams",
    metavar="METHOD",
    multiple=True,
    help="Map methods for the graph, several with commas, or `none`.  [default: all that the network allows]",
)
@click.option(
    "--cam-layer",
    "layers",
    multiple=True,
    metavar="LAYER",
    help="Layer to explain: a module, or a value of an ONNX file. If repeated, fused maps are added.  [default: the last spatial layer]",
)
@click.option("--list-cam-layers", "list_them", is_flag=True, help="List the layers that maps can explain, and exit.")
@click.option("--dynamic-size", is_flag=True, help="Accept images of any height and width.")
@click.option(
    "--plain",
    multiple=True,
    metavar="METHOD",
    help="Instead of --cam: write a graph without branches and optional inputs, for browsers, OpenVINO, TensorRT. It always computes these"
    " maps; several with commas, `all` or `none`.",
)
@click.option(
    "--classes",
    type=click.Choice(["input", "top"]),
    help="With --plain: explain the classes in the input `targets`, or the predicted class.  [default: input]",
)
@click.option("--static-batch", type=click.IntRange(min=1), metavar="N", help="With --plain: fix the number of images per run.")
@click.option(
    "--static-classes",
    type=click.IntRange(min=1),
    metavar="K",
    help="With --plain: fix the number of classes per image.  [default: any, or 1 with --static-batch]",
)
@click.option(
    "--temperature",
    default="1",
    show_default=True,
    metavar="NUMBER|fit",
    callback=_parse_temperature,
    help="Divide the logits by this temperature to calibrate the scores; `fit` finds it on the run's validation split.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Reduced precision: fp16 for GPUs; int8 for CPUs, calibrated on the run's training images.",
)
@click.option(
    "--calibration",
    "calibration_paths",
    multiple=True,
    type=click.Path(path_type=Path),
    help="With --backbone: image file or folder for int8 calibration. May be repeated.",
)
@click.option("--calibration-images", type=click.IntRange(min=1), help="Number of images to calibrate int8 on.  [default: 256]")
@click.option(
    "--max-accuracy-drop",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Percentage points of accuracy that fp16 or int8 may lose.  [default: 0.5; without labels, 10 % of the predictions may change]",
)
@click.option(
    "--min-map-correlation",
    type=click.FloatRange(-1, 1),
    metavar="CORRELATION",
    help="Minimum mean rank correlation of each map in fp16 or int8 with the map in fp32.  [default: 0.9]",
)
@click.option(
    "--check-images",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Number of images that the exported file is checked on.",
)
@click.option(
    "--labels",
    "label_file",
    type=click.Path(path_type=Path),
    help="File with the labels in the order of the classes, one per line or JSON, with --backbone or --onnx.",
)
@click.option("--dataset", metavar="FOLDER", help="New location of the run's images, if they were moved; they must be unchanged.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="New location of the run's known data set, if it was moved."
)
@click.option(
    "--images",
    "image_paths",
    multiple=True,
    type=click.Path(path_type=Path),
    help="With --backbone or --onnx: images to check on.",
)
@click.option(
    "--onnx", "onnx_file", type=click.Path(path_type=Path), metavar="FILE", help="Image classifier to add maps to. PyTorch is not needed."
)
@click.option(
    "--input-range",
    type=click.Choice(["0..255", "0..1", "-1..1"]),
    help="Range of pixel values that the ONNX file expects; also the scale of --mean and --std.",
)
@click.option("--layout", type=click.Choice(["nchw", "nhwc"]), help="Order of the ONNX file's input axes.  [default: from its shape]")
@click.option(
    "--channel-order", type=click.Choice(["rgb", "bgr"]), default="rgb", show_default=True, help="Order of the ONNX file's input channels."
)
@click.option("--logits", metavar="NAME", help="Value or node of the ONNX file that holds the logits.  [default: before its softmax]")
@click.option(
    "--guess-preprocessing",
    "guess_folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Try the usual normalisations on labelled images, a folder per class, and use the most accurate.",
)
@options.network_options
@options.seed_option
@options.quiet_option
def command(
    run: Path | None,
    output: Path,
    name: str | None,
    cams: tuple[str, ...],
    layers: tuple[str, ...],
    list_them: bool,
    dynamic_size: bool,
    plain: tuple[str, ...],
    classes: Literal["input", "top"] | None,
    static_batch: int | None,
    static_classes: int | None,
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
    onnx_file: Path | None,
    input_range: str | None,
    layout: str | None,
    channel_order: str,
    logits: str | None,
    guess_folder: Path | None,
    backbone: str | None,
    seed: int,
    quiet: bool,
    **network: Any,
) -> None:
    """Write a run, a published backbone or an ONNX classifier to one ONNX file with maps in its graph.

    RUN is a run's folder, such as runs/NAME. --backbone instead exports a network with the classifier it was published with: an ImageNet
    classifier with maps. --onnx adds maps to an ONNX file that you already have. The file is compared with PyTorch, or with the original
    ONNX file, on images, and written only if it agrees. Maps that are computed outside the
    graph (Eigen-CAM, Score-CAM and their variants) are always available.

    --plain writes a separate model, NAME-plain, because its inputs are different.

    fp16 and int8 are validated on the run's validation split, and rejected if accuracy (--max-accuracy-drop) or the maps
    (--min-map-correlation) change too much.

    \b
    tlcli export runs/NAME
    tlcli export --backbone resnet50 --cam gradcam,layercam
    tlcli export --onnx classifier.onnx --input-range 0..1
    """
    given = [text for text, value in ((str(run), run), (f"--backbone {backbone}", backbone), (f"--onnx {onnx_file}", onnx_file)) if value]
    if not given:
        raise click.UsageError("nothing to export: give a run's folder, --backbone NAME for a published network, or --onnx FILE")
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} cannot be combined: use only one of them")
    chosen = _methods(plain, "--plain") if plain else _methods(cams, "--cam")
    form = _plain_form(plain, cams, classes, static_batch, static_classes)
    _check_flags(run, precision, calibration_images, max_accuracy_drop, min_map_correlation, chosen, layers)
    if list_them:
        _refuse_with_list()
    console = Console(quiet)
    if onnx_file is not None:
        from tlcli.cli import onnx_export

        onnx_export.require_flags()
        flags = {name: network[name] for name in ("image_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")}
        settings = onnx_export.input_settings(input_range=input_range, layout=layout, channel_order=channel_order, **flags)
        if list_them:
            onnx_export.list_layers(onnx_file, settings, logits)
            return
        exported = onnx_export.run(
            onnx_file,
            console,
            name=name or model_name(onnx_file.stem),
            repository=output,
            settings=settings,
            labels=None if label_file is None else _read_labels(label_file),
            logits=logits,
            image_paths=image_paths,
            guess_folder=guess_folder,
            methods=chosen,
            layers=layers or None,
            check_images=check_images,
        )
        report(exported, console, onnx_file.name)
        click.echo(exported.path)
        return
    onnx_only = ("input_range", "layout", "channel_order", "logits", "guess_folder")
    options.reject_flags(onnx_only, "apply only to an ONNX file: add --onnx FILE")
    numbers = _numbers(precision, calibration_images, seed, max_accuracy_drop, min_map_correlation)
    if run is not None:
        options.require_backbone_flags((*network, "label_file", "image_paths", "calibration_paths"))
        if not run.exists() and options.is_backbone(str(run)):
            raise click.UsageError(f"{run} is a backbone, not a run: use --backbone {run}")
        from tlcli.exports import export_run
        from tlcli.training.runs.load_run import load_run

        loaded = load_run(run).on(dataset, data_dir)
        if list_them:
            _list_layers(loaded.network)
            return
        exported = export_run(
            loaded,
            name=name or default_name(loaded.config.name or model_name(run.resolve().name), form),
            repository=output,
            methods=chosen,
            layers=layers or None,
            dynamic_size=dynamic_size,
            temperature=temperature,
            numbers=numbers,
            plain=form,
            check_images=check_images,
            progress=console.progress,
            say=console.say,
        )
    else:
        if dataset is not None or data_dir is not None:
            raise click.UsageError("--dataset and --data-dir apply only to a run: use --images or --calibration with --backbone")
        if temperature == "fit":
            raise click.UsageError("--temperature fit needs the validation split of a run: use a number with --backbone")
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
            name=name or default_name(model_name(str(backbone)), form),
            repository=output,
            labels=labels,
            image_paths=image_paths,
            methods=chosen,
            layers=layers or None,
            dynamic_size=dynamic_size,
            temperature=temperature,
            numbers=numbers,
            plain=form,
            calibration_paths=calibration_paths,
            check_images=check_images,
            say=console.say,
        )
    report(exported, console)
    click.echo(exported.path)


def _check_flags(
    run: Path | None,
    precision: Precision,
    calibration_images: int | None,
    max_accuracy_drop: float | None,
    min_map_correlation: float | None,
    methods: tuple[str, ...] | None,
    layers: tuple[str, ...],
) -> None:
    """Reject flags that would have no effect.

    Raises:
        UsageError: a flag would have no effect.
    """
    if precision == "fp32" and max_accuracy_drop is not None:
        raise click.UsageError("--max-accuracy-drop applies only to reduced precision: add --precision fp16 or int8")
    if precision != "int8" and calibration_images is not None:
        raise click.UsageError("--calibration-images applies only to int8: add --precision int8, or leave it out")
    if precision == "fp32" and min_map_correlation is not None:
        raise click.UsageError("--min-map-correlation applies only to reduced precision: add --precision fp16 or int8")
    if methods == () and min_map_correlation is not None:
        raise click.UsageError("--min-map-correlation cannot be combined with --cam none, which exports no maps: use only one of them")
    if methods == () and layers:
        raise click.UsageError("--cam-layer cannot be combined with --cam none, which exports no maps: use only one of them")
    if run is not None and precision != "int8" and options.is_given_by_flag("seed"):
        raise click.UsageError("--seed only selects the calibration images of --precision int8: add that, or leave --seed out")


def _plain_form(
    plain: tuple[str, ...],
    cams: tuple[str, ...],
    classes: Literal["input", "top"] | None,
    static_batch: int | None,
    static_classes: int | None,
) -> Plain | None:
    """Return the form of a plain graph, or None without `--plain`.

    Raises:
        UsageError: `--plain` is combined with `--cam`, or an option that depends on it is given without it.
        SettingsError: see `new_plain`.
    """
    if not plain:
        given = {"--classes": classes, "--static-batch": static_batch, "--static-classes": static_classes}
        if flags := [flag for flag, value in given.items() if value is not None]:
            raise click.UsageError(f"{', '.join(flags)}: apply only to plain graphs: add --plain, such as --plain gradcam")
        return None
    if cams:
        raise click.UsageError("--cam cannot be combined with --plain, which takes the map methods itself: leave --cam out")
    from tlcli.exports.plain_settings import new_plain

    return new_plain(_methods(plain, "--plain"), classes, static_batch, static_classes)


def default_name(name: str, plain: Plain | None) -> str:
    """Return the name of an exported model that is not named by the user. A plain graph is a separate model."""
    return name if plain is None else f"{name}-plain"


def _methods(cams: tuple[str, ...], flag: str) -> tuple[str, ...] | None:
    """Return the map methods in `--cam` or `--plain`. None selects all that the network supports; an empty tuple selects no maps."""
    if not cams:
        return None
    text = ",".join(cams)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not all(names) or ("none" in names and len(names) > 1):
        raise click.UsageError(f"{flag} {text!r}: expected map methods separated by commas, such as gradcam,layercam; or none")
    if names in (("none",), ("all",)):
        return () if names == ("none",) else None
    return names


def _refuse_with_list() -> None:
    """Reject flags for the exported file in combination with `--list-cam-layers`.

    Raises:
        UsageError: such a flag was given.
    """
    for name in ("cams", "plain", "layers", "name", "temperature", "precision", "label_file", "image_paths"):
        if options.is_given_by_flag(name):
            flag = next(parameter.opts[0] for parameter in click.get_current_context().command.params if parameter.name == name)
            raise click.UsageError(f"{flag} cannot be combined with --list-cam-layers, which exports nothing: use only one of them")


def _read_labels(path: Path) -> list[str]:
    """Read the labels from a file and print a warning for labels that several classes share."""
    from tlcli.contract.model.labels import LabelIndex, read_labels

    labels = read_labels(path)
    for label, ids in LabelIndex(labels).repeated().items():
        click.echo(f"warning: {path}: classes {', '.join(map(str, ids))} share the label {label!r}: use their ids", err=True)
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


def _list_layers(network: ImageNetwork) -> None:
    from tlcli.exports import list_layers

    rows = [
        {"layer": layer.name, "module": layer.kind, "channels": layer.channels, "height": layer.height, "width": layer.width}
        for layer in list_layers(network)
    ]
    show(rows, ("layer", "module", "channels", "height", "width"), as_json=False)


def report(exported: Exported, console: Console, reference: str = "PyTorch") -> None:
    """Report how much the exported file differs from its reference, and how much reduced precision differs from fp32.

    Args:
        exported: the export.
        console: console to print to.
        reference: name of what the file was compared with.
    """
    parity = exported.parity
    maps = ""
    if parity.maps:
        worst = max(parity.maps, key=lambda name: parity.maps[name])
        maps = f", maps {parity.maps[worst]:.1e} of their largest value ({worst})"
    console.say(
        f"exported {exported.name} version {exported.version} with {', '.join(exported.description.methods) or 'no maps'}:"
        f" the predicted class agrees with {reference} on {parity.top1_agreement:.0%} of {parity.images} images;"
        f" largest differences: logits {parity.logits:.1e}{maps}"
    )
    agreement = exported.description.provenance.agreement
    if agreement is not None:
        _report_agreement(agreement, exported.description.precision, console)


def _report_agreement(agreement: Agreement, precision: Precision, console: Console) -> None:
    accuracy = "" if agreement.top1 is None else f"top-1 {agreement.top1:.2%}, in fp32 {agreement.top1_before:.2%}; "
    speed = f"; scores take {agreement.time:.2f} of the fp32 time on this CPU" if precision == "int8" else ""
    console.say(
        f"{precision} against fp32 on {agreement.images:,} images ({agreement.source}): {accuracy}"
        f"the same predicted class for {agreement.agreement:.2%}{speed}; maps:"
    )
    rows: list[dict[str, Any]] = []
    for name, compared in agreement.maps.items():
        row = {
            "map": name,
            "images": compared.images,
            "rank_correlation": compared.rank_correlation,
            "median": compared.rank_correlation_median,
        }
        if compared.pointing is not None:
            row |= {"pointing_fp32": compared.pointing_before, f"pointing_{precision}": compared.pointing}
        rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for line in table(rows, columns):
        console.say(f"  {line}")


def model_name(text: str) -> str:
    """Convert the name of a folder or backbone to a valid model name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"
