"""Data sets known by name: where each is looked for, and where it is had from."""

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
    """A row of `tlcli datasets`. classes, images: how many, as published. path: where it is kept. present: it is there."""

    name: str
    classes: int
    images: int
    source: str
    path: Path
    present: bool


@dataclass(frozen=True)
class Known:
    """A data set known by name, and how it is had.

    source: where it is from, for people.
    place: its folder in the data directory, for a seed.
    open: lists it from its folder, which is fetched first if need be.
    """

    name: str
    classes: int
    images: int
    source: str
    open: Callable[[Known, Path, int, ProgressFactory], Listing]
    place: Callable[[Path, int], Path] | None = None

    def folder(self, data_dir: Path, seed: int) -> Path:
        """Where the data set is kept."""
        return self.place(data_dir, seed) if self.place is not None else data_dir / self.name

    def ways_out(self, folder: Path) -> str:
        """What to do where it cannot be downloaded."""
        return (
            f"It was to go to {folder}: put the unpacked data set there (train/<class>/<image>), say with --data-dir where a folder"
            f" {self.name} is, or give another --dataset: a folder of images, or shapes, which needs no download"
        )

    def load(self, data_dir: Path, seed: int, progress: ProgressFactory) -> Listing:
        """The images, found or fetched.

        Raises:
            HubError: not there, and cannot be downloaded.
            DatasetError: what is there is no data set.
        """
        return self.open(self, self.folder(data_dir, seed), seed, progress)


def cats_vs_dogs(known: Known, folder: Path, seed: int, progress: ProgressFactory, url: str = CATS_VS_DOGS_URL) -> Listing:
    """Microsoft's archive, or any layout of the same images that lies in `folder`."""
    if not _holds_something(folder):
        with whole_folder(folder) as temporary:
            archive = temporary / url.rsplit("/", 1)[-1]
            download([url], archive, known.ways_out(folder), progress)
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
    """One of torchvision's data sets, or the same images in a folder's layout.

    dataset: answers torchvision's class; called only if it is needed, since torchvision takes seconds to import.
    keeps: the folder below `folder` in which that class keeps its files.
    labels: the classes' names, where torchvision's are not what people type.
    """
    there = (folder / keeps).is_dir()
    if not there and _holds_something(folder):
        return list_folder(folder, where=known.name)
    if not there:
        fetch(dataset(), folder, known.ways_out(folder), progress)
    return list_torchvision(dataset(), folder, known.name, labels)


def drawn_shapes(known: Known, folder: Path, seed: int, progress: ProgressFactory) -> Listing:
    """The project's own drawings, one data set a seed, drawn when they are first asked for."""
    if not _holds_something(folder):
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
    """Every data set that has a name, for `tlcli datasets`. data_dir: `default_data_dir()` by default."""
    data_dir = data_dir or default_data_dir()
    rows = []
    for known in KNOWN.values():
        folder = known.folder(data_dir, seed)
        rows.append(KnownDataset(known.name, known.classes, known.images, known.source, folder, _holds_something(folder)))
    return rows


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(not child.name.startswith(".") for child in folder.iterdir())
