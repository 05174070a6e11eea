"""What a config leaves open, decided: how long and how fast each stage trains."""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict

from contract.errors import SettingsError
from training.config import FinetuneConfig

FEATURE_EXTRACTION_EPOCHS = 40
HEAD_FIRST_EPOCHS = 20
FULL_EPOCHS = 10
SCRATCH_EPOCHS = 30

LR = 3e-4
SCRATCH_LR = 2e-3
WEIGHT_DECAY = 0.05

LABEL_SMOOTHING = 0.1
"""Of the stage that trains all layers (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

WARM_UP = 0.1
"""Share of that stage's steps in which the rates rise."""

_MOST_WORKERS = 8


class Plan(BaseModel):
    """One stage or two; a stage of 0 epochs does not take place.

    from_scratch: all layers begin with random weights.
    head_*: the head alone, on features that are computed once. full_*: all layers.
    lr: the head's peak. layer_decay: each layer's rate over that of the one above it.
    workers: processes that read pictures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    from_scratch: bool
    head_epochs: int
    head_lr: float
    full_epochs: int
    full_lr: float
    weight_decay: float
    layer_decay: float
    label_smoothing: float
    warm_up: float
    batch_size: int
    workers: int


def resolve_plan(config: FinetuneConfig) -> Plan:
    """Fill in what was not given.

    Raises:
        SettingsError: settings that contradict each other.
    """
    scratch = config.weights == "none"
    head_epochs, full_epochs = _epochs(config, scratch)
    return Plan(
        from_scratch=scratch,
        head_epochs=head_epochs,
        head_lr=LR if config.lr is None else config.lr,
        full_epochs=full_epochs,
        full_lr=(SCRATCH_LR if scratch else LR) if config.lr is None else config.lr,
        weight_decay=WEIGHT_DECAY if config.weight_decay is None else config.weight_decay,
        layer_decay=1.0 if scratch else config.layer_decay,  # there is nothing to preserve in random layers
        label_smoothing=LABEL_SMOOTHING,
        warm_up=WARM_UP,
        batch_size=config.batch_size,
        workers=min(os.cpu_count() or 1, _MOST_WORKERS) if config.workers is None else config.workers,
    )


def _epochs(config: FinetuneConfig, scratch: bool) -> tuple[int, int]:
    """Of the head alone, and of all layers."""
    if config.mode == "feature-extraction":
        if config.head_epochs is not None:
            raise SettingsError(
                "--head-epochs goes with --mode full: in feature extraction every epoch trains the head alone; give --epochs instead"
            )
        return config.epochs or FEATURE_EXTRACTION_EPOCHS, 0
    if config.augment:
        raise SettingsError(
            "--augment goes with --mode feature-extraction: --mode full augments every picture anew in each epoch; leave it out"
        )
    if scratch:
        if config.head_epochs:
            raise SettingsError(
                f"--head-epochs {config.head_epochs} with --weights none: a head on random features is no start; leave it out"
            )
        return 0, config.epochs or SCRATCH_EPOCHS
    # The head comes close to its best first, else its random gradients distort the layers below it (Kumar et al. 2022,
    # arXiv:2202.10054). On features that are computed once its epochs cost next to nothing.
    head_epochs = config.head_epochs
    if head_epochs is None:
        head_epochs = HEAD_FIRST_EPOCHS if config.epochs is None else min(max(1, config.epochs // 3), config.epochs - 1)
    epochs = config.epochs or head_epochs + FULL_EPOCHS
    if head_epochs >= epochs:
        raise SettingsError(
            f"--head-epochs {head_epochs} of --epochs {epochs}: none are left for all layers, which --mode full trains;"
            " give more --epochs, or --mode feature-extraction"
        )
    return head_epochs, epochs - head_epochs
