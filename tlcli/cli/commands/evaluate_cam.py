"""`tlcli evaluate-cam`: measure the maps of an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from tlcli.cli import options
from tlcli.cli.console import Console, show
from tlcli.cli.finetune_settings import check_data_dir
from tlcli.cli.parsing import Command

OWN_CLASS = "own"


def _names(_: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name for name in (part.strip() for part in value.split(",")) if name)
    if not names:
        raise click.BadParameter(f"{value!r} contains an empty name: expected names separated by commas")
    return names


@click.command("evaluate-cam", cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data")
@click.option(
    "--cam",
    "cams",
    metavar="METHOD",
    multiple=True,
    callback=options.parse_names,
    help="Maps to measure, several with commas, or `all`.  [default: all but scorecam, ablationcam and reciprocam, which take minutes]",
)
@click.option("--metrics", callback=_names, metavar="A,B", help="Metrics to compute.  [default: all that the data allows]")
@click.option("--limit", type=click.IntRange(min=1), default=200, show_default=True, help="Number of images, spread over the classes.")
@click.option(
    "--cam-class",
    "class_name",
    metavar="CLASS",
    default="-1",
    show_default=True,
    help=f"Explain this class: a label, an id, -r for rank r, or `{OWN_CLASS}` for each image's own class (its folder's name).",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Number of steps of deletion and insertion, each with an equal fraction of the pixels.",
)
@click.option("--softmax", is_flag=True, help="Explain the softmax probability of the class instead of its logit.")
@options.data_dir_option
@options.columns_option
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images per run of the model.")
@options.seed_option
@options.device_option
@options.folder_option("evaluate-cam", "Folder for the results. A number is appended if it is not empty, such as evaluate-cam-2.")
@options.json_option
@options.quiet_option
def command(
    model: Path,
    data: str,
    cams: tuple[str, ...],
    metrics: tuple[str, ...] | None,
    limit: int,
    class_name: str,
    steps: int,
    softmax: bool,
    data_dir: Path | None,
    columns: dict[str, str] | None,
    batch_size: int,
    seed: int,
    device: str,
    output: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure the maps of an exported model, method by method.

    MODEL is a model's folder, such as models/NAME, or an ONNX file. DATA is a folder with one folder of images per class, a label
    file such as labels.csv, or a known data set; its test split is used if it has one. The model runs on ONNX Runtime, as it does
    when served.

    \b
    deletion, insertion  area under the curve of the class's probability while
                         its most important pixels are removed, inserted (RISE)
    road                 the same with imputed pixels: least relevant first minus
                         most relevant first (ROAD)
    average_drop         confidence lost if only the mapped region is kept
                         (Grad-CAM++)
    increase             fraction of images whose confidence rises instead
                         (Grad-CAM++)
    pointing             fraction of maps whose maximum is on the object
                         (excitation backprop)
    energy               fraction of the map on the object (Score-CAM)

    The last two need boxes.json or a masks folder in DATA, and are most meaningful with --cam-class own. All values range from 0 to 1,
    except road, which ranges from -0.5 to 0.5. Two baselines are measured along with the methods: a random map and a centred blob.
    Modified images are rounded to 8 bits, which is what a served model accepts. Each map of each image takes about fifty runs of the
    model: start with a small --limit.

    \b
    tlcli evaluate-cam models/shapes shapes
    tlcli evaluate-cam models/NAME FOLDER --cam gradcam,layercam --limit 50
    """
    from tlcli.contract.files.atomic_file import fresh_folder
    from tlcli.contract.files.display_name import printable
    from tlcli.contract.images.find_images import describe
    from tlcli.contract.model.onnx_model import Model
    from tlcli.evaluation.baselines import BASELINES
    from tlcli.evaluation.cam_dataset import open_images
    from tlcli.evaluation.cam_metrics import DELETION, INSERTION
    from tlcli.evaluation.cam_report import PLOT, table_rows, write_report
    from tlcli.evaluation.measure_maps import Settings, choose_methods, choose_metrics, measure, probes_per_map

    if data_dir is not None:
        check_data_dir(data)
    console = Console(quiet)
    file = options.require_model(model, [data])
    options.check_images([data])
    opened = Model.open(file, device)
    description = opened.description
    chosen = choose_methods(opened, cams or None)
    images = open_images(data, limit, seed, data_dir, console.progress, columns)
    settings = Settings(
        methods=chosen,
        metrics=choose_metrics(images, metrics),
        steps=steps,
        seed=seed,
        class_ids=_class_ids(class_name, images.classes, description.labels, images.where),
        softmax=softmax,
        batch_size=batch_size,
    )
    if options.is_given_by_flag("steps") and not {DELETION, INSERTION} & set(settings.metrics):
        raise click.UsageError(f"--steps applies to {DELETION} and {INSERTION}: add one of them with --metrics, or leave it out")
    runs = len(images) * len(settings.names) * probes_per_map(settings)
    console.say(
        f"{len(chosen)} maps of {description.name} and {len(BASELINES)} baselines"
        f" on {len(images):,} images of {images.where} ({images.part}): {runs:,} images to classify"
    )
    measured = measure(opened, images, settings, console.progress)
    for line in describe(images.skipped):
        console.say(line)
    for left in images.left_out:
        click.echo(printable(f"left out: {left.reason}"), err=True)
    if images.truth is not None and (measured.without_region or measured.outside):
        console.say(
            f"left out of pointing and energy: {measured.without_region} images without a box and {measured.outside} with the box outside"
            f" the network's input, of {len(measured.images)}"
        )
    subject = f"{len(measured.images):,} images of {Path(images.where).name} ({images.part})"
    about = {
        "model": str(opened.path),
        "name": description.name,
        "data": data,
        "part": images.part,
        "images": len(measured.images),
        "left_out": [{"name": printable(left.name), "reason": left.reason} for left in images.left_out],
        "skipped": [{"name": printable(file.name), "reason": file.reason} for file in images.skipped],
        "without_box": measured.without_region,
        "box_outside": measured.outside,
        "probability": sum(image.probability for image in measured.images) / len(measured.images),
        "cam_class": class_name,
        "softmax": settings.softmax,
        "steps": steps,
        "seed": seed,
    }
    explained = {"-1": "the predicted class", OWN_CLASS: "the true class"}.get(class_name, f"class {class_name}")
    title = f"Maps of {description.name} for {explained}, on {subject}"
    output = fresh_folder(output)
    written = write_report(output, measured, description.labels, about, title)
    rows = table_rows(measured)
    show(rows, ["method", *(column.name for column in settings.columns if column.shown)], as_json)
    console.say(f"\nwritten: {', '.join(str(path) for path in written)}; see {output / PLOT}")


def _class_ids(class_name: str, classes: Sequence[str], labels: Sequence[str], where: str) -> dict[str, int] | None:
    """Return the target to explain for each class of the data set; None explains the top-1 class of each image.

    Raises:
        DatasetError: `class_name` is `own`, and the model lacks a class of the data set.
        RequestError: the model does not have the class `class_name`.
    """
    from tlcli.contract.model.class_choice import FIRST_RANKED, class_targets
    from tlcli.evaluation.cam_dataset import label_ids

    if class_name == OWN_CLASS and OWN_CLASS not in labels:
        return label_ids(classes, labels, where, f", or use --cam-class {FIRST_RANKED}")
    (target,) = class_targets([class_name], labels, "--cam-class")
    return None if target == FIRST_RANKED else dict.fromkeys(classes, target)
