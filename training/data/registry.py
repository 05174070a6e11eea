"""Registry of named data sets, with the folder of each and the function that downloads or creates it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tlcli.contract.files.atomic_folder import whole_folder
from tlcli.training.data.download import download, unpack_zip
from tlcli.training.data.image_folder import list_folder
from tlcli.training.data.listing import Listing
from tlcli.training.data.shapes import DEFAULT_COUNTS, SHAPES, shapes_folder, write_shapes
from tlcli.training.data.torchvision_datasets import DatasetClass, fetch, list_torchvision, named_class
from tlcli.training.runtime.progress import ProgressFactory
from tlcli.training.settings.config import default_data_dir

CATS_VS_DOGS_URL = "https://download.microsoft.com/download/3/E/1/3E1C3F21-ECDB-4869-8368-6DEBA77B919F/kagglecatsanddogs_5340.zip"


@dataclass(frozen=True)
class KnownDataset:
    """Entry of the table that `tlcli datasets` prints.

    classes, images: published numbers of classes and images. path: folder of the data set. present: True if the folder has content.
    """

    name: str
    classes: int
    images: int
    source: str
    path: Path
    present: bool


@dataclass(frozen=True)
class Known:
    """Named data set in the registry.

    source: origin of the data set, for display.
    open: function that downloads or creates the data set if it is missing, and lists its folder.
    place: function that maps the data directory and the seed to the folder of the data set; by default, the folder has its name.
    """

    name: str
    classes: int
    images: int
    source: str
    open: Callable[[Known, Path, int, ProgressFactory], Listing]
    place: Callable[[Path, int], Path] | None = None

    def folder(self, data_dir: Path, seed: int) -> Path:
        """Return the folder of the data set."""
        return self.place(data_dir, seed) if self.place is not None else data_dir / self.name

    def download_advice(self, folder: Path) -> str:
        """Return the advice shown when the data set cannot be downloaded to `folder`."""
        return (
            f"Put the unpacked data set in {folder} (train/<class>/<image>), use --data-dir to name the folder that contains"
            f" {self.name}, or use another --dataset: a folder of images, or shapes, which needs no download"
        )

    def load(self, data_dir: Path, seed: int, progress: ProgressFactory) -> Listing:
        """List the images of the data set. Missing images are downloaded or created first.

        Raises:
            HubError: the data set is missing and cannot be downloaded.
            DatasetError: the folder does not contain a valid data set.
        """
        return self.open(self, self.folder(data_dir, seed), seed, progress)


def cats_vs_dogs(known: Known, folder: Path, seed: int, progress: ProgressFactory, url: str = CATS_VS_DOGS_URL) -> Listing:
    """List the Cats vs. Dogs data set in `folder`, in any supported layout. If the folder is empty, download Microsoft's archive first."""
    if not _has_content(folder):
        with whole_folder(folder) as temporary:
            archive = temporary / url.rsplit("/", 1)[-1]
            download([url], archive, known.download_advice(folder), progress)
            unpack_zip(archive, temporary, progress)
            archive.unlink()
    return list_folder(folder, where=known.name)


def torchvision_set(
    known: Known,
    folder: Path,
    seed: int,
    progress: ProgressFactory,
    dataset: Callable[[], DatasetClass],
    keeps: str,
    labels: tuple[str, ...] | None = None,
) -> Listing:
    """List a torchvision data set, stored either in torchvision's own format or as a folder of images.

    Args:
        known: registry entry of the data set.
        folder: folder of the data set.
        seed: unused.
        progress: progress bar for the download.
        dataset: function that returns the torchvision class, called only when needed because importing torchvision takes seconds.
        keeps: subfolder of `folder` in which the torchvision class stores its files.
        labels: class names that replace torchvision's where those are impractical to type.
    """
    is_present = (folder / keeps).is_dir()
    if not is_present and _has_content(folder):
        return list_folder(folder, where=known.name)
    if not is_present:
        fetch(dataset(), folder, known.download_advice(folder), progress)
    return list_torchvision(dataset(), folder, known.name, labels)


def drawn_shapes(known: Known, folder: Path, seed: int, progress: ProgressFactory) -> Listing:
    """List the synthetic `shapes` data set, which is drawn on first use. Each seed has its own folder."""
    if not _has_content(folder):
        with whole_folder(folder) as temporary:
            write_shapes(temporary, DEFAULT_COUNTS, seed, progress=progress)
    return list_folder(folder, where=known.name)


def _torchvision(name: str, keeps: str, labels: tuple[str, ...] | None = None) -> Callable[[Known, Path, int, ProgressFactory], Listing]:
    return functools.partial(torchvision_set, dataset=functools.partial(named_class, name), keeps=keeps, labels=labels)


KNOWN: dict[str, Known] = {
    known.name: known
    for known in (
        Known("cats-vs-dogs", 2, 25_000, "Kaggle's Dogs vs. Cats, Microsoft's archive (download.microsoft.com)", cats_vs_dogs),
        Known("cifar10", 10, 60_000, "Krizhevsky 2009 (cs.toronto.edu/~kriz)", _torchvision("CIFAR10", "cifar-10-batches-py")),
        Known("cifar100", 100, 60_000, "Krizhevsky 2009 (cs.toronto.edu/~kriz)", _torchvision("CIFAR100", "cifar-100-python")),
        Known(
            "mnist", 10, 70_000, "LeCun et al. 1998 (ossci-datasets.s3.amazonaws.com)", _torchvision("MNIST", "MNIST", tuple("0123456789"))
        ),
        Known(
            "fashion-mnist", 10, 70_000, "Xiao et al. 2017, arXiv:1708.07747 (amazonaws.com)", _torchvision("FashionMNIST", "FashionMNIST")
        ),
        Known(
            "shapes",
            len(SHAPES),
            len(SHAPES) * sum(DEFAULT_COUNTS.values()),
            "drawn by tlcli, by --seed; no download",
            drawn_shapes,
            place=shapes_folder,
        ),
    )
}


def known_datasets(data_dir: Path | None = None, seed: int = 0) -> list[KnownDataset]:
    """Return an entry for each named data set, as shown by `tlcli datasets`.

    Args:
        data_dir: folder of the data sets; defaults to `default_data_dir()`.
        seed: seed for data sets that depend on one.
    """
    data_dir = data_dir or default_data_dir()
    rows = []
    for known in KNOWN.values():
        folder = known.folder(data_dir, seed)
        rows.append(KnownDataset(known.name, known.classes, known.images, known.source, folder, _has_content(folder)))
    return rows


def _has_content(folder: Path) -> bool:
    return folder.is_dir() and any(not child.name.startswith(".") for child in folder.iterdir())
