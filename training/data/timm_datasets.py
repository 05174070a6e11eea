"""Support for timm data set specs `torch/<name>`, `hfds/<name>`, `wds/<name>` and `tfds/<name>`, via `timm.data.create_dataset`."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import io
import re
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.errors import DatasetError, HubError, first_line
from tlcli.contract.files.atomic_folder import whole_folder
from tlcli.training.data import torchvision_datasets
from tlcli.training.data.array_source import Indexed, TorchvisionImages, list_arrays
from tlcli.training.data.download import CONNECT_SECONDS, connect, explain
from tlcli.training.data.image_folder import list_folder
from tlcli.training.data.listing import Listing
from tlcli.training.runtime.progress import ProgressFactory
from tlcli.training.settings.config import FinetuneConfig

PREFIXES = ("torch", "hfds", "wds", "tfds")

Create = Callable[..., Any]
"""Type of `timm.data.create_dataset`."""

_SPLITS = {"train": ("train", "training"), "val": ("validation", "valid", "val"), "test": ("test",)}
"""Common split names for each part."""

_TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "kmnist": "KMNIST", "fashion_mnist": "FashionMNIST"}
"""timm names of the data sets that are downloaded when missing, mapped to torchvision class names."""


def is_timm_spec(spec: str) -> bool:
    """Return True if `spec` is a name with one of timm's prefixes, such as `hfds/<name>`."""
    prefix, slash, name = spec.partition("/")
    return bool(slash and name) and prefix.lower() in PREFIXES


def list_timm(config: FinetuneConfig, progress: ProgressFactory, create: Create | None = None) -> Listing:
    """List the images of a timm data set spec.

    `torch/` reads files and `wds/` reads shards in `config.data_dir`, `hfds/` uses the Hugging Face cache, and `tfds/` uses data
    prepared by TensorFlow Datasets. Streams (`wds/`, `tfds/`) are first copied to a folder in `config.data_dir` as PNG files, because
    training needs random access.

    Args:
        config: settings, of which `dataset` and `data_dir` are used.
        progress: progress bar for copies and downloads.
        create: replacement for `timm.data.create_dataset`.

    Raises:
        DatasetError: the data set does not exist, it has no training part, or a required package is not installed.
        HubError: the data set is missing and its hub cannot be reached.
    """
    create = create or _create_dataset
    prefix = config.dataset.partition("/")[0].lower()
    if prefix == "torch":
        return _torch(config, progress, create)
    if prefix == "hfds":
        return _hugging_face(config, progress, create)
    return _streamed(config, progress, create)


def _create_dataset(*positional: Any, **options: Any) -> Any:
    """Call `timm.data.create_dataset`. timm is imported here because the import takes seconds."""
    return importlib.import_module("timm.data").create_dataset(*positional, **options)


def _torch(config: FinetuneConfig, progress: ProgressFactory, create: Create) -> Listing:
    name = config.dataset.rpartition("/")[2].lower()
    if name in ("folder", "image_folder"):
        return list_folder(config.data_dir)
    if name in _TORCHVISION:
        dataset = torchvision_datasets.named_class(_TORCHVISION[name])
        if not (config.data_dir / torchvision_datasets.own_folder(dataset)).is_dir():
            advice = f"Put torchvision's files in {config.data_dir}, or use --data-dir to name the folder that contains them"
            torchvision_datasets.fetch(dataset, config.data_dir, advice, progress)
    # torchvision's second split is a test part, although timm calls it validation.
    opened = {part: _opened(create, config, split, root=config.data_dir) for part, split in (("train", "train"), ("test", "validation"))}
    parts: dict[str, tuple[Indexed, npt.NDArray[np.int64]]] = {}
    for part, dataset in opened.items():
        labels = getattr(dataset, "targets", None)
        if labels is None:  # some torchvision data sets have no list of labels, so each image is opened to get its label
            labels = [dataset[index][1] for index in range(len(dataset))]
        parts[part] = TorchvisionImages(dataset), np.asarray(labels, dtype=np.int64)
    return list_arrays(config.dataset, _class_names(opened["train"], parts["train"][1]), parts)


@dataclass(frozen=True)
class _EncodedImages:
    """Encoded images read from a timm reader. The reader is used directly because timm's data set class skips unreadable images."""

    reader: Any

    def __len__(self) -> int:
        return len(self.reader)

    def image(self, index: int) -> Image.Image | bytes:
        """Return the encoded image at `index`; see `tlcli.training.data.array_source.Indexed.image`."""
        with self.reader[index][0] as stream:
            encoded: bytes = stream.read()
            return encoded


def _hugging_face(config: FinetuneConfig, progress: ProgressFactory, create: Create) -> Listing:
    name = config.dataset.partition("/")[2]
    local = Path(name).exists()
    unreachable = None if local else _unreachable_hub()
    with _quiet_hub(offline=local or unreachable is not None) as cache, progress(f"Opening {config.dataset}", 1) as advance:
        try:
            opened = {part: dataset for part in _SPLITS if (dataset := _part(create, config, part)) is not None}
        except HubError as error:
            raise HubError(
                f"{config.dataset}: not in Hugging Face's cache ({cache}), and {unreachable or first_line(error)}:"
                " download it on a machine with internet access, or use a folder of images as --dataset"
            ) from error
        advance(1)
    parts: dict[str, tuple[Indexed, npt.NDArray[np.int64]]] = {}
    for part, dataset in opened.items():
        reader = dataset.reader
        labels = np.asarray([-1 if label is None else label for label in reader.dataset[reader.label_key]], dtype=np.int64)
        if part == "train" or labels.min(initial=0) >= 0:  # competitions withhold the labels of the test part and set them to -1
            parts[part] = _EncodedImages(reader), labels
    return list_arrays(config.dataset, _class_names(opened["train"].reader, parts["train"][1]), parts)


