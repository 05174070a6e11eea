"""A run folder being written. Each file is written whole or not at all, and nothing in it is a pickle."""

from __future__ import annotations

import csv
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Literal

import safetensors.torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from contract.errors import SettingsError
from contract.files import whole_file
from training.config import FinetuneConfig
from training.named import KNOWN
from training.network import NetworkConfig
from training.plan import Plan
from training.results import EpochRow, Results

CONFIG, CHECKPOINT, METRICS, RESULTS = "config.json", "checkpoint.safetensors", "metrics.csv", "results.json"
SPLIT, PREDICTIONS = "split.json", "predictions.csv"
CURVES, CONFUSION, RELIABILITY, MISTAKES = "curves.png", "confusion_matrix.png", "reliability.png", "mistakes.png"

RUNS = Path("runs")
_SHORT_MODE = {"feature-extraction": "features", "full": "full"}


class RunConfig(BaseModel):
    """`config.json`.

    asked: the settings as given, paths absolute. network, plan, classes, device: what they were resolved to.
    weights_fingerprint: of the backbone before training, see `training.weights`. dataset_fingerprint: see `Dataset`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    created: str
    asked: FinetuneConfig
    network: NetworkConfig
    plan: Plan
    classes: tuple[str, ...]
    device: str
    weights_fingerprint: str
    dataset_fingerprint: str
    versions: dict[str, str]


class RunFolder:
    """A run folder being written, each file whole or not at all."""

    def __init__(self, path: Path) -> None:
        """`path`: an existing, empty folder."""
        self.path = path

    def write_config(self, config: RunConfig) -> None:
        """What was asked and resolved, before training begins."""
        self._write_text(CONFIG, config.model_dump_json(indent=2))

    def write_checkpoint(self, state: dict[str, Tensor]) -> None:
        """`state`: of the best network so far."""
        with whole_file(self.path / CHECKPOINT) as temporary:
            safetensors.torch.save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, temporary)

    def write_metrics(self, rows: Sequence[EpochRow]) -> None:
        """A row an epoch so far."""
        with whole_file(self.path / METRICS) as temporary, temporary.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened)
            writer.writerow(EpochRow._fields)
            writer.writerows(rows)

    def write_results(self, results: Results) -> None:
        """The final figures: with them the run is finished."""
        self._write_text(RESULTS, results.model_dump_json(indent=2))

    def _write_text(self, name: str, text: str) -> None:
        with whole_file(self.path / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def absolute(config: FinetuneConfig) -> FinetuneConfig:
    """The settings with every path absolute, so that they mean the same from any working directory."""
    weights = config.weights
    if weights not in ("pretrained", "none"):
        weights = str(Path(weights).expanduser().absolute())
    folder = Path(config.dataset).expanduser()
    return config.model_copy(
        update={
            "weights": weights,
            "dataset": str(folder.absolute()) if folder.is_dir() and config.dataset.lower() not in KNOWN else config.dataset,
            "data_dir": config.data_dir.expanduser().absolute(),
            "output": None if config.output is None else config.output.expanduser().absolute(),
        }
    )


def require_output(config: FinetuneConfig) -> None:
    """Raises: SettingsError: `--output` names a folder with something in it, or no folder."""
    output = config.output
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SettingsError(f"--output {output}: is not empty: nothing is overwritten; name a fresh folder, or leave --output out")


def make_folder(config: FinetuneConfig) -> RunFolder:
    """The folder that was asked for, or the next free one under `runs/`: `<backbone>-<data set>-<mode>-<number>`.

    Raises:
        SettingsError: see `require_output`; or it cannot be made.
    """
    require_output(config)
    stem = f"{config.backbone}-{Path(config.dataset).name or 'pictures'}-{_SHORT_MODE[config.mode]}"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)
    candidates = [config.output] if config.output is not None else (RUNS / f"{stem}-{number}" for number in count(1))
    for candidate in candidates:
        try:
            candidate.mkdir(parents=True, exist_ok=config.output is not None)
            return RunFolder(candidate)
        except FileExistsError:
            continue
        except OSError as error:
            raise SettingsError(f"{candidate}: the run's folder cannot be made: {error.strerror}: name another with --output") from error
    raise SettingsError(f"--output {config.output}: is a file: name a folder")


def now() -> str:
    """The time, ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Of what the weights depend on."""
    packages = ("tlcli", "torch", "torchvision", "timm", "numpy", "pillow")
    return {package: metadata.version(package) for package in packages} | {"python": platform.python_version()}
