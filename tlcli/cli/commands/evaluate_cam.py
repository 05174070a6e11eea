"""`tlcli evaluate-cam`: how good the maps of an exported model are."""

from __future__ import annotations

from pathlib import Path

import click

from tlcli.cli import options
from tlcli.cli.console import Console, show
from tlcli.cli.finetune_settings import check_data_dir
from tlcli.cli.parsing import Command


def _names(_: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name for name in (part.strip() for part in value.split(",")) if name)
    if not names:
        raise click.BadParameter(f"--{option.name}: no name came, one or more with commas were expected")
    return names


@click.command("evaluate-cam", cls=Command)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data")
@click.option(
    "--methods",
    callback=_names,
    metavar="A,B",
    help="Maps to judge, or `all`.  [default: all but scorecam and ablationcam, which take minutes]",
)
@click.option("--metrics", callback=_names, metavar="A,B", help="What to measure.  [default: all that the data allows]")
@click.option("--limit", type=click.IntRange(min=1), default=200, show_default=True, help="Images, spread evenly over the classes.")
@click.option(
    "--explain",
    type=click.Choice(["predicted", "label"]),
    default="predicted",
    show_default=True,
    help="The class whose map is judged: the model's first, or the image's own (its folder's name).",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Equal shares of the pixels, for deletion and insertion."
)
@click.option(
    "--softmax", type=click.Choice(["off", "on"]), default="off", show_default=True, help="Explain the class's probability, not its logit."
)
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Where known data sets are kept.  [default: the cache]")
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images that the model is given at a time.")
@options.seed_option
@options.device_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("evaluate-cam"),
    show_default=True,
    help="Folder for the results.",
)
@options.json_option
@options.quiet_option
def command(
    model: Path,
    data: str,
    methods: tuple[str, ...] | None,
    metrics: tuple[str, ...] | None,
    limit: int,
    explain: str,
    steps: int,
    softmax: str,
    data_dir: Path | None,
    batch_size: int,
    seed: int,
    device: str,
    out: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure how good a model's maps are, each method beside the others.

    MODEL is a folder of the repository, such as models/NAME, or an ONNX file. DATA is a folder of images, a folder a class,
    or a known data set; its test part is used if it has one. What is measured is what is served: the file, on ONNX Runtime.

    \b
    deletion, insertion   the class's probability as the pixels that matter go, or come (RISE); area under the curve
    road                  the same with filled-in pixels, least relevant first less most relevant first (ROAD)
    average_drop          confidence lost where only what the map shows is left (Grad-CAM++)
    increase              share of the images where it grows instead (Grad-CAM++)
    pointing              the largest point lies on the object (excitation backprop)
    energy                share of the map on the object (Score-CAM)

    The last two need boxes.json or a folder masks in DATA, and mean most with --explain label. All are shares, from 0 to 1,
    but road, from -0.5 to 0.5. Beside the methods stand two maps that know nothing: random, and a spot in the centre.
    Changed images are rounded to 8 bits, which is what a served model takes. The model is asked about some fifty of them
    for each map of each image: begin with a small --limit.

    \b
    tlcli evaluate-cam models/shapes shapes
    tlcli evaluate-cam models/NAME PATH/TO/FOLDER --methods gradcam,layercam --limit 50
    """
    from tlcli.contract.files.atomic_file import fresh_folder
    from tlcli.contract.files.display_name import printable
    from tlcli.contract.images.find_images import describe
    from tlcli.contract.model.onnx_model import Model
    from tlcli.evaluation.baselines import BASELINES
    from tlcli.evaluation.cam_dataset import label_ids, open_images
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
    chosen = choose_methods(opened, methods)
    images = open_images(data, limit, seed, data_dir, console.progress)
    settings = Settings(
        methods=chosen,
        metrics=choose_metrics(images, metrics),
        steps=steps,
        seed=seed,
        class_ids=label_ids(images.classes, description.labels, images.where, ", or use --explain predicted")
        if explain == "label"
        else None,
        softmax=softmax == "on",
        batch_size=batch_size,
    )
    if options.is_given_by_flag("steps") and not {DELETION, INSERTION} & set(settings.metrics):
        raise click.UsageError(f"--steps is for {DELETION} and {INSERTION}: name one of them with --metrics, or leave it out")
    asked = len(images) * len(settings.names) * probes_per_map(settings)
    console.say(
        f"{len(chosen)} maps of {description.name} and {len(BASELINES)} that know nothing,"
        f" on {len(images):,} images of {images.where} ({images.part}): the model is asked {asked:,} times"
    )
    found = measure(opened, images, settings, console.progress)
    for line in describe(images.skipped):
        console.say(line)
    for left in images.left_out:
        click.echo(printable(f"left out: {left.reason}"), err=True)
    if images.truth is not None and (found.without_region or found.outside):
        console.say(
            f"of {len(found.images)} images, {found.without_region} without a box and {found.outside} with theirs outside of what the"
            " network sees: left out of pointing and energy"
        )
    judged = f"{len(found.images):,} images of {Path(images.where).name} ({images.part})"
    about = {
        "model": str(opened.path),
        "name": description.name,
        "data": data,
        "part": images.part,
        "images": len(found.images),
        "left_out": [{"name": printable(left.name), "reason": left.reason} for left in images.left_out],
        "skipped": [{"name": printable(one.name), "reason": one.reason} for one in images.skipped],
        "without_box": found.without_region,
        "box_outside": found.outside,
        "probability": sum(image.probability for image in found.images) / len(found.images),
        "explain": explain,
        "softmax": settings.softmax,
        "steps": steps,
        "seed": seed,
    }
    title = f"Maps of {description.name} for the {'predicted' if explain == 'predicted' else 'true'} class, on {judged}"
    out = fresh_folder(out)
    written = write_report(out, found, description.labels, about, title)
    rows = table_rows(found)
    show(rows, ["method", *(column.name for column in settings.columns if column.shown)], as_json)
    console.say(f"\nwritten: {', '.join(str(path) for path in written)}. Look at {out / PLOT}")
