"""Settings of the images that a foreign file takes: range, mean, layout and size. The user sets those that the file does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import TensorProto

from tlcli.contract.errors import SettingsError
from tlcli.contract.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, CropMode, Interpolation, Preprocessing
from tlcli.exports.onnx_source.graph.source_file import SourceFile, shown
from tlcli.exports.onnx_source.image_input import ImageInput

Triple = tuple[float, float, float]

INPUT_RANGES: dict[str, tuple[float, float]] = {"0..255": (0.0, 1 / 255), "0..1": (0.0, 1.0), "-1..1": (0.5, 0.5)}
"""Mean and standard deviation, for values in [0, 1], of the input ranges by name."""


@dataclass(frozen=True)
class InputSettings:
    """Input settings of a file, as given by the user. None means unknown.

    mean, std: mean and standard deviation per channel, on the scale of `input_range`, or in [0, 1] without it.
    input_range: a key of `INPUT_RANGES`.
    layout: `nchw` or `nhwc`.
    channel_order: `rgb` or `bgr`.
    image_size: height and width for a file with symbolic sizes.
    crop_pct, crop_mode, interpolation: see `Preprocessing`.
    """

    mean: Triple | None = None
    std: Triple | None = None
    input_range: str | None = None
    layout: str | None = None
    channel_order: str = "rgb"
    image_size: int | None = None
    crop_pct: float | None = None
    crop_mode: CropMode | None = None
    interpolation: Interpolation | None = None

    @property
    def is_known(self) -> bool:
        """True if the normalisation is given."""
        return self.mean is not None or self.std is not None or self.input_range is not None


def image_input(source: SourceFile, settings: InputSettings, guess: tuple[Triple, Triple, str] | None = None) -> ImageInput:
    """Return the form of a file's input.

    Args:
        source: the file.
        settings: settings given by the user.
        guess: mean and standard deviation for values in [0, 1], and the channel order, to use instead of the user's.

    Raises:
        SettingsError: the settings contradict the file, or a required setting is unknown.
    """
    channels_last = _channels_last(source, settings.layout)
    height, width = _size(source, settings.image_size, channels_last)
    is_float = source.input_type == TensorProto.FLOAT
    if guess is not None:
        mean, std, order = guess
    else:
        mean, std = _normalisation(source, settings, is_float)
        order = settings.channel_order
    preprocessing = Preprocessing(
        height=height,
        width=width,
        crop_pct=0.875 if settings.crop_pct is None else settings.crop_pct,
        crop_mode=settings.crop_mode or "center",
        interpolation=settings.interpolation or "bilinear",
        mean=mean,
        std=std,
    )
    return ImageInput(preprocessing, channels_last, order == "bgr", is_float)


def _channels_last(source: SourceFile, layout: str | None) -> bool:
    first, last = source.shape[1], source.shape[3]
    fits = {"nchw": first in (None, 3), "nhwc": last in (None, 3)}
    shape = f"[{', '.join('?' if size is None else str(size) for size in source.shape)}]"
    where = f"{source.path}: its input {shown(source.input)} {shape}"
    if layout is not None:
        if not fits[layout]:
            raise SettingsError(f"--layout {layout}: {where} does not have three channels there: use the other layout")
        return layout == "nhwc"
    if not any(fits.values()):
        raise SettingsError(f"{where} does not have three channels: only files for RGB images can be exported")
    sure = [name for name, size in (("nchw", first), ("nhwc", last)) if size == 3]
    if len(sure) == 1 or sum(fits.values()) == 1:
        return (sure or [name for name in fits if fits[name]])[0] == "nhwc"
    raise SettingsError(f"{where} does not specify its layout: use --layout nchw or --layout nhwc")


def _size(source: SourceFile, image_size: int | None, channels_last: bool) -> tuple[int, int]:
    declared = source.shape[1:3] if channels_last else source.shape[2:4]
    if image_size is not None and any(size not in (None, image_size) for size in declared):
        raise SettingsError(
            f"--image-size {image_size}: {source.path} accepts only images of {declared[0]} x {declared[1]}: leave --image-size out"
        )
    sizes = [size or image_size for size in declared]
    if None in sizes:
        raise SettingsError(f"{source.path} accepts images of any size: choose one with --image-size, such as --image-size 224")
    return int(sizes[0] or 0), int(sizes[1] or 0)


def _normalisation(source: SourceFile, settings: InputSettings, is_float: bool) -> tuple[Triple, Triple]:
    if not is_float:
        if settings.is_known and settings.input_range != "0..255":
            raise SettingsError(f"{source.path} takes uint8 images, which are not normalised: leave out --mean, --std and --input-range")
        return (0.0,) * 3, (1 / 255,) * 3
    if not settings.is_known:
        raise SettingsError(
            f"{source.path} does not specify how its images are normalised: use --mean and --std (such as --mean"
            f" {','.join(map(str, IMAGENET_MEAN))} --std {','.join(map(str, IMAGENET_STD))}), or --input-range 0..255, 0..1 or -1..1,"
            " or find the normalisation on labelled images with --guess-preprocessing FOLDER; add --layout nhwc if the channels are last"
        )
    if settings.mean is None and settings.std is None:
        mean, std = INPUT_RANGES[str(settings.input_range)]
        return (mean,) * 3, (std,) * 3
    if settings.input_range == "-1..1":
        raise SettingsError("--input-range -1..1 already is a mean and a standard deviation of 0.5: leave out --mean and --std")
    largest = 255.0 if settings.input_range == "0..255" else 1.0
    mean_values = _scaled(settings.mean or (0.0,) * 3, largest)
    if max(mean_values) > 1:
        raise SettingsError(f"--mean {settings.mean}: expected values in [0, 1]; for values in [0, 255] add --input-range 0..255")
    return mean_values, _scaled(settings.std or (1.0,) * 3, largest)


def _scaled(values: Sequence[float], largest: float) -> Triple:
    first, second, third = (value / largest for value in values)
    return first, second, third


CANDIDATES: tuple[tuple[str, Triple, Triple, str], ...] = (
    ("--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225", IMAGENET_MEAN, IMAGENET_STD, "rgb"),
    ("--input-range 0..1", (0.0,) * 3, (1.0,) * 3, "rgb"),
    ("--input-range -1..1", (0.5,) * 3, (0.5,) * 3, "rgb"),
    ("--input-range 0..255", (0.0,) * 3, (1 / 255,) * 3, "rgb"),
    ("--input-range 0..255 --channel-order bgr", (0.0,) * 3, (1 / 255,) * 3, "bgr"),
    (
        "--input-range 0..255 --mean 123.68,116.779,103.939 --channel-order bgr",
        (123.68 / 255, 116.779 / 255, 103.939 / 255),
        (1 / 255,) * 3,
        "bgr",
    ),
    (
        "--mean 0.481,0.458,0.408 --std 0.269,0.261,0.276",
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
        "rgb",
    ),
)
"""Usual normalisations: flags, mean and standard deviation for values in [0, 1], and channel order."""
