"""Writing and reading of run folders. Every file is written atomically, and no file is a pickle."""

from __future__ import annotations

import csv
import os
import platform
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError
from torch import Tensor

from tlcli.contract.errors import NotFoundError, SettingsError, WeightsError
from tlcli.contract.files.atomic_file import sweep, whole_file
from tlcli.contract.files.display_name import printable
from tlcli.contract.files.file_lock import LocksUnsupportedError, try_lock, unshared
from tlcli.contract.model.description import Task
from tlcli.contract.model.repository_layout import not_a_run
from tlcli.training.data.label_files.read_label_file import is_label_file
from tlcli.training.data.label_files.remote_files import is_remote
from tlcli.training.data.registry import KNOWN
from tlcli.training.metrics.scores import EpochRow, Results
from tlcli.training.models.network import NetworkConfig
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.flag_names import flag_of
from tlcli.training.settings.plan import Plan
from tlcli.training.settings.run_file_names import CHECKPOINT, CONFIG, LOCK, METRICS, RESULTS, TIMINGS

RUNS = Path("runs")

Model = TypeVar("Model", bound=BaseModel)
_SHORT_MODE = {"feature-extraction": "features", "full": "full"}


class RunConfig(BaseModel):
    """Content of `config.json`.

    created: start time of the run, in ISO 8601. asked: settings as given by the user, with absolute paths.
    network, plan, classes, task, device: resolved settings.
    weights_fingerprint: fingerprint of the backbone before training; see `tlcli.training.models.weights`.
    dataset_fingerprint: fingerprint of the data set; see `Dataset`. versions: package versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    created: str
    asked: FinetuneConfig
    network: NetworkConfig
    plan: Plan
    classes: tuple[str, ...]
    task: Task = "single-label"
    device: str
    weights_fingerprint: str
    dataset_fingerprint: str
    versions: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _plan_with_its_settings(cls, data: Any) -> Any:
        """Add the settings to the plan, since the file does not repeat them there."""
        if isinstance(data, dict) and isinstance(data.get("plan"), dict):
            return {**data, "plan": {**data["plan"], "config": data.get("asked")}}
        return data


class RunFolder:
    """Writer for a run folder. Every file is written atomically."""

    def __init__(self, path: Path) -> None:
        """Create a writer for `path`, an existing folder that is empty or contains an interrupted run."""
        self.path = path

    @contextmanager
    def claimed(self, log: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Lock the folder within the block. Temporary files left by a killed process are removed first.

        The lock is released when this process ends, even if its child processes are still running.

        Args:
            log: callback for a warning if the file system does not support locks. Other processes are then not kept out.

        Raises:
            SettingsError: another process holds the lock, or the folder cannot be opened.
        """
        with ExitStack() as opened:
            try:
                claimed = self._lock(opened)
            except LocksUnsupportedError as error:
                log(f"warning: {self.path}: cannot be locked ({error.strerror}): do not resume this run from another process meanwhile")
                claimed = True
            except OSError as error:
                raise SettingsError(f"{self.path}: cannot be opened: {error.strerror}: check its permissions") from error
            if not claimed:
                raise SettingsError(f"{self.path}: another process is training here: wait for it, or stop it")
            sweep(self.path)
            yield

    def _lock(self, opened: ExitStack) -> bool:
        """Lock the folder itself, which leaves no file behind. If locks on folders are not supported, lock a file in it.

        NFS can lock only files that are open for writing.
        """
        try:
            return try_lock(self._open_in(opened, self.path, os.O_RDONLY))
        except LocksUnsupportedError:
            return try_lock(self._open_in(opened, self.path / LOCK, os.O_RDWR | os.O_CREAT))

    @staticmethod
    def _open_in(opened: ExitStack, path: Path, flags: int) -> int:
        descriptor = os.open(path, flags, 0o666)
        opened.callback(os.close, descriptor)
        opened.enter_context(unshared(descriptor))
        return descriptor

    def write_config(self, config: RunConfig) -> None:
        """Write `config.json`. This happens before training starts."""
        self._write_text(CONFIG, config.model_dump_json(indent=2))

    def write_checkpoint(self, state: dict[str, Tensor]) -> None:
        """Write the weights of the best network so far."""
        with whole_file(self.path / CHECKPOINT) as temporary:
            safetensors.torch.save_file({name: tensor.cpu().contiguous() for name, tensor in state.items()}, temporary)

    def read_checkpoint(self, device: torch.device) -> dict[str, Tensor]:
        """Read the weights written by `write_checkpoint`.

        Raises:
            WeightsError: the file is damaged or missing.
        """
        try:
            return safetensors.torch.load_file(self.path / CHECKPOINT, device=str(device))
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{self.path / CHECKPOINT}: cannot be read ({error}): start a new run") from error

    def write_metrics(self, rows: Sequence[EpochRow]) -> None:
        """Write the metrics, one row per epoch. Durations go to a separate file, so that repeating the run gives the same `metrics.csv`."""
        unknown = ("val_mean_ap",) if all(row.val_mean_ap is None for row in rows) else ("train_top1", "val_top1")
        names = [name for name in EpochRow._fields if name not in ("seconds", *unknown)]
        self._write_rows(METRICS, names, [[getattr(row, name) for name in names] for row in rows])
        self._write_rows(TIMINGS, ("epoch", "seconds"), [(row.epoch, row.seconds) for row in rows])

    def _write_rows(self, name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        with whole_file(self.path / name) as temporary, temporary.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened)
            writer.writerow(header)
            writer.writerows(rows)

    def write_results(self, results: Results) -> None:
        """Write the final results, which marks the run as finished."""
        self._write_text(RESULTS, results.model_dump_json(indent=2))

    def _write_text(self, name: str, text: str) -> None:
        with whole_file(self.path / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def read_config(path: Path) -> RunConfig:
    """Read the config of a run.

    Raises:
        NotFoundError: the folder is not a run folder.
        SettingsError: the file cannot be read by this version.
    """
    if problem := not_a_run(path):
        raise NotFoundError(problem)
    if not (path / CONFIG).is_file():
        raise NotFoundError(f"{path} is not a run ({CONFIG} is missing): give a run's folder, such as one under {RUNS}/")
    return _read(path / CONFIG, RunConfig)


def with_pretrained(config: RunConfig) -> RunConfig:
    """Return the config with `network.pretrained` filled in, since earlier versions did not record it."""
    if config.network.pretrained is not None:
        return config
    return config.model_copy(update={"network": config.network.model_copy(update={"pretrained": config.asked.weights != "none"})})


def read_results(path: Path) -> Results | None:
    """Read the results of a run.

    Returns:
        The results, or None if the run is not finished.

    Raises:
        SettingsError: the file cannot be read by this version.
    """
    return _read(path / RESULTS, Results) if (path / RESULTS).is_file() else None


def _read(path: Path, model: type[Model]) -> Model:
    try:
        return model.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        problem = (
            "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
            if isinstance(error, ValidationError)
            else error
        )
        raise SettingsError(f"{path}: cannot be read by this version of tlcli: {problem}: start a new run") from error


def absolute(config: FinetuneConfig) -> FinetuneConfig:
    """Return the settings with absolute paths, so that they do not depend on the working directory.

    Raises:
        SettingsError: a path is not valid UTF-8 and cannot be stored as JSON.
    """
    weights = config.weights
    if weights not in ("pretrained", "none"):
        weights = str(Path(weights).expanduser().absolute())
    folder = Path(config.dataset).expanduser()
    paths = {
        "weights": weights,
        "dataset": str(folder.absolute()) if _is_local(config.dataset) else config.dataset,
        "data_dir": config.data_dir.expanduser().absolute(),
        "from_run": None if config.from_run is None else config.from_run.expanduser().absolute(),
        "output": None if config.output is None else config.output.expanduser().absolute(),
    }
    for name, path in paths.items():
        if not str(path).isascii() and str(path).encode("utf-8", "replace").decode() != str(path):
            raise SettingsError(
                f"{flag_of(name)} {printable(str(path))}: the path is not UTF-8, and cannot be saved in the run's settings:"
                " rename the folder, or use a link to it"
            )
    return config.model_copy(update=paths)


def _is_local(dataset: str) -> bool:
    """Return True for a folder of images or a label file on this machine."""
    if dataset.lower() in KNOWN or is_remote(dataset):
        return False
    return Path(dataset).expanduser().is_dir() or is_label_file(dataset)


def require_output(config: FinetuneConfig) -> None:
    """Check that `--output` does not exist or is an empty folder. Hidden files are ignored.

    Raises:
        SettingsError: `--output` is a file, or a folder that is not empty.
    """
    output = config.output
    if output is not None and output.exists() and (not output.is_dir() or any(not path.name.startswith(".") for path in output.iterdir())):
        raise SettingsError(f"--output {output} already exists, and nothing is overwritten: choose a new folder, or leave --output out")


def make_folder(config: FinetuneConfig) -> RunFolder:
    """Create the folder `config.output`, or the next free `runs/<backbone>-<data set>-<mode>-<number>`.

    Raises:
        SettingsError: `require_output` rejects the folder, or it cannot be created.
    """
    require_output(config)
    dataset = Path(config.dataset)
    name = (dataset.stem if is_label_file(config.dataset) else dataset.name).strip("_") or "images"
    stem = f"{config.backbone}-{name}-{_SHORT_MODE[config.mode]}"
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem)
    candidates = [config.output] if config.output is not None else (RUNS / f"{stem}-{number}" for number in count(1))
    for candidate in candidates:
        try:
            candidate.mkdir(parents=True, exist_ok=config.output is not None)
            return RunFolder(candidate)
        except FileExistsError:
            continue
        except OSError as error:
            raise SettingsError(f"{candidate}: the folder cannot be created: {error.strerror}: choose another with --output") from error
    raise SettingsError(f"--output {config.output} is a file: choose a folder")


def now() -> str:
    """Return the current UTC time in ISO 8601 format, with a precision of one second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the weights."""
    packages = ("tlcli", "torch", "torchvision", "timm", "numpy", "pillow")
    return {package: _version(package) for package in packages} | {"python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # tlcli itself, run from its sources
        return "not installed"
