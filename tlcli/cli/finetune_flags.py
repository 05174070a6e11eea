"""The flags of `tlcli finetune`, in groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_share = click.FloatRange(0, 1, max_open=True)
_positive = click.FloatRange(min=0, min_open=True)
_at_least_0 = click.FloatRange(min=0)


def _parse_classes(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise click.BadParameter(f"{value!r}: an empty name: expected classes with commas between them, such as cat,dog")
    return names


_WHAT = [
    click.option("--head", help="`linear`, `mlp:UNITS`, or `original`: the network's own hidden layers.  [default: linear]"),
    click.option(
        "--mode",
        type=click.Choice(["feature-extraction", "full"]),
        help="Train the head on frozen features, or everything.  [default: feature-extraction]",
    ),
]

_DATA = [
    click.option("--dataset", help="A known name (`tlcli datasets`), a folder, or a timm data set spec.  [default: cats-vs-dogs]"),
    click.option(
        "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Where known data sets are kept.  [default: the cache]"
    ),
    click.option("--classes", callback=_parse_classes, help="A subset, with commas."),
    click.option("--num-classes", type=click.IntRange(min=2), help="Must match what is there."),
    click.option("--limit", type=click.IntRange(min=2), help="Images a class in each part, for trying things out."),
    click.option(
        "--val-fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Held out where there is no validation part."
    ),
    click.option("--workers", type=click.IntRange(min=0), help="Processes that read images."),
]

_TRAINING = [
    click.option("--head-search", is_flag=True, default=None, help="Try rates, weight decays and heads on the same features."),
    click.option("--epochs", type=click.IntRange(min=1), help="[default: chosen by the mode]"),
    click.option("--head-epochs", type=click.IntRange(min=0), help="With --mode full: how many of them train the head alone."),
    click.option("--batch-size", type=click.IntRange(min=1), help="Images in a batch, over all processes.  [default: 32]"),
    click.option("--accumulate", type=click.IntRange(min=1), help="Batches of --batch-size whose gradients make one step.  [default: 1]"),
    click.option("--optimizer", type=click.Choice(["adamw", "adam", "rmsprop", "sgd"]), help="[default: adamw]"),
    click.option("--lr", type=_positive, help="Peak learning rate of the head.  [default: chosen by the optimizer]"),
    click.option("--schedule", type=click.Choice(["cosine", "constant"]), help="Of the rates after they have risen.  [default: cosine]"),
    click.option("--warm-up", type=_share, help="With --mode full: share of the steps in which the rates rise.  [default: 0.1]"),
    click.option("--weight-decay", type=_at_least_0, help="[default: chosen by the optimizer]"),
    click.option(
        "--layer-decay",
        type=click.FloatRange(0, 1, min_open=True),
        help="With --mode full: each layer's rate over the one above.  [default: 0.75]",
    ),
    click.option("--label-smoothing", type=_share, help="[default: 0 for a head alone, 0.1 with --mode full]"),
    click.option("--class-weights", type=click.Choice(["none", "balanced"]), help="Weigh rare classes more.  [default: none]"),
    click.option("--patience", type=click.IntRange(min=1), help="End after so many epochs without a better one."),
    click.option("--gradual-unfreezing", is_flag=True, default=None, help="With --mode full: layers join from the head down."),
    click.option(
        "--ema", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="With --mode full: average the weights; the decay."
    ),
    click.option("--amp", type=click.Choice(["auto", "on", "off"]), help="Mixed precision.  [default: on a GPU]"),
    click.option("--compile", is_flag=True, default=None, help="With --mode full: compile the network."),
]

_IMAGES = [
    click.option("--augment", type=click.IntRange(min=0), help="With --mode feature-extraction: augmented views of each image."),
    click.option("--crop-scale", type=click.FloatRange(0, 1, min_open=True), help="The least share of an image's area that is cut out."),
    click.option("--hflip/--no-hflip", default=None, help="Mirror half of the images."),
    click.option("--jitter", type=_share, help="Of brightness, contrast and saturation."),
    click.option("--shear", type=click.FloatRange(0, 90, max_open=True), help="Degrees."),
    click.option("--zoom", type=_share, help="Larger or smaller by this share."),
    click.option("--rand-augment", type=click.IntRange(1, 30), metavar="MAGNITUDE", help="Two random changes of this strength, of 30."),
    click.option("--random-erasing", type=click.FloatRange(0, 1), help="Share of the images of which a part is painted over."),
    click.option("--mixup", type=_at_least_0, metavar="ALPHA", help="With --mode full: lay images over each other."),
    click.option("--cutmix", type=_at_least_0, metavar="ALPHA", help="With --mode full: paste parts of images into others."),
]


def what_options(function: F) -> F:
    """What is trained."""
    return _all(_WHAT, function)


def data_options(function: F) -> F:
    """On which images."""
    return _all(_DATA, function)


def training_options(function: F) -> F:
    """How long, how fast, against what."""
    return _all(_TRAINING, function)


def image_options(function: F) -> F:
    """How images are changed while the network learns."""
    return _all(_IMAGES, function)


def _all(options: list[Callable[[Any], Any]], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function
