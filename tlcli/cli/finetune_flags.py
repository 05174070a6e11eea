"""Flags of `tlcli finetune`, grouped as in its help text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tlcli.cli.options import columns_option

F = TypeVar("F", bound=Callable[..., Any])

GROUPS = {
    "Data": ("dataset", "data_dir", "classes", "num_classes", "limit", "val_fraction", "columns", "group_column", "task", "workers"),
    "Network": (
        "backbone",
        "weights",
        "from_run",
        "head",
        "model_kwargs",
        "image_size",
        "crop_pct",
        "crop_mode",
        "interpolation",
        "mean",
        "std",
    ),
    "Training": (
        "mode",
        "recipe",
        "epochs",
        "head_epochs",
        "batch_size",
        "accumulate",
        "optimizer",
        "lr",
        "schedule",
        "warm_up",
        "weight_decay",
        "layer_decay",
        "label_smoothing",
        "class_weights",
        "sampler",
        "loss",
        "focal_gamma",
        "logit_adjustment",
        "patience",
        "head_search",
        "gradual_unfreezing",
        "ema",
        "amp",
        "compile",
        "device",
        "seed",
        "plot",
        "begun",
    ),
    "Augmentation": (
        "augment",
        "crop_scale",
        "hflip",
        "jitter",
        "shear",
        "zoom",
        "rand_augment",
        "random_erasing",
        "mixup",
        "cutmix",
    ),
    "Output": ("output", "tensorboard", "name", "models", "no_export", "as_json", "quiet"),
    "Settings": ("file", "print_config"),
}
"""Parameter names under each heading of the help text."""

_share = click.FloatRange(0, 1, max_open=True)
_positive = click.FloatRange(min=0, min_open=True)
_at_least_0 = click.FloatRange(min=0)


def _parse_classes(ctx: click.Context, option: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise click.BadParameter(f"{value!r} contains an empty name: expected classes separated by commas, such as cat,dog")
    return names


_MODEL = [
    click.option(
        "--from",
        "from_run",
        type=click.Path(path_type=Path),
        metavar="RUN",
        help="Start from the network of this run, or of the run of this model; its classes keep their weights.",
    ),
    click.option("--head", help="`linear`, `mlp:UNITS`, or `original`, the network's own hidden layers.  [default: linear]"),
    click.option(
        "--mode",
        type=click.Choice(["feature-extraction", "full"]),
        help="Train the head on frozen features, or all layers.  [default: feature-extraction]",
    ),
]

_DATA = [
    click.option(
        "--dataset",
        help="Known name (`tlcli datasets`), folder, label file (.csv, .tsv, .jsonl, .json, .parquet) or timm data set spec."
        "  [default: cats-vs-dogs]",
    ),
    click.option(
        "--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of the known data sets.  [default: the cache]"
    ),
    click.option("--classes", callback=_parse_classes, help="Train on these classes only, separated by commas, such as cat,dog."),
    click.option("--num-classes", type=click.IntRange(min=2), help="Expected number of classes; anything else is an error."),
    click.option("--limit", type=click.IntRange(min=2), help="Maximum number of images per class in each split, for quick trials."),
    click.option(
        "--val-fraction",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="Fraction of the training images held out if there is no validation split.  [default: 0.2]",
    ),
    columns_option,
    click.option(
        "--group-column",
        metavar="NAME",
        help="Column of a label file whose groups (a patient, a product, a burst) stay together in one split.  [default: group]",
    ),
    click.option(
        "--task",
        type=click.Choice(["single-label", "multi-label"]),
        help="One label per image, or several, with a label file.  [default: several if a row has several]",
    ),
    click.option(
        "--workers", type=click.IntRange(min=0), help="Number of processes that read images.  [default: depends on the CPU cores]"
    ),
]

_TRAINING = [
    click.option("--head-search", is_flag=True, default=None, help="Search learning rates, weight decays and heads on the same features."),
    click.option("--epochs", type=click.IntRange(min=1), help="Number of epochs.  [default: depends on the mode]"),
    click.option("--head-epochs", type=click.IntRange(min=0), help="With --mode full: number of initial epochs that train only the head."),
    click.option("--batch-size", type=click.IntRange(min=1), help="Number of images per batch, over all processes.  [default: 32]"),
    click.option(
        "--accumulate", type=click.IntRange(min=1), help="Number of batches whose gradients are accumulated for one step.  [default: 1]"
    ),
    click.option("--optimizer", type=click.Choice(["adamw", "adam", "rmsprop", "sgd"]), help="Optimizer.  [default: adamw]"),
    click.option("--lr", type=_positive, help="Peak learning rate of the head.  [default: depends on the optimizer]"),
    click.option(
        "--schedule", type=click.Choice(["cosine", "constant"]), help="Learning rate schedule after the warm-up.  [default: cosine]"
    ),
    click.option(
        "--warm-up", type=_share, help="With --mode full: fraction of the steps over which the learning rate rises.  [default: 0.1]"
    ),
    click.option("--weight-decay", type=_at_least_0, help="Weight decay.  [default: depends on the optimizer]"),
    click.option(
        "--layer-decay",
        type=click.FloatRange(0, 1, min_open=True),
        help="With --mode full: ratio of each layer's learning rate to that of the layer above.  [default: 0.75]",
    ),
    click.option("--label-smoothing", type=_share, help="Label smoothing.  [default: 0.1 with --mode full and cross-entropy, else 0]"),
    click.option(
        "--class-weights",
        type=click.Choice(["none", "balanced"]),
        help="Weights of the classes in the loss; balanced: by inverse frequency.  [default: none]",
    ),
    click.option(
        "--sampler",
        type=click.Choice(["shuffled", "balanced"]),
        help="Images of an epoch: each once, or as many from every class.  [default: shuffled]",
    ),
    click.option(
        "--loss",
        type=click.Choice(["cross-entropy", "focal", "asymmetric"]),
        help="Training loss; cross-entropy is binary for several labels per image, asymmetric is for these only.  [default: cross-entropy]",
    ),
    click.option("--focal-gamma", type=_at_least_0, help="With --loss focal: exponent; easy images count less.  [default: 2]"),
    click.option(
        "--logit-adjustment",
        type=_at_least_0,
        metavar="TAU",
        help="Add TAU times the log frequency of each class to its logit in the loss; 1 is usual.  [default: 0]",
    ),
    click.option("--patience", type=click.IntRange(min=1), help="Stop after this many epochs without improvement."),
    click.option("--gradual-unfreezing", is_flag=True, default=None, help="With --mode full: unfreeze layers from the head down."),
    click.option(
        "--ema",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        help="With --mode full: decay of an exponential moving average of the weights, such as 0.999.",
    ),
    click.option("--amp", type=click.Choice(["auto", "on", "off"]), help="Train in mixed precision; auto: on a GPU.  [default: auto]"),
    click.option("--compile", is_flag=True, default=None, help="With --mode full: compile the network with torch.compile."),
]

_IMAGES = [
    click.option("--augment", type=click.IntRange(min=0), help="With --mode feature-extraction: number of augmented views per image."),
    click.option(
        "--crop-scale", type=click.FloatRange(0, 1, min_open=True), help="Minimum fraction of the image's area that a random crop keeps."
    ),
    click.option("--hflip/--no-hflip", default=None, help="Mirror half of the images."),
    click.option("--jitter", type=_share, help="Strength of random changes to brightness, contrast and saturation."),
    click.option("--shear", type=click.FloatRange(0, 90, max_open=True), help="Maximum random shear, in degrees.  [default: 0]"),
    click.option("--zoom", type=_share, help="Maximum random zoom, as a fraction of the image size.  [default: 0]"),
    click.option(
        "--rand-augment", type=click.IntRange(1, 30), metavar="MAGNITUDE", help="Magnitude of RandAugment with two operations, 1 to 30."
    ),
    click.option("--random-erasing", type=click.FloatRange(0, 1), help="Fraction of images with a random rectangle erased.  [default: 0]"),
    click.option("--mixup", type=_at_least_0, metavar="ALPHA", help="With --mode full: alpha of mixup, which blends images.  [default: 0]"),
    click.option(
        "--cutmix",
        type=_at_least_0,
        metavar="ALPHA",
        help="With --mode full: alpha of CutMix, which pastes patches of other images.  [default: 0]",
    ),
]


def model_options(function: F) -> F:
    """Add the options for the head and the layers to train."""
    return _add(_MODEL, function)


def data_options(function: F) -> F:
    """Add the options for the data set."""
    return _add(_DATA, function)


def training_options(function: F) -> F:
    """Add the options for the optimizer, the schedule and the loss."""
    return _add(_TRAINING, function)


def augmentation_options(function: F) -> F:
    """Add the options for data augmentation."""
    return _add(_IMAGES, function)


def _add(options: list[Callable[[Any], Any]], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function
