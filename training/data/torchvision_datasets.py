"""torchvision data sets, downloaded with this project's downloader and then unpacked, verified and read by torchvision."""

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
from tlcli.training.data.array_source import Indexed, TorchvisionImages, list_arrays
from tlcli.training.data.download import download
from tlcli.training.data.listing import Listing
from tlcli.training.runtime.progress import ProgressFactory

DatasetClass = Callable[..., Any]
"""A class in `torchvision.datasets` with the same interface as `CIFAR10` or `MNIST`."""


def named_class(name: str) -> DatasetClass:
    """Return `torchvision.datasets.<name>`. torchvision is imported here because the import takes seconds."""
    import torchvision.datasets

    dataset: DatasetClass = getattr(torchvision.datasets, name)
    return dataset


def fetch(dataset: DatasetClass, root: Path, advice: str, progress: ProgressFactory) -> None:
    """Download a data set atomically to `root`, where the torchvision class expects it.

    torchvision's own download has no timeout, falls back to unencrypted URLs, and shows a progress bar that cannot be disabled. The
    archives are therefore downloaded here, from torchvision's URLs and with its checksums, and then unpacked by torchvision.

    Args:
        dataset: torchvision data set class.
        root: root folder passed to that class.
        advice: advice for the user, appended to the error message.
        progress: progress bar for the download.

    Raises:
        HubError: the download failed (see `tlcli.training.data.download.download`), or torchvision cannot read the files.
    """
    root.mkdir(parents=True, exist_ok=True)
    with temporary_folder(root, ".download.") as staging:
        for urls, path, md5 in _archives(dataset):
            download(urls, staging / path, advice, progress, md5)
        try:
            dataset(staging, train=True, download=True)
        except RuntimeError as error:
            raise HubError(f"{root}: torchvision cannot read the downloaded files: {first_line(error)}: retry the download") from error
        for _, path, _ in _archives(dataset):
            (staging / path).unlink()
        own = own_folder(dataset)
        shutil.rmtree(root / own, ignore_errors=True)
        os.rename(staging / own, root / own)


def list_torchvision(dataset: DatasetClass, root: Path, where: str, classes: Sequence[str] | None = None) -> Listing:
    """List the training and test parts of a downloaded data set.

    CIFAR files are pickles; torchvision verifies each against the published checksum before opening it.

    Args:
        dataset: torchvision data set class.
        root: root folder passed to that class.
        where: name of the data set, used in messages and as the prefix of image names.
        classes: class names; None to use torchvision's.

    Raises:
        DatasetError: the data set is missing or damaged.
    """
    parts: dict[str, tuple[Indexed, npt.NDArray[np.int64]]] = {}
    for part in ("train", "test"):
        try:
            opened = dataset(root, train=part == "train")
        except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
            raise DatasetError(
                f"{where}: {root / own_folder(dataset)} is incomplete or damaged ({first_line(error)}): remove it to download it again"
            ) from error
        parts[part] = TorchvisionImages(opened), np.asarray(opened.targets, dtype=np.int64)
        classes = classes or tuple(str(name) for name in opened.classes)
    return list_arrays(where, classes or (), parts)


def _archives(dataset: DatasetClass) -> Iterator[tuple[list[str], Path, str]]:
    """Yield the URLs, the path relative to the root, and the MD5 of each archive."""
    described: Any = dataset
    if hasattr(described, "url"):
        yield [described.url], Path(described.filename), described.tgz_md5
    else:
        for name, md5 in described.resources:
            yield [mirror + name for mirror in described.mirrors], Path(own_folder(dataset)) / "raw" / name, md5


def own_folder(dataset: DatasetClass) -> str:
    """Return the subfolder of the root folder in which the torchvision class stores its files."""
    described: Any = dataset
    return str(getattr(described, "base_folder", described.__name__))
