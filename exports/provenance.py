"""Provenance of an export: time, package versions, and network."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tlcli.contract.model.description import Provenance
from tlcli.training.models.network import NetworkConfig


def new_provenance(network: NetworkConfig, weights: str, **fields: Any) -> Provenance:
    """Return a provenance record with the current time and the installed package versions.

    Args:
        network: configuration whose backbone and head are recorded.
        weights: the weights setting; for a path, only the file name is recorded.
        fields: additional fields of `Provenance`.
    """
    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=_versions(),
        backbone=network.backbone,
        head=network.head,
        weights=Path(weights).name,
        **fields,
    )


def _versions() -> dict[str, str]:
    packages = {package: metadata.version(package) for package in ("tlcli", "torch", "timm", "onnx", "onnxscript")}
    return packages | {"python": platform.python_version()}
