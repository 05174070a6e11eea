"""Answers with the scores and maps of one image. In-process and remote predictions return the same type."""

from __future__ import annotations

import base64
import functools
import html
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from tlcli.contract.errors import RequestError
from tlcli.contract.images import heatmap
from tlcli.contract.images.preprocessing import Box
from tlcli.contract.model.class_choice import class_targets

Floats = npt.NDArray[np.float32]

_THUMBNAIL = 224
"""Longer side of a thumbnail in a notebook, in pixels."""
_SHOWN = 50
"""Maximum number of answers that a notebook shows for a list."""


class ClassScore(NamedTuple):
    """Label, score and id of one class in an answer.

    score: probability of the class: a softmax, or a sigmoid with several labels per image.
    """

    label: str
    score: float
    class_id: int


class Answer:
    """Scores of one image and the requested maps. Notebooks display the image, its overlay and the best classes.

    source: path or URL of the image; empty for an image in memory.
    labels: labels of all classes in class-id order.
    scores: probabilities by class id, float32 `[C]`.
    logits: logits by class id, float32 `[C]`.
    explained: ids of the K explained classes; empty without maps.
    maps: unnormalised maps by method, each float32 `[K, h, w]` in the order of `explained`.
    box: region of the image that the maps cover, as left, top, right, bottom in pixels of `image`.
    """

    def __init__(
        self,
        source: str,
        labels: Sequence[str],
        scores: Floats,
        logits: Floats,
        explained: Sequence[int],
        maps: Mapping[str, Floats],
        framed: Callable[[], tuple[Image.Image, Box]],
        assigned: Sequence[int] = (),
    ) -> None:
        """Create an answer. The image is loaded on first use.

        Args:
            source, labels, scores, logits, explained, maps: see the class.
            assigned: ids of the labels that the image has, best first, for a model with several labels per image.
            framed: returns the image, scaled to at most `heatmap.MAX_SIDE` pixels on its longer side, and the box in its pixels.
        """
        self.source = source
        self.labels = tuple(labels)
        self.scores = scores
        self.logits = logits
        self.explained = tuple(explained)
        self.maps = dict(maps)
        self._framed = framed
        self._assigned = tuple(assigned)
        self._order = [int(class_id) for class_id in np.argsort(-logits, kind="stable")]

    @property
    def class_id(self) -> int:
        """Id of the top-1 class."""
        return self._order[0]

    @property
    def label(self) -> str:
        """Label of the top-1 class."""
        return self.labels[self.class_id]

    @property
    def score(self) -> float:
        """Probability of the top-1 class, in [0, 1]."""
        return float(self.scores[self.class_id])

    @property
    def assigned(self) -> tuple[ClassScore, ...]:
        """Labels that the image has, best first: those whose score reaches their threshold. Empty with one label per image."""
        return tuple(ClassScore(self.labels[class_id], float(self.scores[class_id]), class_id) for class_id in self._assigned)

    def top(self, n: int = 5) -> tuple[ClassScore, ...]:
        """Return the `n` best classes, best first. If there are fewer classes, return all of them.

        Raises:
            RequestError: `n` is below 1.
        """
        if n < 1:
            raise RequestError(f"top({n}): expected 1 or more")
        return tuple(ClassScore(self.labels[class_id], float(self.scores[class_id]), class_id) for class_id in self._order[:n])

    @property
    def map(self) -> Floats:
        """Unnormalised map of the first requested method and class, float32 `[h, w]`.

        Raises:
            RequestError: no map was requested.
        """
        return self._values(None, None)

    @functools.cached_property
    def overlay(self) -> Image.Image:
        """RGB image with the first map drawn over it, at most 1024 pixels on the longer side.

        Raises:
            RequestError: no map was requested.
        """
        return self.draw()

    def draw(self, cam: str | None = None, cls: str | int | None = None) -> Image.Image:
        """Draw a map over the image.

        Args:
            cam: one of the requested methods; None for the first.
            cls: label, id or rank of an explained class; None for the first.

        Returns:
            An RGB image with at most 1024 pixels on the longer side.

        Raises:
            RequestError: the map or class was not requested, or the class does not exist.
        """
        values = self._values(cam, cls)
        image, box = self._frame
        return heatmap.overlay(image, values, box)

    @property
    def image(self) -> Image.Image:
        """Upright RGB image, scaled to at most 1024 pixels on the longer side."""
        return self._frame[0]

    @property
    def box(self) -> Box:
        """Region of `image` that the maps cover, as left, top, right, bottom in its pixels."""
        return self._frame[1]

    @functools.cached_property
    def _frame(self) -> tuple[Image.Image, Box]:
        return self._framed()

    def _values(self, cam: str | None, cls: str | int | None) -> Floats:
        if not self.maps:
            raise RequestError('no map was requested: use predict(image, cam="gradcam")')
        method = next(iter(self.maps)) if cam is None else cam
        if method not in self.maps:
            raise RequestError(f"cam {method!r} was not requested: choose from {', '.join(self.maps)}")
        if cls is None:
            if not self.explained:
                raise RequestError("no label was assigned, so there is no map: name a class to explain, for example classes=-1")
            return self._one_map(method, 0)
        (target,) = class_targets([cls], self.labels, "cls")
        class_id = target if target >= 0 else self._order[-target - 1]
        if class_id not in self.explained:
            raise RequestError(
                f"cls {cls!r} was not explained: choose from {', '.join(self.labels[explained] for explained in self.explained)}"
            )
        return self._one_map(method, self.explained.index(class_id))

    def _one_map(self, method: str, index: int) -> Floats:
        values: Floats = self.maps[method][index]
        return values

    def __repr__(self) -> str:
        maps = f", cam={'+'.join(self.maps)}" if self.maps else ""
        return f"Answer({self.label!r}, {self.score:.4f}{maps})"

    def _repr_png_(self) -> bytes:
        """Return the overlay as a PNG for notebooks, or the image if there are no maps."""
        return heatmap.encode(self.overlay if self.explained else self.image)

    def _repr_html_(self) -> str:
        """Return HTML for notebooks with the image, its overlay and the best classes."""
        shown = [self.image, *([self.overlay] if self.explained else [])]
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(label)}</td><td>{score:.4f}</td></tr>" for label, score, _ in self.top(5)
        )
        caption = f"<div>{html.escape(self.source)}</div>" if self.source else ""
        method = (
            f"<div>{html.escape(next(iter(self.maps)))} of {html.escape(self.labels[self.explained[0]])}</div>" if self.explained else ""
        )
        return (
            "<div style='display:flex;gap:12px;align-items:flex-start'>"
            + "".join(map(thumbnail, shown))
            + f"<div>{caption}{method}<table>{rows}</table></div></div>"
        )

    def figure(self) -> str:
        """Return an HTML figure of the overlay, or of the image if there are no maps, with its label and score."""
        return (
            f"<figure style='margin:0'>{thumbnail(self.overlay if self.explained else self.image)}"
            f"<figcaption>{html.escape(self.label)} {self.score:.4f}</figcaption></figure>"
        )


class Answers(list[Answer]):
    """List of answers for several images. Notebooks display the first fifty as a gallery."""

    def _repr_html_(self) -> str:
        more = f"<p>and {len(self) - _SHOWN:,} more</p>" if len(self) > _SHOWN else ""
        figures = "".join(answer.figure() for answer in self[:_SHOWN])
        return f"<div style='display:flex;flex-wrap:wrap;gap:12px'>{figures}</div>{more}"


def thumbnail(image: Image.Image, max_side: int = _THUMBNAIL) -> str:
    """Return an HTML `img` element of the image, scaled down to at most `max_side` pixels on its longer side."""
    small, _ = heatmap.shrink(image, max_side)
    return f"<img src='data:image/png;base64,{base64.b64encode(heatmap.encode(small)).decode()}' width='{small.width}'>"


def framed(image: Image.Image, box: Box) -> tuple[Image.Image, Box]:
    """Scale an image and a box for an overlay.

    Return the image with at most `heatmap.MAX_SIDE` pixels on its longer side, and the box in its pixels.
    """
    small, scale = heatmap.shrink(image)
    left, top, right, bottom = box
    return small, (left * scale, top * scale, right * scale, bottom * scale)
