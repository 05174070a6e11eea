"""Exported models in Python: `tlcli.load(path).predict(image)`. Needs ONNX Runtime, and no PyTorch."""

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
from tlcli.contract.model.class_choice import class_targets
from tlcli.contract.model.description import Description
from tlcli.contract.model.repository_layout import find_model_file, model_names
from tlcli.image_source import ImageInput, ImageSource, image_sources
from tlcli.predictor import MapOptions, Prediction, Predictor, Unreadable

Cam = str | Sequence[str] | None
"""Map methods: one name or several, also with commas between them; `all` for every map of the model; None for no map."""
Class = str | int
"""A class: its label, its id, or -r for the class of rank r."""
Classes = Class | Sequence[Class]
OnError = Literal["raise", "skip"]
"""`raise` the error of an image that cannot be read, or `skip` the image with a warning."""


class Model:
    """An exported model, ready to predict. Safe to call from several threads.

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
        """The ONNX file."""
        return self._opened.path

    @property
    def description(self) -> Description:
        """Everything that the file says about itself: labels, preprocessing, maps, provenance."""
        return self._opened.description

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.description.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the classes, in the order of their ids."""
        return self.description.labels

    @property
    def cams(self) -> tuple[str, ...]:
        """Maps that `predict` can compute."""
        return self.description.methods

    @property
    def device(self) -> str:
        """Where it runs: `cpu` or `cuda`."""
        return self._opened.device

    @overload
    def predict(  # type: ignore[overload-overlap]  # a text is an iterable, too
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
        """Classify images, and explain classes with maps.

        Every image is decoded, resized and cropped as `tlcli predict` and the server do: the numbers are the same.

        Args:
            images: one image, or an iterable of images. An image is a path, an `http://` or `https://` URL, encoded bytes, a Pillow
                image, or a uint8 array `[H, W, 3]` (RGB), `[H, W]` (grey) or `[H, W, 4]` (RGBA) of any size. The path of a folder
                stands for all images in it, and an array `[N, H, W, 3]` for N images.
            cam: maps to compute, such as `"gradcam"` or `["gradcam", "layercam"]`; `"all"` for every map of the model; None for none.
            classes: classes to explain: labels, ids, or -r for the class of rank r. Empty: the best class.
            softmax: explain the softmax probability of a class instead of its logit.
            max_channels: channels that Score-CAM and Faster-Score-CAM score; None for all of them, and for ten.
            image_size: height and width of the input, for a model exported with a dynamic size; None for the model's own.
            on_error: `"raise"` the error of an image that cannot be read, or `"skip"` the image with a warning.

        Returns:
            An answer for one image, a list of answers for several and for a folder.

        Raises:
            NotFoundError: no such file, folder or page.
            ImageError: an image that cannot be read, or one over a limit.
            RequestError: a class, a map, a size or an array that does not fit the model.
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
        return MapOptions(methods, class_targets(chosen, self.labels, "classes"), softmax, max_channels)

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
            **{name: f"{value:.4f}" for name, value in provenance.metrics.items() if name.endswith("top1")},
            "file": str(self.path),
        }
        return html_table(rows)


def load(path: str | Path, device: str = "auto") -> Model:
    """Load an exported model. Needs no PyTorch.

    Args:
        path: a model's folder (its latest version), a version's folder, an ONNX file, or a repository that holds one model.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        NotFoundError: no model there; the message says what the path is instead.
        ModelFileError: a broken file, or one that this project did not export.
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
    if image is prediction.source.origin:  # the caller's own, which may be changed before the overlay is drawn
        image = image.copy()
    return Answer(
        source=prediction.source.name,
        labels=labels,
        scores=prediction.scores,
        logits=prediction.logits,
        explained=[int(class_id) for class_id in prediction.classes],
        maps=prediction.maps,
        framed=lambda: (image, box),
    )


def cam_names(cam: Cam) -> tuple[str, ...]:
    """Return the names in `cam`, each once.

    Raises:
        RequestError: an empty name.
    """
    values = () if cam is None else (cam,) if isinstance(cam, str) else tuple(cam)
    names = [name.strip() for value in values for name in value.split(",")]
    if not all(names):
        raise RequestError(f"cam {cam!r}: an empty name: use a name such as 'gradcam', or None for no map")
    return tuple(dict.fromkeys(names))


def class_names(classes: Classes) -> tuple[Class, ...]:
    """Return the classes as a tuple."""
    return (classes,) if isinstance(classes, str | int) else tuple(classes)


def check_map_arguments(methods: Sequence[str], classes: Sequence[Class], softmax: bool, max_channels: int | None) -> None:
    """Refuse arguments that say how a map is computed where no map is requested.

    Raises:
        RequestError: such an argument.
    """
    given = [name for name, is_given in (("classes", classes), ("softmax", softmax), ("max_channels", max_channels)) if is_given]
    if given and not methods:
        raise RequestError(f'{" and ".join(given)}: no map is requested: add cam, for example cam="gradcam"')


def require_on_error(text: str) -> OnError:
    """Return `text` if it is one of `OnError`.

    Raises:
        RequestError: it is not.
    """
    for known in get_args(OnError):
        if text == known:
            policy: OnError = known
            return policy
    raise RequestError(f"on_error {text!r}: expected 'raise' or 'skip'")


def html_table(rows: dict[str, str]) -> str:
    """Return a table of names and values as HTML."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>"
