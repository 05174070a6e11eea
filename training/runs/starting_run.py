"""Earlier run that a run starts from: its folder, and the settings that are taken over."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tlcli.contract.errors import NotFoundError, SettingsError
from tlcli.contract.model.description import Description
from tlcli.contract.model.onnx_metadata import read_metadata
from tlcli.contract.model.repository_layout import MODEL_FILE, find_model_file, is_run, not_a_run, versions
from tlcli.training.models.backbone_names import resolve_backbone_name
from tlcli.training.runs.run_folder import RUNS, read_config
from tlcli.training.runs.summary import require_finished
from tlcli.training.settings.config import FinetuneConfig
from tlcli.training.settings.flag_names import flag_of
from tlcli.training.settings.model_arguments import argument_text
from tlcli.training.settings.run_file_names import CHECKPOINT, CONFIG, RESULTS

_TAKEN_OVER = ("backbone", "model_kwargs", "head", "image_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")
"""Settings of the network and its preprocessing, which are those of the earlier run."""


def take_over(config: FinetuneConfig) -> FinetuneConfig:
    """Return the settings with those of the run that `config.from_run` names; unchanged if it names none.

    Raises:
        NotFoundError: there is no such run, or it is not finished.
        SettingsError: a setting contradicts the earlier run, or the model's run cannot be found.
    """
    if config.from_run is None:
        return config
    path = find_starting_run(config.from_run.expanduser()).absolute()
    if config.weights != "pretrained":
        raise SettingsError(
            f"--from cannot be combined with --weights {config.weights}, because the weights are those of {path}: leave one of them out"
        )
    if config.head_search:
        raise SettingsError(f"--head-search cannot be combined with --from, because the head is that of {path}: leave one of them out")
    require_finished(path, CONFIG, RESULTS, CHECKPOINT)
    saved = read_config(path)
    network, size = saved.network, saved.network.preprocessing
    own = {
        "backbone": network.backbone,
        "model_kwargs": network.model_kwargs,
        "head": network.head,
        "image_size": size.height if size.height == size.width else None,
        **{name: getattr(size, name) for name in ("crop_pct", "crop_mode", "interpolation", "mean", "std")},
    }
    for name in _TAKEN_OVER:
        given = getattr(config, name)
        is_same = given == own[name] or (name == "backbone" and resolve_backbone_name(given) == own[name])
        if name in config.model_fields_set and given is not None and not is_same:
            raise SettingsError(
                f"{flag_of(name)} {_shown(given)} does not match {path}, whose {name.replace('_', ' ')} {_shown(own[name])} is taken over:"
                f" leave {flag_of(name)} out, or leave --from out"
            )
    kept = {name: own[name] if name in ("backbone", "model_kwargs", "head") else getattr(saved.asked, name) for name in _TAKEN_OVER}
    return config.model_copy(update={"from_run": path, **kept})


def find_starting_run(path: Path) -> Path:
    """Return the run's folder that a path names: the run itself, or the run that an exported model records.

    The run of a model is searched in `runs` next to the model repository and in the working directory.

    Raises:
        NotFoundError: the path is neither a run nor a model.
        SettingsError: the model was not exported from a run, or its run is not found.
    """
    is_model = bool(versions(path)) or (path / MODEL_FILE).is_file() or path.suffix == ".onnx"
    if not is_model:
        if problem := not_a_run(path):
            raise NotFoundError(f"--from {problem}")
        if not is_run(path):
            raise NotFoundError(f"--from {path}: no run or model: give a run's folder, such as one under {RUNS}/")
        return path
    file = find_model_file(path)
    origin = Description.from_metadata(read_metadata(file), str(file)).provenance
    no_weights = f"--from {path}: an exported model holds no weights to train"
    if origin.run is None:
        raise SettingsError(f"{no_weights}, and it was not exported from a run: use --backbone {origin.backbone} --weights FILE")
    above = file.absolute().parents
    folders = dict.fromkeys([above[min(3, len(above) - 1)] / RUNS, RUNS.absolute()])
    for folder in folders:
        if is_run(folder / origin.run) and read_config(folder / origin.run).dataset_fingerprint == origin.dataset_fingerprint:
            return folder / origin.run
    searched = " or ".join(map(str, folders))
    raise SettingsError(f"{no_weights}, and its run {origin.run} is not in {searched}: name the run: --from PATH/TO/{origin.run}")


def describe_classes(path: Path, before: Sequence[str], now: Sequence[str]) -> str:
    """Return a line that says which classes keep their rows of the head, which are new, and which are dropped."""
    kept = [name for name in now if name in before]
    new = [name for name in now if name not in before]
    dropped = [name for name in before if name not in now]
    lists = [f"{len(kept)} of {len(before)} classes keep their weights"]
    lists += [f"{len(names)} {word} ({_named(names)})" for word, names in (("new", new), ("dropped", dropped)) if names]
    return f"starting from {path}: {', '.join(lists)}"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return ",".join(f"{key}={argument_text(item)}" for key, item in value.items()) or "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
