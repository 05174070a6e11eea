"""Resume state of a run after its last complete epoch, stored in one safetensors file that is written atomically."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tlcli.contract.errors import ResourceError, WeightsError
from tlcli.contract.files.atomic_file import whole_file
from tlcli.training.engine.checkpoint import Checkpoint
from tlcli.training.engine.stage import Best
from tlcli.training.metrics.scores import EpochRow
from tlcli.training.runs.reproduce_command import resume_command

FILE = "resume.safetensors"


@dataclass(frozen=True, eq=False)
class Unfinished:
    """Saved state of an interrupted run.

    rows: metrics of every epoch. best: metrics of the best epoch. checkpoint: state of the stage that trains all layers.
    """

    rows: tuple[EpochRow, ...]
    best: EpochRow
    checkpoint: Checkpoint


def save(folder: Path, checkpoint: Checkpoint, best: Best) -> None:
    """Write the resume state of a run.

    Raises:
        ResourceError: the file cannot be written. The previous state is kept.
    """
    tensors: dict[str, Tensor] = {}
    slots: dict[str, dict[str, Any]] = {}
    for name, tensor in checkpoint.model.items():
        tensors[f"model/{name}"] = tensor
    for name, tensor in (checkpoint.average or {}).items():
        tensors[f"average/{name}"] = tensor
    for index, state in checkpoint.optimizer["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                slots.setdefault(str(index), {})[name] = value
    document = {
        "format_version": 1,
        "epochs": checkpoint.epochs,
        "rows": [list(row) for row in best.rows],
        "best": list(best.kept),
        "groups": checkpoint.optimizer["param_groups"],
        "slots": slots,
        "average": checkpoint.average is not None,
        "scale": checkpoint.scale,
    }
    # Tensors are copied because safetensors rejects tensors that share memory, as views may.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    try:
        with whole_file(folder / FILE) as temporary:
            safetensors.torch.save_file(plain, temporary, metadata={"tlcli": json.dumps(document)})
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"{folder / FILE}: epoch {best.rows[-1].epoch} cannot be saved: {getattr(error, 'strerror', None) or error}: free disk space,"
            f" then {resume_command(folder)} resumes after the last saved epoch"
        ) from error


def load(folder: Path, device: torch.device) -> Unfinished | None:
    """Read the resume state last written by `save`.

    Returns:
        The state, or None if the folder contains no resume state.

    Raises:
        WeightsError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as opened:
            document = json.loads(opened.metadata()["tlcli"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: damaged ({error}): remove it, and --resume starts from the first epoch") from error
    states: dict[int, dict[str, Any]] = {int(index): dict(slots) for index, slots in document["slots"].items()}
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}}
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition("/")
        if group == "optimizer":
            index, _, slot = name.partition("/")
            # The optimizer keeps the step counter on the CPU.
            states.setdefault(int(index), {})[slot] = tensor.cpu() if slot == "step" else tensor
        else:
            groups[group][name] = tensor
    return Unfinished(
        rows=tuple(EpochRow(*row) for row in document["rows"]),
        best=EpochRow(*document["best"]),
        checkpoint=Checkpoint(
            epochs=document["epochs"],
            model=groups["model"],
            optimizer={"state": states, "param_groups": document["groups"]},
            average=groups["average"] if document["average"] else None,
            scale=document["scale"],
        ),
    )


def remove(folder: Path) -> None:
    """Remove the resume state of a finished run."""
    (folder / FILE).unlink(missing_ok=True)
