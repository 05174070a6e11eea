"""Settings of a training run, as one frozen object. It is saved in the run folder so that the run can be reproduced."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from tlcli.contract.images.preprocessing import CropMode, Interpolation
from tlcli.contract.model.description import Task
from tlcli.training.settings.model_arguments import Argument
from tlcli.training.settings.recipes import RECIPES, Recipe, recipe_settings

Mode = Literal["feature-extraction", "full"]
OptimizerName = Literal["adamw", "adam", "rmsprop", "sgd"]
Schedule = Literal["cosine", "constant"]
Sampler = Literal["shuffled", "balanced"]
Loss = Literal["cross-entropy", "focal", "asymmetric"]

COLUMN_PURPOSES = ("path", "label", "labels", "split", "group", "weight")
"""Purposes of the columns of a label file."""

HEAD_PATTERN = re.compile(r"linear|original|mlp:[1-9][0-9]*")


def default_data_dir() -> Path:
    """Return the folder of the named data sets: `$TLCLI_DATA`, or `data` in `cache_dir()` if the variable is unset."""
    return Path(os.environ.get("TLCLI_DATA") or cache_dir() / "data")


def cache_dir() -> Path:
    """Return the folder for files that can be recomputed or downloaded again: `$TLCLI_CACHE`, or `~/.cache/tlcli` if it is unset."""
    return Path(os.environ.get("TLCLI_CACHE") or Path.home() / ".cache" / "tlcli")


_MIN_STD = 1e-3
"""Minimum accepted standard deviation of the input. The smallest in practice is 1/255, for networks trained on values from 0 to 255."""


class FinetuneConfig(BaseModel):
    """Settings of `tlcli finetune`. `None` means that the value is resolved from the backbone, the mode or the data set.

    backbone: name of a timm model. weights: `pretrained`, `none`, or a checkpoint file.
    from_run: folder of a run, or of the model exported from it, whose network and weights are the start instead of `weights`.
    model_kwargs: additional arguments for `timm.create_model`, such as `pad_type="same"` or `depths=(2, 2, 6, 2)`.
    head: `linear`, `mlp:<hidden units>` or `original`.
    dataset: known name, folder, label file, or timm data set spec. data_dir: folder of the named data sets.
    task: `single-label` or `multi-label`, with several labels per image; None finds it out from the labels.
    classes: subset of the classes, in label order. limit: maximum number of images per class in each part.
    columns: names of a label file's columns by purpose: `path`, `label` or `labels`, `split`, `group`, `weight`.
    group_column: column of a label file whose groups, such as patients, are kept together in one part.
    val_fraction: fraction of the training images held out for validation if the data set has no validation part.
    image_size, crop_pct, crop_mode, interpolation, mean, std: overrides for the backbone's preprocessing.
    epochs: total number of epochs. head_epochs: number of initial epochs that train only the head (mode `full`).
    batch_size: global batch size over all processes. accumulate: number of batches per optimizer step (gradient accumulation).
    lr: peak learning rate of the head. layer_decay: ratio of each layer's learning rate to that of the layer above (mode `full`).
    warm_up: fraction of the steps during which the learning rates rise.
    class_weights: `balanced` weights each class by the inverse of its frequency in the training part.
    sampler: `shuffled` draws each training image once per epoch, `balanced` draws as many images from every class.
    loss: `cross-entropy` (binary for several labels per image), `focal`, or `asymmetric` for several labels per image.
    focal_gamma: exponent of the focal loss.
    logit_adjustment: factor of the log prior of each class that is added to its logit in the training loss; 0 for none.
    patience: number of epochs without improvement after which training stops.
    augment: number of augmented views computed for each training image (mode `feature-extraction`); 0 for none.
    crop_scale: minimum area of the random crop, as a fraction of the image; 1 disables cropping. hflip: flip half of the images.
    jitter: strength of the brightness, contrast and saturation jitter. shear: maximum shear, in degrees.
    zoom: maximum change of scale, as a fraction of the image size. rand_augment: magnitude of RandAugment, out of 30.
    random_erasing: fraction of images in which a random rectangle is erased.
    mixup, cutmix: alpha of each method (mode `full`); if both are set, one is chosen at random for each batch.
    ema: decay of an exponential moving average of the weights, which is then validated and saved (mode `full`).
    gradual_unfreezing: unfreeze layers from the head down over the first half of the epochs (mode `full`).
    amp: mixed precision in bfloat16 or float16, where safe; `auto` enables it on a GPU. compile: use `torch.compile`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    recipe: Recipe = "default"
    backbone: str = "vgg16"
    weights: str = "pretrained"
    from_run: Path | None = None
    model_kwargs: dict[str, Argument] = Field(default_factory=dict)
    head: str = "linear"
    mode: Mode = "feature-extraction"

    dataset: str = "cats-vs-dogs"
    data_dir: Path = Field(default_factory=default_data_dir)
    task: Task | None = None
    classes: tuple[str, ...] | None = None
    num_classes: int | None = Field(default=None, ge=2)
    limit: int | None = Field(default=None, ge=2)
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    columns: dict[str, str] = Field(default_factory=dict)
    group_column: str | None = Field(default=None, min_length=1)

    image_size: int | None = Field(default=None, ge=8, le=4096)
    crop_pct: float | None = Field(default=None, gt=0, le=1)
    crop_mode: CropMode | None = None
    interpolation: Interpolation | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    epochs: int | None = Field(default=None, ge=1)
    head_epochs: int | None = Field(default=None, ge=0)
    batch_size: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    optimizer: OptimizerName = "adamw"
    lr: float | None = Field(default=None, gt=0)
    schedule: Schedule = "cosine"
    warm_up: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float | None = Field(default=None, ge=0)
    layer_decay: float = Field(default=0.75, gt=0, le=1)
    label_smoothing: float | None = Field(default=None, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"
    sampler: Sampler = "shuffled"
    loss: Loss = "cross-entropy"
    focal_gamma: float | None = Field(default=None, ge=0)
    logit_adjustment: float = Field(default=0.0, ge=0)
    patience: int | None = Field(default=None, ge=1)
    head_search: bool = False

    augment: int = Field(default=0, ge=0)
    crop_scale: float | None = Field(default=None, gt=0, le=1)
    hflip: bool | None = None
    jitter: float | None = Field(default=None, ge=0, lt=1)
    shear: float = Field(default=0.0, ge=0, lt=90)
    zoom: float = Field(default=0.0, ge=0, lt=1)
    rand_augment: int | None = Field(default=None, ge=1, le=30)
    random_erasing: float = Field(default=0.0, ge=0, le=1)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)

    ema: float | None = Field(default=None, gt=0, lt=1)
    gradual_unfreezing: bool = False
    amp: Literal["auto", "on", "off"] = "auto"
    compile: bool = False
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    workers: int | None = Field(default=None, ge=0)

    tensorboard: bool = False
    name: str | None = None
    output: Path | None = None

    @classmethod
    def of(cls, recipe: Recipe = "default", **overrides: Any) -> FinetuneConfig:
        """Return the settings of a recipe with `overrides` applied.

        Raises:
            pydantic.ValidationError: a setting has an invalid value.
        """
        from_recipe = recipe_settings(recipe, overrides.get("mode"), overrides.get("weights")) if recipe in RECIPES else {}
        return cls(recipe=recipe, **{**from_recipe, **overrides})

    @field_validator("mean", "std")
    @classmethod
    def _of_inputs_in_0_1(cls, values: tuple[float, float, float] | None, info: ValidationInfo) -> tuple[float, float, float] | None:
        if values is None:
            return None
        shown = ",".join(f"{value:g}" for value in values)
        if info.field_name == "mean" and not all(0 <= value <= 1 for value in values):  # NaN fails this comparison too
            raise ValueError(f"{shown}: expected values from 0 to 1, the range of the input: divide values from 0 to 255 by 255")
        if info.field_name == "std" and not all(_MIN_STD <= value <= 1 for value in values):
            raise ValueError(f"{shown}: expected values from {_MIN_STD:g} to 1 for an input in [0, 1]: divide values from 0 to 255 by 255")
        return values

    @field_validator("columns")
    @classmethod
    def _known_purposes(cls, columns: dict[str, str]) -> dict[str, str]:
        for purpose, name in columns.items():
            if purpose not in COLUMN_PURPOSES or not name:
                raise ValueError(
                    f"{purpose}={name}: expected PURPOSE=NAME with one of {', '.join(COLUMN_PURPOSES)}, such as path=file,label=class"
                )
        if "label" in columns and "labels" in columns:
            raise ValueError(f"label={columns['label']} and labels={columns['labels']}: use only one of them")
        return columns

    @field_validator("head")
    @classmethod
    def _known_head(cls, head: str) -> str:
        if not HEAD_PATTERN.fullmatch(head):
            raise ValueError(f"unknown head {head!r}: expected linear, original or mlp:<hidden units>, for example mlp:256")
        return head
