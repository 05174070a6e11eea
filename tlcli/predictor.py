"""Local prediction without a server, used by `tlcli predict` and `tlcli.load`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.errors import ImageError, NotFoundError, RequestError
from tlcli.contract.images.preprocessing import Box, Preprocessing
from tlcli.contract.model.description import Description
from tlcli.contract.model.explain import BATCH_SIZE, channels_to_score, explain
from tlcli.contract.model.explain_labels import explain_labels, keep_assigned
from tlcli.contract.model.onnx_model import FIRST_RANKED, Answer, Model
from tlcli.image_source import ImageSource

_BATCH = 8
"""Batch size at the model's own input size. Larger inputs use smaller batches."""

Floats = npt.NDArray[np.float32]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class MapOptions:
    """Options that select the maps to compute.

    methods: names of the model's maps; empty for scores only.
    targets: ids of the classes to explain; -r is the class of rank r. Empty explains each label that the model assigns to an image, for a
        model with several labels per image.
    softmax: explain the softmax probability of the class instead of its logit.
    max_channels: number of channels to score in Score-CAM and Faster-Score-CAM. None scores all channels in Score-CAM and ten in
        Faster-Score-CAM.
    """

    methods: tuple[str, ...] = ()
    targets: tuple[int, ...] = (FIRST_RANKED,)
    softmax: bool = False
    max_channels: int | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """Scores and maps of one image.

    image: decoded upright RGB image.
    box: region of the image that the network saw, as left, top, right, bottom in its pixels.
    scores, logits: scores and logits by class id, float32 `[C]`.
    classes: ids of the explained classes, int64 `[K]`; empty without maps.
    assigned: ids of the labels that the image has, best first, for a model with several labels per image.
    maps: unnormalised maps by method, each float32 `[K, h, w]`.
    """

    source: ImageSource
    image: Image.Image
    box: Box
    scores: Floats
    logits: Floats
    classes: npt.NDArray[np.int64]
    assigned: tuple[int, ...] = ()
    maps: dict[str, Floats] = field(default_factory=dict)

    def without_image(self) -> Prediction:
        """Return a copy without the image, to save memory: a photograph takes more memory than its scores and maps."""
        return replace(self, image=Image.new("RGB", (1, 1)))

    def ranking(self) -> list[int]:
        """Return the class ids, best first. Ties are ordered by id."""
        return [int(class_id) for class_id in np.argsort(-self.logits, kind="stable")]


@dataclass(frozen=True)
class Unreadable:
    """Outcome for an image that could not be read or decoded."""

    source: ImageSource
    error: ImageError | NotFoundError


class Predictor:
    """Predictor that runs a model with fixed map options and input size.

    channels: number of channels per image that the requested Score-CAMs score; 0 without Score-CAMs.
    steps: progress steps per image.
    """

    def __init__(self, model: Model, options: MapOptions = MapOptions(), image_size: int | None = None, where: str = "image_size") -> None:
        """Create a predictor and check the input size.

        Args:
            model: an opened model.
            options: maps to compute.
            image_size: height and width of the input for a model with dynamic input size; None for the model's own size.
            where: name of the flag or argument that holds the size, shown in messages.

        Raises:
            RequestError: the model does not accept this image size.
        """
        self._model = model
        self._options = options
        own = model.description.preprocessing
        self.preprocessing = input_of_size(model.description, image_size, where)
        share = min(1.0, own.height * own.width / (self.preprocessing.height * self.preprocessing.width))
        self._batch, self._masked_batch = (max(1, int(size * share)) for size in (_BATCH, BATCH_SIZE))
        self.channels = channels_to_score(model.description, options.methods, options.max_channels)
        self.steps = max(1, self.channels)

    def predict(self, sources: Sequence[ImageSource], advance: Advance = lambda steps: None) -> Iterator[Prediction | Unreadable]:
        """Predict images in batches. Images are read as the iterator advances.

        Args:
            sources: images to predict.
            advance: called with the number of progress steps completed since the last call, for a total of `steps` per image.

        Yields:
            For each image in the order of `sources`, its prediction, or the reason why it could not be read.

        Raises:
            RequestError: the model lacks a class or map, or `max_channels` is set but no map uses it.
        """
        for start in range(0, len(sources), self._batch):
            outcomes: list[tuple[ImageSource, Image.Image] | Unreadable] = []
            for source in sources[start : start + self._batch]:
                try:
                    outcomes.append((source, source.read()))
                except (ImageError, NotFoundError) as error:
                    outcomes.append(Unreadable(source, error))
                    advance(self.steps)
            predictions = self._run([outcome for outcome in outcomes if not isinstance(outcome, Unreadable)], advance)
            for outcome in outcomes:
                yield outcome if isinstance(outcome, Unreadable) else next(predictions)

    def _run(self, batch: list[tuple[ImageSource, Image.Image]], advance: Advance) -> Iterator[Prediction]:
        if not batch:
            return
        options = self._options
        images = np.stack([self.preprocessing.apply(image) for _, image in batch])
        how: dict[str, Any] = {
            "softmax": options.softmax,
            "max_channels": options.max_channels,
            "batch_size": self._masked_batch,
            "advance": advance if self.channels else None,
        }
        if options.targets:
            answer = explain(self._model, images, options.targets, options.methods, **how)
        else:
            answer = explain_labels(self._model, images, options.methods, **how)
        if not self.channels:
            advance(len(batch))
        for row, (source, image) in enumerate(batch):
            classes, maps = self._explained(answer, row)
            yield Prediction(
                source=source,
                image=image,
                box=self.preprocessing.visible_box(*image.size),
                scores=answer.scores[row],
                logits=answer.logits[row],
                classes=classes,
                assigned=tuple(self._model.description.assigned(answer.scores[row])),
                maps=maps,
            )

    def _explained(self, answer: Answer, row: int) -> tuple[npt.NDArray[np.int64], dict[str, Floats]]:
        """Return the ids of the explained classes of an image and their maps."""
        if answer.classes is None:
            return np.empty(0, np.int64), {}
        if not self._options.targets:
            return keep_assigned(self._model, answer, row)
        return answer.classes[row], {method: values[row] for method, values in answer.maps.items()}


def input_of_size(description: Description, image_size: int | None, where: str) -> Preprocessing:
    """Return the model's preprocessing, adapted to a square input of the given size.

    Args:
        description: description of the model.
        image_size: height and width of the input in pixels; None for the model's own size.
        where: name of the flag or argument that holds the size, shown in messages.

    Raises:
        RequestError: the model does not accept this image size.
    """
    own = description.preprocessing
    if image_size is None or (own.height, own.width) == (image_size, image_size):
        return own
    if not description.dynamic_size:
        raise RequestError(
            f"{where} {image_size}: model {description.name!r} takes images of {own.width} x {own.height} only (width x height)"
        )
    return own.model_copy(update={"height": image_size, "width": image_size})
