"""A run that can be gone on with: where it was after its last epoch, in one file of tensors that is whole or not there."""

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
from tlcli.training.engine.stage import Best, Position
from tlcli.training.metrics.scores import EpochRow
from tlcli.training.runs.reproduce_command import resume_command

FILE = "resume.safetensors"


@dataclass(frozen=True, eq=False)
class Unfinished:
    """What `keep` wrote. rows: of every epoch. best: the best one's. position: of the stage of all layers."""

    rows: tuple[EpochRow, ...]
    best: EpochRow
    position: Position


def keep(folder: Path, position: Position, best: Best) -> None:
    """Write where a run is.

    Raises:
        ResourceError: it cannot be written; what was written before is still there.
    """
    tensors: dict[str, Tensor] = {}
    slots: dict[str, dict[str, Any]] = {}
    for name, tensor in position.model.items():
        tensors[f"model/{name}"] = tensor
    for name, tensor in (position.average or {}).items():
        tensors[f"average/{name}"] = tensor
    for index, state in position.optimizer["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                slots.setdefault(str(index), {})[name] = value
    document = {
        "format_version": 1,
        "epochs": position.epochs,
        "rows": [list(row) for row in best.rows],
        "best": list(best.kept),
        "groups": position.optimizer["param_groups"],
        "slots": slots,
        "average": position.average is not None,
        "scale": position.scale,
    }
    # Copied: tensors that share memory (they do not in a state dict, but views may) would be refused.
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    try:
        with whole_file(folder / FILE) as temporary:
            safetensors.torch.save_file(plain, temporary, metadata={"tlcli": json.dumps(document)})
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"{folder / FILE}: epoch {best.rows[-1].epoch} cannot be saved: {getattr(error, 'strerror', None) or error}: make room, then"
            f" {resume_command(folder)} resumes after the last one that could"
        ) from error


def load(folder: Path, device: torch.device) -> Unfinished | None:
    """What `keep` wrote last; None if it never did.

    Raises:
        WeightsError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as opened:
            document = json.loads(opened.metadata()["tlcli"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: is damaged ({error}): remove it, and the run begins anew with --resume") from error
    states: dict[int, dict[str, Any]] = {int(index): dict(slots) for index, slots in document["slots"].items()}
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}}
    for full_name, tensor in tensors.items():
        part, _, name = full_name.partition("/")
        if part == "optimizer":
            index, _, slot = name.partition("/")
            # A step's number is kept on the CPU, as the optimizer has it.
            states.setdefault(int(index), {})[slot] = tensor.cpu() if slot == "step" else tensor
        else:
            parts[part][name] = tensor
    return Unfinished(
        rows=tuple(EpochRow(*row) for row in document["rows"]),
        best=EpochRow(*document["best"]),
        position=Position(
            epochs=document["epochs"],
            model=parts["model"],
            optimizer={"state": states, "param_groups": document["groups"]},
            average=parts["average"] if document["average"] else None,
            scale=document["scale"],
        ),
    )


def forget(folder: Path) -> None:
    """The run is finished: there is nothing to go on with."""
    (folder / FILE).unlink(missing_ok=True)
