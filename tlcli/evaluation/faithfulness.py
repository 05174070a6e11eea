"""Faithfulness metrics: remove or restore the pixels that a map marks, and measure how the class's probability changes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from tlcli.evaluation.perturbation import Bytes, Floats, Indices, Score, Values, pixel_counts, replace_pixels, round_to_bytes

BLUR = 0.05
"""Standard deviation of insertion's blur, relative to the input's shorter side: 11 pixels of 224."""


def deletion(image: Bytes, order: Indices, score: Score, steps: int, colour: Bytes) -> Floats:
    """Compute the deletion curve: the class's probability as the most important pixels are painted over.

    Petsiuk et al. 2018, RISE, arXiv:1806.07421.

    Args:
        image: the input, `[H, W, 3]`.
        order: its pixels, the most important first, `[H * W]`.
        score: function that runs the model.
        steps: number of equal shares of the pixels.
        colour: the colour to paint with, `[3]`.

    Returns:
        `[steps + 1]`: the unchanged image, one more share painted over at each step, and finally all of it.
    """
    return score(replace_pixels(image, order[:count], colour) for count in pixel_counts(len(order), steps))


def insertion(image: Bytes, order: Indices, score: Score, steps: int, blurred_image: Bytes) -> Floats:
    """Compute the insertion curve: the class's probability as the most important pixels are inserted into the blurred image.

    From the same paper as `deletion`.

    Returns:
        `[steps + 1]`: the blurred image, one more share of the original at each step, and finally all of it.
    """
    return score(replace_pixels(blurred_image, order[:count], image) for count in pixel_counts(len(order), steps))


def blur(image: Bytes) -> Bytes:
    """Blur an image for the start of insertion, with Pillow's Gaussian blur of standard deviation `BLUR` times the shorter side."""
    radius = BLUR * min(image.shape[:2])
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def area(curve: Floats) -> float:
    """Return the area under a curve over equal steps from 0 to 1, by the trapezoid rule.

    Small values are good for deletion, large values for insertion.
    """
    return float((curve[:-1] + curve[1:]).mean() / 2)


def apply_map(image: Bytes, unit: Values, colour: Bytes) -> Bytes:
    """Multiply an image by its map (Chattopadhay et al. 2018, Grad-CAM++, arXiv:1710.11063, section 5.1).

    The product is taken of the normalised input, in which 0 is the mean colour, so pixels where the map is 0 get that colour.

    Args:
        image: the input, `[H, W, 3]`.
        unit: the map in [0, 1], `[H, W]`.
        colour: the mean of the preprocessing, `[3]`.
    """
    mean = colour.astype(np.float64)
    return round_to_bytes(mean + unit[..., None] * (image - mean))


def drop(before: float, after: float) -> float:
    """Return the relative loss of confidence on the image times its map: max(0, before - after) / before.

    The mean over images is Grad-CAM++'s "average drop", there in per cent; small is good. For a probability of 0 the drop is 0.
    """
    return max(0.0, before - after) / before if before > 0 else 0.0


def increase(before: float, after: float) -> float:
    """Return 1 if the confidence is larger on the image times its map, else 0.

    The mean over images is Grad-CAM++'s "increase in confidence".
    """
    return float(after > before)
