"""Python API for exported models: `tlcli.load(path).predict(image)`. It requires ONNX Runtime but not PyTorch."""

from __future__ import annotations

import html
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args, overload

from tlcli.answer import Answer, Answers, framed
from tlcli.contract.errors import NotFoundError, RequestError
from tlcli.contract.files.display_name import printable
from tlcli.contract.images.find_images import Skipped, describe
from tlcli.contract.maps.method_names import require_methods
from tlcli.contract.model import onnx_model
from tlcli.contract.model.class_choice import chosen_targets
from tlcli.contract.model.description import Description
from tlcli.contract.model.repository_layout import find_model_file, model_names
from tlcli.image_source import ImageInput, ImageSource, image_sources
from tlcli.predictor import MapOptions, Prediction, Predictor, Unreadable

Cam = str | Sequence[str] | None
"""Map methods: one name or several, as a sequence or separated by commas; `all` for every map of the model; None for no map."""
Class = str | int
"""A class, given as its label, its id, or -r for the class of rank r."""
Classes = Class | Sequence[Class]
OnError = Literal["raise", "skip"]
"""Handling of images that cannot be read: `raise` the error, or `skip` the image with a warning."""


class Model:
    """An exported model that is ready to predict. Instances are thread-safe.

    Example:
        model = tlcli.load("models/pets")
        answer = model.predict("cat.jpg", cam="gradcam")
        answer.label, answer.score
        answer.overlay.save("overlay.png")
    """

    def __init__(self, opened: onnx_model.Model) -> None:
        self._opened = opened

    @property
    def path(self) -> Path:
        """Path of the ONNX file."""
        return self._opened.path

    @property
    def description(self) -> Description:
        """Description stored in the file: labels, preprocessing, maps, provenance."""
        return self._opened.description

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.description.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Class labels in class-id order."""
        return self.description.labels

    @property
    def cams(self) -> tuple[str, ...]:
        """Names of the maps that `predict` can compute."""
        return self.description.methods

    @property
    def device(self) -> str:
        """Device that the model runs on: `cpu` or `cuda`."""
        return self._opened.device

    @overload
    def predict(  # type: ignore[overload-overlap]  # a string is also an iterable
        self,
        images: ImageInput,
        *,
        cam: Cam = None,
        classes: Classes = (),
        softmax: bool = False,
        max_channels: int | None = None,
        image_size: int | None = None,
        on_error: OnError = "raise",
    ) -> Answer: ...

    @overload
    def predict(
        self,
        images: Iterable[ImageInput],
        *,
        cam: Cam = None,
        classes: Classes = (),
        softmax: bool = False,
        max_channels: int | None = None,
        image_size: int | None = None,
        on_error: OnError = "raise",
    ) -> Answers: ...

    def predict(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        cam: Cam = None,
        classes: Classes = (),
        softmax: bool = False,
        max_channels: int | None = None,
        image_size: int | None = None,
        on_error: OnError = "raise",
    ) -> Answer | Answers:
        """Classify images and explain classes with maps.

        Images are decoded, resized and cropped in the same way as by `tlcli predict` and the server, so the results are the same.

        Args:
            images: one image, or an iterable of images. An image is a path, an `http://` or `https://` URL, encoded bytes, a Pillow
                image, or a uint8 array `[H, W, 3]` (RGB), `[H, W]` (grey) or `[H, W, 4]` (RGBA) of any size. The path of a folder
                stands for all images in it, and an array `[N, H, W, 3]` for N images.
            cam: maps to compute, such as `"gradcam"` or `["gradcam", "layercam"]`; `"all"` for every map of the model; None for none.
            classes: classes to explain, as labels, ids, or -r for the class of rank r; empty for the top-1 class, or for every label that
                is assigned to an image by a model with several labels per image.
            softmax: explain the softmax probability of a class instead of its logit.
            max_channels: number of channels to score in Score-CAM and Faster-Score-CAM. None scores all channels in Score-CAM and ten in
                Faster-Score-CAM.
            image_size: height and width of the input for a model exported with a dynamic size; None for the model's own size.
            on_error: `"raise"` the error if an image cannot be read, or `"skip"` the image with a warning.

        Returns:
            An answer if `images` is a single image; a list of answers for an iterable or a folder.

        Raises:
            NotFoundError: a file, folder or page does not exist.
            ImageError: an image cannot be read or exceeds a limit.
            RequestError: a class, map, size or array does not fit the model.
        """
        skipped: list[Skipped] = []
        sources, is_single = image_sources(images, skipped)
        for line in describe(skipped):
            warnings.warn(line, stacklevel=2)
        options = self._options(cam, classes, softmax, max_channels)
        answers = Answers(self._answers(sources, options, image_size, "raise" if is_single else require_on_error(on_error)))
        return answers[0] if is_single else answers

    def _answers(self, sources: Sequence[ImageSource], options: MapOptions, image_size: int | None, on_error: OnError) -> Iterator[Answer]:
        for outcome in Predictor(self._opened, options, image_size).predict(sources):
            if not isinstance(outcome, Unreadable):
                yield _answer(outcome, self.labels)
            elif on_error == "raise":
                raise outcome.error
            else:
                warnings.warn(f"left out: {printable(str(outcome.error))}", stacklevel=3)

    def _options(self, cam: Cam, classes: Classes, softmax: bool, max_channels: int | None) -> MapOptions:
        methods = require_methods(cam_names(cam), self.cams, f"model {self.name!r}")
        chosen = class_names(classes)
        check_map_arguments(methods, chosen, softmax, max_channels)
        return MapOptions(methods, chosen_targets(chosen, self.description, "classes"), softmax, max_channels)

    def __repr__(self) -> str:
        size = self.description.preprocessing
        return f"Model({self.name!r}, {len(self.labels)} classes, {size.height}x{size.width}, {len(self.cams)} maps, {self.device})"

    def _repr_html_(self) -> str:
        size, provenance = self.description.preprocessing, self.description.provenance
        labels = ", ".join(self.labels[:8]) + (f" and {len(self.labels) - 8:,} more" if len(self.labels) > 8 else "")
        rows = {
            "model": self.name,
            "classes": f"{len(self.labels):,}: {labels}",
            "input": f"{size.height} x {size.width}",
            "maps": ", ".join(self.cams) or "none",
            "backbone": provenance.backbone,
            "precision": self.description.precision,
            **{name: f"{value:.4f}" for name, value in provenance.metrics.items() if name.endswith(("top1", "mean_ap"))},
            "file": str(self.path),
        }
        return html_table(rows)


def load(path: str | Path, device: str = "auto") -> Model:
    """Load an exported model. PyTorch is not required.

    Args:
        path: path of a model's folder (its latest version is loaded), a version's folder, an ONNX file, or a repository with one model.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        NotFoundError: there is no model at the path; the message describes what is there instead.
        ModelFileError: the file is broken or was not exported by this project.
        DeviceError: `cuda` is not available.
    """
    path = Path(path).expanduser()
    try:
        file = find_model_file(path)
    except NotFoundError:
        names = model_names(path) if path.is_dir() else []
        if len(names) != 1:
            raise
        file = find_model_file(path / names[0])
    return Model(onnx_model.Model.open(file, device))


def _answer(prediction: Prediction, labels: tuple[str, ...]) -> Answer:
    image, box = framed(prediction.image, prediction.box)
    if image is prediction.source.origin:  # the caller's own image, which the caller may modify before the overlay is drawn
        image = image.copy()
    return Answer(
        source=prediction.source.name,
        labels=labels,
        scores=prediction.scores,
        logits=prediction.logits,
        explained=[int(class_id) for class_id in prediction.classes],
        maps=prediction.maps,
        assigned=prediction.assigned,
        framed=lambda: (image, box),
    )


def cam_names(cam: Cam) -> tuple[str, ...]:
    """Return the distinct method names in `cam`.

    Raises:
        RequestError: a name is empty.
    """
    values = () if cam is None else (cam,) if isinstance(cam, str) else tuple(cam)
    names = [name.strip() for value in values for name in value.split(",")]
    if not all(names):
        raise RequestError(f"cam {cam!r} contains an empty name: use a name such as 'gradcam', or None for no map")
    return tuple(dict.fromkeys(names))


def class_names(classes: Classes) -> tuple[Class, ...]:
    """Return the classes as a tuple."""
    return (classes,) if isinstance(classes, str | int) else tuple(classes)


def check_map_arguments(methods: Sequence[str], classes: Sequence[Class], softmax: bool, max_channels: int | None) -> None:
    """Check that arguments for maps are only set when a map is requested.

    Raises:
        RequestError: an argument for maps is set, but no map is requested.
    """
    given = [name for name, is_given in (("classes", classes), ("softmax", softmax), ("max_channels", max_channels)) if is_given]
    if given and not methods:
        raise RequestError(f'{" and ".join(given)}: no map is requested: add cam, for example cam="gradcam"')


def require_on_error(text: str) -> OnError:
    """Return `text` as an `OnError` value.

    Raises:
        RequestError: `text` is not a valid value.
    """
    for known in get_args(OnError):
        if text == known:
            policy: OnError = known
            return policy
    raise RequestError(f"on_error {text!r}: expected 'raise' or 'skip'")


def html_table(rows: dict[str, str]) -> str:
    """Return an HTML table of names and values."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>"
