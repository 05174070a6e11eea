"""Resolved training plan: the number of epochs and the hyperparameters of each stage."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tlcli.contract.errors import SettingsError
from tlcli.contract.model.description import Task
from tlcli.contract.process.cores import usable_cores
from tlcli.training.settings.augmentation import Augmentation, augmentation_of
from tlcli.training.settings.config import FinetuneConfig, OptimizerName

FEATURE_EXTRACTION_EPOCHS = 40
HEAD_FIRST_EPOCHS = 20
FULL_EPOCHS = 10
SCRATCH_EPOCHS = 30

LR: dict[OptimizerName, float] = {"adamw": 3e-4, "adam": 3e-4, "rmsprop": 1e-4, "sgd": 1e-2}
SCRATCH_LR: dict[OptimizerName, float] = {"adamw": 2e-3, "adam": 1e-3, "rmsprop": 1e-3, "sgd": 5e-2}
WEIGHT_DECAY: dict[OptimizerName, float] = {"adamw": 0.05, "adam": 0.0, "rmsprop": 0.0, "sgd": 5e-4}
"""Default weight decay of each optimizer. AdamW decouples weight decay from the gradient, so its value is not comparable to the others."""

LABEL_SMOOTHING = 0.1
"""Label smoothing of the stage that trains all layers (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

FOCAL_GAMMA = 2.0
"""Exponent of the focal loss (Lin et al. 2017, arXiv:1708.02002, table 1b)."""

WARM_UP = 0.1
"""Fraction of that stage's steps during which the learning rates rise."""

_MAX_DEFAULT_WORKERS = 8

_NEEDS_FULL = {"mixup": 0.0, "cutmix": 0.0, "ema": None, "gradual_unfreezing": False, "accumulate": 1, "amp": "auto", "compile": False}
"""Settings that have no effect when a head is trained on precomputed features, with their defaults."""

_NEEDS_AUGMENTED_IMAGES = {
    "crop_scale": None,
    "hflip": None,
    "jitter": None,
    "shear": 0.0,
    "zoom": 0.0,
    "rand_augment": None,
    "random_erasing": 0.0,
}

_REPEATED = frozenset(
    {
        "head_search", "views", "optimizer", "schedule", "class_weights", "patience", "batch_size", "accumulate", "mixup", "cutmix",
        "ema", "gradual_unfreezing", "amp", "compile",
    }
)  # fmt: skip
"""Config settings that earlier versions also saved in the plan."""


class Plan(BaseModel):
    """Training plan: the settings and the values resolved from them. A stage with 0 epochs is skipped.

    config: settings of the run, excluded when the plan is serialized.
    from_scratch: True if all layers start with random weights.
    head_epochs, head_lr, head_label_smoothing: hyperparameters of the first stage, which trains only the head on precomputed features.
    full_epochs, full_lr, full_label_smoothing: hyperparameters of the second stage, which trains all layers. Each `lr` is the peak
        learning rate of the head.
    warm_up: fraction of the second stage's steps during which the learning rates rise.
    focal_gamma: exponent of the focal loss in both stages; None for cross-entropy.
    weight_decay: weight decay of both stages.
    layer_decay: ratio of each layer's learning rate to that of the layer above.
    augmentation: augmentation applied to every image in each epoch of the second stage, or to each view before its features are computed.
    workers: number of worker processes that read images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: FinetuneConfig = Field(exclude=True, repr=False)
    from_scratch: bool
    head_epochs: int
    head_lr: float
    head_label_smoothing: float
    full_epochs: int
    full_lr: float
    full_label_smoothing: float
    warm_up: float
    weight_decay: float
    layer_decay: float
    augmentation: Augmentation
    workers: int
    focal_gamma: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_repeated_settings(cls, data: Any) -> Any:
        return {name: value for name, value in data.items() if name not in _REPEATED} if isinstance(data, dict) else data


def resolve_plan(config: FinetuneConfig) -> Plan:
    """Resolve the settings that `config` leaves unset, and return the training plan.

    Raises:
        SettingsError: settings conflict, or a setting has no effect.
    """
    scratch = config.weights == "none"
    head_epochs, full_epochs = _epochs(config, scratch)
    if config.mode == "feature-extraction":
        _reject_settings_without_effect(config)
    elif config.head_search:
        raise SettingsError("--head-search needs --mode feature-extraction: it compares heads on frozen features; leave it out")
    _reject_double_correction(config)
    gamma = _focal_gamma(config)
    lr = LR[config.optimizer] if config.lr is None else config.lr
    smoothing = config.label_smoothing
    return Plan(
        config=config,
        from_scratch=scratch,
        head_epochs=head_epochs,
        head_lr=lr,
        head_label_smoothing=0.0 if smoothing is None or full_epochs else smoothing,
        full_epochs=full_epochs,
        full_lr=SCRATCH_LR[config.optimizer] if scratch and config.lr is None else lr,
        full_label_smoothing=_default_smoothing(config) if smoothing is None else smoothing,
        warm_up=WARM_UP if config.warm_up is None else config.warm_up,
        weight_decay=WEIGHT_DECAY[config.optimizer] if config.weight_decay is None else config.weight_decay,
        layer_decay=1.0 if scratch else config.layer_decay,  # random layers have learned nothing that a low learning rate would preserve
        augmentation=augmentation_of(config),
        workers=min(usable_cores(), _MAX_DEFAULT_WORKERS) if config.workers is None else config.workers,
        focal_gamma=gamma,
    )


def plan_for_task(plan: Plan, task: Task) -> Plan:
    """Return the plan for the task that the labels of the data set turned out to have.

    Raises:
        SettingsError: a setting does not apply to the task.
    """
    config = plan.config
    if task == "single-label":
        if config.loss == "asymmetric":
            raise SettingsError("--loss asymmetric needs several labels per image, and each image of this data set has one: leave it out")
        return plan
    for is_given, flag, remedy in (
        (config.head_search, "--head-search", "leave it out"),
        (config.loss == "focal", "--loss focal", "use --loss asymmetric, its counterpart"),
        (config.sampler == "balanced", "--sampler balanced", "use --class-weights balanced"),
        (config.logit_adjustment, f"--logit-adjustment {config.logit_adjustment:g}", "use --class-weights balanced"),
    ):
        if is_given:
            raise SettingsError(f"{flag} needs one label per image, and images of this data set have several: {remedy}")
    if config.loss == "asymmetric" and config.class_weights == "balanced":
        raise SettingsError(
            "--loss asymmetric cannot be combined with --class-weights balanced: both correct for the few images of a class: use only one"
        )
    if config.label_smoothing is not None:
        return plan
    return plan.model_copy(update={"head_label_smoothing": 0.0, "full_label_smoothing": 0.0})


def _default_smoothing(config: FinetuneConfig) -> float:
    """Return the default label smoothing of the stage that trains all layers.

    The focal loss has none: its factor fades out the true class of an easy image, but not the others, which smoothing would then
    dominate.
    """
    return 0.0 if config.loss == "focal" else LABEL_SMOOTHING


def _focal_gamma(config: FinetuneConfig) -> float | None:
    """Return the exponent of the focal loss; None for cross-entropy.

    Raises:
        SettingsError: an exponent is set for cross-entropy, or the focal loss is combined with a head search.
    """
    if config.loss != "focal":
        if config.focal_gamma is not None:
            raise SettingsError(f"--focal-gamma {config.focal_gamma:g} needs --loss focal: add --loss focal, or leave --focal-gamma out")
        return None
    if config.head_search:
        raise SettingsError(
            "--head-search cannot be combined with --loss focal: its logistic regression needs a convex loss, and the focal loss is not:"
            " leave one of them out"
        )
    return FOCAL_GAMMA if config.focal_gamma is None else config.focal_gamma


def _reject_double_correction(config: FinetuneConfig) -> None:
    """Check that only one setting corrects for the sizes of the classes.

    Each of them alone makes the loss consistent with the balanced error, and two of them do not (Menon et al. 2021, arXiv:2007.07314,
    theorem 1).
    """
    corrections = [
        *(["--sampler balanced"] if config.sampler == "balanced" else ()),
        *(["--class-weights balanced"] if config.class_weights == "balanced" else ()),
        *([f"--logit-adjustment {config.logit_adjustment:g}"] if config.logit_adjustment else ()),
    ]
    if len(corrections) > 1:
        first, second = corrections[:2]
        raise SettingsError(
            f"{first} cannot be combined with {second}: each corrects for the sizes of the classes, and both correct twice:"
            " use only one of them"
        )


def _reject_settings_without_effect(config: FinetuneConfig) -> None:
    for name, default in _NEEDS_FULL.items():
        if getattr(config, name) != default:
            raise SettingsError(f"{_flag(name)} needs --mode full: feature extraction trains the head on frozen features; leave it out")
    if config.augment:
        return
    for name, default in _NEEDS_AUGMENTED_IMAGES.items():
        if getattr(config, name) != default:
            raise SettingsError(f"{_flag(name)} has no effect without augmented images: add --augment VIEWS, or use --mode full")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _epochs(config: FinetuneConfig, scratch: bool) -> tuple[int, int]:
    """Return the number of epochs for the head stage and for the stage that trains all layers.

    Raises:
        SettingsError: the epoch settings conflict with the mode or the weights.
    """
    if config.mode == "feature-extraction":
        if config.head_epochs is not None:
            raise SettingsError(
                "--head-epochs needs --mode full: in feature extraction every epoch trains the head alone; use --epochs instead"
            )
        return config.epochs or FEATURE_EXTRACTION_EPOCHS, 0
    if config.augment:
        raise SettingsError("--augment needs --mode feature-extraction: --mode full augments every image again in each epoch; leave it out")
    if scratch:
        if config.gradual_unfreezing:
            raise SettingsError(
                "--gradual-unfreezing has no effect with --weights none, because there are no pretrained layers to protect: leave it out"
            )
        if config.head_epochs:
            raise SettingsError(
                f"--head-epochs {config.head_epochs} cannot be combined with --weights none, because a head cannot be trained on random"
                " features: leave it out"
            )
        return 0, config.epochs or SCRATCH_EPOCHS
    # Train the head alone until it has nearly converged, because the gradients of a random head distort the layers below it (Kumar et al.
    # 2022, arXiv:2202.10054). Epochs on precomputed features are nearly free.
    head_epochs = config.head_epochs
    if head_epochs is None:
        head_epochs = HEAD_FIRST_EPOCHS if config.epochs is None else min(max(1, config.epochs // 3), config.epochs - 1)
    epochs = config.epochs or head_epochs + FULL_EPOCHS
    if head_epochs >= epochs:
        raise SettingsError(
            f"--head-epochs {head_epochs} with --epochs {epochs} leaves no epochs to train all layers:"
            " increase --epochs, or use --mode feature-extraction"
        )
    return head_epochs, epochs - head_epochs
