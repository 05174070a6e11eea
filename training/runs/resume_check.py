"""Checks that a resumed run uses the same data, weights and settings as before."""

from __future__ import annotations

from pathlib import Path

from tlcli.contract.errors import SettingsError
from tlcli.training.data.label_files.read_label_file import is_label_file
from tlcli.training.runs.run_folder import RunConfig, with_pretrained


def require_unchanged(path: Path, saved: RunConfig, current: RunConfig) -> None:
    """Check that the images, classes, weights and settings have not changed since a run started.

    The head is not compared if the run performs a head search. The number of workers is never compared, since a run may resume on a
    machine with more cores.

    Args:
        path: run folder.
        saved: config saved in the folder.
        current: config as resolved now.

    Raises:
        SettingsError: the images, classes, weights or settings changed.
    """
    network = with_pretrained(saved).network
    if current.plan.config.head_search:
        network = network.model_copy(update={"head": current.network.head})
    plan_before, plan_now = (config.plan.model_dump(exclude={"workers"}) for config in (saved, current))
    for name, before, now in (
        (_describe_data(saved), saved.dataset_fingerprint, current.dataset_fingerprint),
        ("the classes or their order", saved.classes, current.classes),
        ("the initial weights", saved.weights_fingerprint, current.weights_fingerprint),
        ("the network or its preprocessing", network, current.network),
        ("the settings", plan_before, plan_now),
    ):
        if before != now:
            raise SettingsError(f"{path}: {name} changed since this run started: restore them, or start a new run")


def _describe_data(config: RunConfig) -> str:
    if is_label_file(config.asked.dataset):
        return f"{config.asked.dataset} or its images (labels, splits, weights or contents)"
    return "the images"


def changed_versions(saved: RunConfig, current: RunConfig) -> list[str]:
    """Return the packages whose versions differ, each formatted as `timm 1.0.20 -> 1.0.31`."""
    return [
        f"{package} {version} -> {current.versions[package]}"
        for package, version in saved.versions.items()
        if current.versions[package] != version
    ]