def _unreachable_hub() -> str | None:
    """Check the connection to the Hugging Face Hub. Return the reason if it cannot be reached, or None if it can.

    The check fails fast, whereas Hugging Face's own client retries for half a minute first.
    """
    import huggingface_hub.constants

    address = huggingface_hub.constants.ENDPOINT
    try:
        connect(address, CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # an HTTP error is a response
    except (OSError, http.client.HTTPException) as error:
        return f"{address}: {explain(error)}"
    return None


@contextlib.contextmanager
def _quiet_hub(offline: bool) -> Iterator[Path]:
    """Disable Hugging Face progress bars and, if `offline`, its network access within the block. Yields the data set cache folder.

    Raises:
        DatasetError: the package `datasets` is not installed.
    """
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise DatasetError("hfds/ needs the package datasets: pip install datasets, or use a folder of images") from error
    bars: tuple[Any, ...] = (datasets, importlib.import_module("huggingface_hub.utils"))
    shown = [library for library in bars if not library.are_progress_bars_disabled()]
    networked: tuple[Any, ...] = (datasets.config, importlib.import_module("huggingface_hub.constants"))
    before = [module.HF_HUB_OFFLINE for module in networked]
    for library in shown:
        library.disable_progress_bars()
    for module in networked:
        module.HF_HUB_OFFLINE = module.HF_HUB_OFFLINE or offline
    try:
        yield Path(datasets.config.HF_DATASETS_CACHE)
    finally:
        for module, value in zip(networked, before, strict=True):
            module.HF_HUB_OFFLINE = value
        for library in shown:
            library.enable_progress_bars()


def _streamed(config: FinetuneConfig, progress: ProgressFactory, create: Create) -> Listing:
    folder = config.data_dir / re.sub(r"[^A-Za-z0-9._-]+", "-", config.dataset)
    root = {"root": config.data_dir} if config.dataset.lower().startswith("wds/") else {}
    if not folder.is_dir():
        opened = {part: dataset for part in _SPLITS if (dataset := _part(create, config, part, **root)) is not None}
        with whole_folder(folder) as temporary:
            for part, stream in opened.items():
                _copy(stream, temporary / part, config, progress)
    return list_folder(folder, where=config.dataset)


def _copy(stream: Any, folder: Path, config: FinetuneConfig, progress: ProgressFactory) -> None:
    """Write a stream of images and labels to `<folder>/<class>/<number>.png`.

    Raises:
        DatasetError: the underlying library raised an error, or an image could not be written.
    """
    names = {label: name for name, label in (stream.reader.class_to_idx or {}).items()}
    with progress(f"Copying {config.dataset} ({folder.name})", len(stream)) as advance:
        try:
            for number, (image, label) in enumerate(stream):
                class_folder = folder / _file_name(str(names.get(int(label), f"{int(label):04d}")))
                class_folder.mkdir(parents=True, exist_ok=True)
                image.save(class_folder / f"{number:07d}.png", compress_level=3)
                advance(1)
        except Exception as error:  # each library behind timm has its own exceptions
            raise DatasetError(f"{config.dataset} ({folder.name}): {type(error).__name__}: {first_line(error)}") from error


def _file_name(class_name: str) -> str:
    return re.sub(r"[^\w .+-]", "-", class_name).strip(". ") or "-"


def _opened(create: Create, config: FinetuneConfig, split: str, **options: Any) -> Any:
    """Open a split and translate the exceptions of the underlying library.

    Raises:
        DatasetError: the split cannot be opened, or a required package is not installed.
        HubError: the hub cannot be reached.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # timm prints its error messages in addition to raising them
            return create(config.dataset, split=split, is_training=False, download=False, **options)
    except ConnectionError as error:
        raise HubError(
            f"{config.dataset}: {first_line(error)}: use a folder of images as --dataset, or try again with a network"
        ) from error
    except ImportError as error:
        raise DatasetError(f"{config.dataset}: needs a package that is not installed: {first_line(error)}") from error
    except Exception as error:  # each library behind timm has its own exceptions
        raise DatasetError(f"{config.dataset} (split {split}): {type(error).__name__}: {first_line(error)}") from error


def _part(create: Create, config: FinetuneConfig, part: str, **options: Any) -> Any | None:
    """Open a part by trying its common split names. Return None if the part does not exist.

    Raises:
        DatasetError: the training part cannot be opened.
        HubError: the hub cannot be reached.
    """
    problems = []
    for split in _SPLITS[part]:
        try:
            return _opened(create, config, split, **options)
        except DatasetError as error:
            if isinstance(error.__cause__, ImportError):
                raise
            problems.append(error)
    if part == "train":
        raise problems[0]
    return None


def _class_names(labelled: Any, labels: npt.NDArray[np.int64]) -> list[str]:
    """Return the class names that the library provides, or the label numbers as text if it provides none."""
    by_name = getattr(labelled, "class_to_idx", None)
    if by_name:
        return [str(name) for name, _ in sorted(by_name.items(), key=lambda entry: int(entry[1]))]
    return [str(label) for label in range(int(labels.max(initial=-1)) + 1)]
