"""Conversion of flags and a TOML file to a `FinetuneConfig`. All other settings keep the defaults of the recipe or the config."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlcli.contract.errors import NotFoundError, SettingsError
from tlcli.contract.files.text_file import read_text
from tlcli.setting_errors import first_problem

if TYPE_CHECKING:
    from tlcli.training.settings.config import FinetuneConfig

_CHECKED_BYTES = 20 * 1024 * 1024
"""Maximum size of a label file that is read before the weights are downloaded, in addition to when it is used."""

_MAX_CONFIG_BYTES = 1024 * 1024


def finetune_config(file: Path | None = None, **flags: Any) -> FinetuneConfig:
    """Return the settings from a file, overridden by the flags that are not None.

    Raises:
        NotFoundError: the file does not exist.
        SettingsError: a setting is unknown or has an invalid value; the message names the setting.
    """
    from pydantic import ValidationError

    from tlcli.training.settings.config import FinetuneConfig

    given = {key: value for key, value in flags.items() if value is not None}
    written = {} if file is None else _read(file)
    try:
        return FinetuneConfig.of(**{**written, **given})
    except ValidationError as error:
        key, problem = first_problem(error, FinetuneConfig.model_fields)
        where = f"{file}: {key}" if file is not None and key in written and key not in given else _flag(key)
        raise SettingsError(f"{where if key else 'the settings'}: {problem}") from error


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
    """Reject flags that training would ignore with these settings.

    Args:
        config: settings of the run.
        flags: names of the command parameters that were given as flags. Settings from a file or a recipe are not checked.
        finds_lr: True if `--find-lr` was given.

    Raises:
        SettingsError: a flag would be ignored.
    """
    if finds_lr:
        for name in _UNUSED_BY_FIND_LR:
            if name in flags:
                raise SettingsError(
                    f"{_flag(name)} cannot be combined with --find-lr, which tries learning rates for a hundred steps and writes no run:"
                    " leave it out"
                )
    if config.from_run is not None and "weights" in flags:
        raise SettingsError(
            f"--from cannot be combined with --weights {config.weights}, because the weights are those of {config.from_run}:"
            " leave one of them out"
        )
    if config.mode == "feature-extraction":
        for name in _UNUSED_IN_FEATURE_EXTRACTION:
            if name in flags:
                raise SettingsError(
                    f"{_flag(name)} applies only to --mode full, because feature extraction trains the head only: leave it out"
                )
    if config.weights == "none" and "layer_decay" in flags and config.layer_decay != 1:
        raise SettingsError(
            "--layer-decay has no effect with --weights none, because there are no pretrained layers to protect: leave it out"
        )
    if "data_dir" in flags:
        check_data_dir(config.dataset)


def check_dataset(config: FinetuneConfig) -> None:
    """Check that the data set exists before any weights are downloaded. A label file that is remote or large is read later, once.

    Raises:
        DatasetError: the data set is neither a folder, nor a known name, nor a timm spec, or it is a label file with a mistake.
    """
    from tlcli.training.data.label_files.remote_files import is_remote
    from tlcli.training.data.load import list_dataset
    from tlcli.training.data.registry import KNOWN
    from tlcli.training.data.timm_datasets import is_timm_spec
    from tlcli.training.runtime.progress import silent

    path = Path(config.dataset).expanduser()
    is_large = is_remote(config.dataset) or (path.is_file() and path.stat().st_size > _CHECKED_BYTES)
    is_named = config.dataset.lower() in KNOWN or is_timm_spec(config.dataset)
    has_label_settings = bool(config.columns) or config.group_column is not None
    if not is_large and not is_named and (has_label_settings or not path.is_dir()):
        list_dataset(config, silent)


def check_data_dir(dataset: str) -> None:
    """Check that `--data-dir`, the folder of the known data sets, applies to a data set.

    Raises:
        SettingsError: the data set is itself a folder or a label file.
    """
    from tlcli.training.data.label_files.read_label_file import is_label_file
    from tlcli.training.data.registry import KNOWN

    if dataset.lower() not in KNOWN and is_label_file(dataset):
        raise SettingsError(f"--data-dir does not apply to {dataset}, which is a label file: leave --data-dir out")
    if dataset.lower() not in KNOWN and Path(dataset).expanduser().is_dir():
        raise SettingsError(f"--data-dir does not apply to {dataset}, which is a folder of images: leave --data-dir out")


def _flag(name: str) -> str:
    from tlcli.training.settings.flag_names import flag_of

    return flag_of(name)


def check_same_settings(run: Path, given: Mapping[str, Any], file: Path | None) -> None:
    """Check that no flag contradicts the settings of the run to resume.

    `--dataset` and `--data-dir` may name a different folder, because the images may have moved; `tlcli.training.resume` compares them.

    Raises:
        SettingsError: a flag contradicts the run's settings.
        NotFoundError: the run does not exist.
    """
    from tlcli.training.runs.run_folder import absolute, read_config

    saved = read_config(run).asked
    if file is not None:
        raise SettingsError(f"--config cannot be combined with --resume, because {run} keeps its own settings: leave --config out")
    if "output" in given:
        raise SettingsError(f"--output cannot be combined with --resume, because {run} is the run folder: leave --output out")
    requested = absolute(finetune_config(**given))
    for name in given:
        if name == "workers":  # does not change the result
            continue
        before, now = getattr(saved, name), getattr(requested, name)
        has_moved = name in ("dataset", "data_dir") and Path(now).exists() and Path(before).is_absolute()
        if before != now and not has_moved:
            shown = "the default" if before is None else before
            raise SettingsError(
                f"{_flag(name)} {now} does not match {run}, which was started with {shown}: leave {_flag(name)} out"
                " to resume, or start a new run"
            )


def to_toml(config: FinetuneConfig) -> str:
    """Return the settings in the TOML format that `finetune_config` reads. Comments list unset settings and the resolved values.

    Raises:
        SettingsError: settings contradict each other.
    """
    from tlcli.training.settings.plan import resolve_plan

    plan = resolve_plan(config).model_dump(mode="json")
    lines, tables = [], []
    for name, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            tables += [f"\n[{name}]", *(f"{json.dumps(key)} = {json.dumps(item)}" for key, item in value.items())] if value else []
        elif value is None:
            lines.append(f"# {name}: not set")
        else:
            lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
    resolved = [f"# {name} = {json.dumps(value)}" for name, value in plan.items()]
    return "\n".join([*lines, *tables, "", "# resolved values:", *resolved]) + "\n"


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise NotFoundError(f"{file}: no such file: expected settings in TOML; `tlcli finetune --print-config` prints an example")
    try:
        return tomllib.loads(read_text(file, _MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, or an integer with thousands of digits
        raise SettingsError(f"{file}: not valid TOML: {error}") from error
