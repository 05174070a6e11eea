"""Search for the normalisation of a file's input: tries common normalisations on labelled images and selects the most accurate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlcli.contract.errors import SettingsError
from tlcli.contract.images import decoding
from tlcli.contract.images.evenly_spaced import evenly_spaced
from tlcli.exports.onnx_source.graph.source_file import SourceFile
from tlcli.exports.onnx_source.input_settings import CANDIDATES, InputSettings, Triple, image_input

_MOST_IMAGES = 200
_BATCH = 8


def guess_preprocessing(
    source: SourceFile,
    settings: InputSettings,
    run: Callable[[Any], Any],
    labels: Sequence[str],
    folder: Path,
    say: Callable[[str], None],
) -> tuple[Triple, Triple, str]:
    """Try the usual normalisations on labelled images.

    Args:
        source: the file.
        settings: layout, size and resizing.
        run: function from a batch for the file's input to scores `[N, C]`.
        labels: labels of the classes.
        folder: folder with one folder of images per class.
        say: callback that receives the accuracies.

    Returns:
        Mean and standard deviation for values in [0, 1], and channel order.

    Raises:
        SettingsError: the folders do not match the classes, or no normalisation is clearly the best.
    """
    images = _labelled(folder, labels)
    chosen = [images[index] for index in evenly_spaced(len(images), _MOST_IMAGES)]
    pixels = [(image_input(source, settings, CANDIDATES[0][1:]).preprocessing.apply(decoding.read(path)), label) for path, label in chosen]
    rates = []
    say(f"accuracy on {len(pixels)} images of {folder}:")
    for flags, mean, std, order in CANDIDATES:
        form = image_input(source, settings, (mean, std, order))
        right = 0
        for start in range(0, len(pixels), _BATCH):
            batch = pixels[start : start + _BATCH]
            scores = run(form.apply(np.stack([image for image, _ in batch])))
            right += int((scores.argmax(1) == np.array([label for _, label in batch])).sum())
        rates.append(right / len(pixels))
        say(f"  {rates[-1]:6.1%}  {flags}")
    order_of_rates = np.argsort(rates)[::-1]
    best, second = (rates[index] for index in order_of_rates[:2])
    if best <= 1.5 / len(labels) or (best - second) * len(pixels) < 1:
        raise SettingsError(
            f"--guess-preprocessing: no normalisation is clearly the best on {len(pixels)} images ({best:.1%}, then {second:.1%}):"
            " give more images, or --mean and --std or --input-range"
        )
    flags, *guess = CANDIDATES[order_of_rates[0]]
    say(f"using {flags}")
    mean, std, order = guess
    return mean, std, order


def _labelled(folder: Path, labels: Sequence[str]) -> list[tuple[Path, int]]:
    """Return the images in the folders of the classes, with the class ids."""
    if not folder.is_dir():
        raise SettingsError(f"--guess-preprocessing {folder}: no such folder")
    folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    ids = {label: number for number, label in enumerate(labels)}
    if not folders:
        raise SettingsError(f"--guess-preprocessing {folder}: expected one folder of images per class")
    unknown = [path.name for path in folders if path.name not in ids]
    if not unknown:
        numbers = [ids[path.name] for path in folders]
    elif len(folders) == len(labels):
        numbers = list(range(len(folders)))  # in alphabetical order, as every framework numbers folders
    else:
        raise SettingsError(
            f"--guess-preprocessing {folder}: the folder {unknown[0]} is not a label, and there are {len(folders)} folders for"
            f" {len(labels)} classes: name the folders after the labels"
        )
    found = [(path, number) for part, number in zip(folders, numbers, strict=True) for path in decoding.find([part])]
    if not found:
        raise SettingsError(f"--guess-preprocessing {folder}: contains no images: expected one folder of images per class")
    return found
