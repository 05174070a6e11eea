"""Provenance of an export: its time, the versions of the packages, and the network."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from tlcli.contract.model.description import Provenance
from tlcli.training.models.network import NetworkConfig


def new_provenance(network: NetworkConfig, weights: str, **fields: Any) -> Provenance:
    """Return the provenance of an export that is made now.

    Args:
        network: the network's backbone and head are recorded.
        weights: a weights setting; of a path, the file name alone is recorded.
        fields: further fields of `Provenance`.
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
