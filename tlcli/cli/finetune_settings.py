"""Flags and a TOML file to a `FinetuneConfig`: what was not given keeps the recipe's or the config's own default."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlcli.contract.errors import NotFoundError, SettingsError
from tlcli.contract.files.text_file import read_text

if TYPE_CHECKING:
    from tlcli.training.settings.config import FinetuneConfig

_MAX_CONFIG_BYTES = 1024 * 1024


def finetune_config(file: Path | None = None, **flags: Any) -> FinetuneConfig:
    """The settings in a file, and instead of them the flags that are not None.

    Raises:
        NotFoundError: no such file.
        SettingsError: a setting that is unknown, or has a value that it cannot have; the message names it.
    """
    from pydantic import ValidationError

    from tlcli.training.settings.config import FinetuneConfig

    given = {key: value for key, value in flags.items() if value is not None}
    written = {} if file is None else _read(file)
    try:
        return FinetuneConfig.of(**{**written, **given})
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        where = f"{file}: {key}" if file is not None and key in written and key not in given else "--" + key.replace("_", "-")
        message = "is no setting" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{where if key else 'the settings'}: {message}") from error


_UNUSED_IN_FEATURE_EXTRACTION = ("warm_up", "layer_decay")
_UNUSED_BY_FIND_LR = (
    "epochs",
    "head_epochs",
    "patience",
    "lr",
    "schedule",
    "warm_up",
    "output",
    "tensorboard",
    "name",
    "models",
    "no_export",
)


def check_used(config: FinetuneConfig, flags: Collection[str], finds_lr: bool) -> None:
    """Refuse flags that training would ignore with these settings.

    Args:
        config: the settings.
        flags: parameters of the command that were given by a flag; what a file or a recipe says is not looked at.
        finds_lr: `--find-lr` was given.

    Raises:
        SettingsError: one of them is ignored.
    """
    if finds_lr:
        for name in _UNUSED_BY_FIND_LR:
            if name in flags:
                raise SettingsError(f"{_flag(name)} with --find-lr, which tries rates for a hundred steps and leaves no run: leave it out")
    if config.mode == "feature-extraction":
        for name in _UNUSED_IN_FEATURE_EXTRACTION:
            if name in flags:
                raise SettingsError(f"{_flag(name)} goes with --mode full: in feature extraction only the head is trained; leave it out")
    if config.weights == "none" and "layer_decay" in flags and config.layer_decay != 1:
        raise SettingsError("--layer-decay with --weights none: it protects layers that have learned something; leave it out")
    if "data_dir" in flags:
        check_data_dir(config.dataset)


def check_dataset(config: FinetuneConfig) -> None:
    """Raises: DatasetError: the data set is no folder, no known name and no timm spec; said before weights are fetched."""
    from tlcli.training.data.load import list_dataset
    from tlcli.training.data.registry import KNOWN
    from tlcli.training.data.timm_datasets import is_timm_spec
    from tlcli.training.runtime.progress import silent

    if config.dataset.lower() not in KNOWN and not is_timm_spec(config.dataset) and not Path(config.dataset).expanduser().is_dir():
        list_dataset(config, silent)


def check_data_dir(dataset: str) -> None:
    """Raises: SettingsError: `--data-dir`, the folder of known data sets, was given with a data set that is a folder itself."""
    from tlcli.training.data.registry import KNOWN

    if dataset.lower() not in KNOWN and Path(dataset).expanduser().is_dir():
        raise SettingsError(f"--data-dir: is where known data sets are kept, and {dataset} is a folder of its own: leave it out")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_same_settings(run: Path, given: Mapping[str, Any], file: Path | None) -> None:
    """Check that no flag says something else than the run to resume was begun with.

    `--dataset` and `--data-dir` may name another folder: the images may have moved, and `tlcli.training.resume` compares what is in it.

    Raises:
        SettingsError: a flag says something else.
        NotFoundError: there is no such run.
    """
    from tlcli.training.runs.run_folder import absolute, read_config

    saved = read_config(run).asked
    if file is not None:
        raise SettingsError(f"--config with --resume: {run} goes on with the settings that it was begun with: leave it out")
    if "output" in given:
        raise SettingsError(f"--output with --resume: {run} is the run's folder: leave it out")
    asked = absolute(finetune_config(**given))
    for name in given:
        if name == "workers":  # the run is the same, however many read its images
            continue
        then, now = getattr(saved, name), getattr(asked, name)
        moved = name in ("dataset", "data_dir") and Path(now).is_dir() and Path(then).is_absolute()
        if then != now and not moved:
            shown = "nothing" if then is None else then
            raise SettingsError(f"--{name.replace('_', '-')} {now}: {run} was begun with {shown}: leave it out to go on, or fine-tune anew")


def to_toml(config: FinetuneConfig) -> str:
    """The settings as `finetune_config` reads them from a file, and as comments what they leave open and come to.

    Raises:
        SettingsError: settings that contradict each other.
    """
    from tlcli.training.settings.plan import resolve_plan

    plan = resolve_plan(config).model_dump(mode="json")
    lines, tables = [], []
    for name, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            tables += [f"\n[{name}]", *(f"{json.dumps(key)} = {json.dumps(one)}" for key, one in value.items())] if value else []
        elif value is None:
            lines.append(f"# {name}: not set")
        else:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    resolved = [f"# {name} = {json.dumps(value)}" for name, value in plan.items()]
    return "\n".join([*lines, *tables, "", "# what training does with them:", *resolved]) + "\n"


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise NotFoundError(f"{file}: no such file: expected settings in TOML; `tlcli finetune --print-config` prints some")
    try:
        return tomllib.loads(read_text(file, _MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, or a number of thousands of digits
        raise SettingsError(f"{file}: no TOML: {error}") from error
