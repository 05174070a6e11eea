"""Does the class depend on what the map points at? Pixels are taken away or given back, and the model is asked again."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from tlcli.evaluation.perturbation import Bytes, Floats, Indices, Score, Values, counts, replaced, rounded

BLUR = 0.05
"""The standard deviation of insertion's blur, in sides of the input: 11 pixels of 224."""


def deletion(image: Bytes, order: Indices, score: Score, steps: int, colour: Bytes) -> Floats:
    """The class's probability while the most important pixels are painted over (Petsiuk et al. 2018, RISE, arXiv:1806.07421).

    Args:
        image: the input, `[H, W, 3]`.
        order: its pixels, the most important first, `[H * W]`.
        score: asks the model.
        steps: equal shares of the pixels.
        colour: what is painted, `[3]`.

    Returns:
        `[steps + 1]`: with nothing, then a share more each time, at last everything painted over.
    """
    return score(replaced(image, order[:count], colour) for count in counts(len(order), steps))


def insertion(image: Bytes, order: Indices, score: Score, steps: int, blurred_image: Bytes) -> Floats:
    """The class's probability while the most important pixels are put into the blurred image (RISE, as `deletion`).

    Returns:
        `[steps + 1]`: the blurred image, then a share more of the real one each time, at last all of it.
    """
    return score(replaced(blurred_image, order[:count], image) for count in counts(len(order), steps))


def blurred(image: Bytes) -> Bytes:
    """What insertion begins with: Pillow's Gaussian blur, its standard deviation `BLUR` of the shorter side."""
    radius = BLUR * min(image.shape[:2])
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def area(curve: Floats) -> float:
    """Under a curve over equal steps from 0 to 1, by the trapezoid rule: small is good for deletion, large for insertion."""
    return float((curve[:-1] + curve[1:]).mean() / 2)


def explained(image: Bytes, unit: Values, colour: Bytes) -> Bytes:
    """The image times its map (Chattopadhay et al. 2018, Grad-CAM++, arXiv:1710.11063, section 5.1).

    The product is that of the normalised input, in which 0 is the mean colour: where the map is 0, that colour is left.

    Args:
        image: the input, `[H, W, 3]`.
        unit: the map in [0, 1], `[H, W]`.
        colour: the mean of the preprocessing, `[3]`.
    """
    mean = colour.astype(np.float64)
    return rounded(mean + unit[..., None] * (image - mean))


def drop(before: float, after: float) -> float:
    """The share of the confidence that is lost where only what the map shows is left: max(0, before - after) / before.

    Its mean over images is Grad-CAM++'s "average drop", there in per cent; small is good. A class without any
    probability has none to lose: 0.
    """
    return max(0.0, before - after) / before if before > 0 else 0.0


def increase(before: float, after: float) -> float:
    """1 if the confidence grows where only what the map shows is left, else 0; the mean is Grad-CAM++'s "increase in confidence"."""
    return float(after > before)
