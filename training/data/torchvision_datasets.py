"""Data sets that torchvision knows: fetched by our own downloader, unpacked, checked and read by torchvision."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tlcli.contract.errors import DatasetError, HubError, first_line
from tlcli.contract.files.atomic_folder import temporary_folder
from tlcli.training.data.array_source import Indexed, PairsOfTorchvision, list_arrays
from tlcli.training.data.download import download
from tlcli.training.data.listing import Listing
from tlcli.training.runtime.progress import ProgressFactory

DatasetClass = Callable[..., Any]
"""A class of `torchvision.datasets` in the manner of CIFAR10 or MNIST."""


def named_class(name: str) -> DatasetClass:
    """`torchvision.datasets.<name>`; imported only now, since torchvision takes seconds."""
    import torchvision.datasets

    found: DatasetClass = getattr(torchvision.datasets, name)
    return found


def fetch(dataset: DatasetClass, root: Path, ways_out: str, progress: ProgressFactory) -> None:
    """Download to `root`, where torchvision's class looks for it; whole or not at all.

    torchvision's own download has no time limit, falls back to unencrypted addresses, and draws a progress bar that
    nobody can turn off. So the archives are fetched here, from its addresses and by its checksums, and it only unpacks.

    Raises:
        HubError: see `tlcli.training.data.download.download`.
    """
    root.mkdir(parents=True, exist_ok=True)
    with temporary_folder(root, ".download.") as staging:
        for urls, place, md5 in _archives(dataset):
            download(urls, staging / place, ways_out, progress, md5)
        try:
            dataset(staging, train=True, download=True)
        except RuntimeError as error:
            raise HubError(f"{root}: torchvision does not take what was downloaded: {first_line(error)}") from error
        for _, place, _ in _archives(dataset):
            (staging / place).unlink()
        own = own_folder(dataset)
        shutil.rmtree(root / own, ignore_errors=True)
        os.rename(staging / own, root / own)


def list_torchvision(dataset: DatasetClass, root: Path, where: str, classes: Sequence[str] | None = None) -> Listing:
    """The training and test parts that lie below `root`.

    CIFAR's files are pickles: torchvision compares each with the publisher's checksum before it is opened.

    Args:
        dataset: torchvision's class.
        root: what it calls its root.
        where: the data set, as messages and names call it.
        classes: their names, if not torchvision's.

    Raises:
        DatasetError: not there, or damaged.
    """
    parts: dict[str, tuple[Indexed, npt.NDArray[np.int64]]] = {}
    for part in ("train", "test"):
        try:
            opened = dataset(root, train=part == "train")
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
            raise DatasetError(
                f"{where}: {root / own_folder(dataset)} is not whole ({first_line(error)}): remove it, and it will be downloaded again"
            ) from error
        parts[part] = PairsOfTorchvision(opened), np.asarray(opened.targets, dtype=np.int64)
        classes = classes or tuple(str(name) for name in opened.classes)
    return list_arrays(where, classes or (), parts)


def _archives(dataset: DatasetClass) -> Iterator[tuple[list[str], Path, str]]:
    """Addresses, place below the root, and MD5 of each archive."""
    described: Any = dataset
    if hasattr(described, "url"):
        yield [described.url], Path(described.filename), described.tgz_md5
    else:
        for name, md5 in described.resources:
            yield [mirror + name for mirror in described.mirrors], Path(own_folder(dataset)) / "raw" / name, md5


def own_folder(dataset: DatasetClass) -> str:
    """The folder below its root in which torchvision's class keeps its files."""
    described: Any = dataset
    return str(getattr(described, "base_folder", described.__name__))
