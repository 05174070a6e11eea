"""Faithfulness metrics, which remove or restore the pixels that a map marks and measure how the class's probability changes."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from tlcli.evaluation.perturbation import Bytes, Floats, Indices, Score, Values, pixel_counts, replace_pixels, round_to_bytes

BLUR = 0.05
"""Standard deviation of the blur for insertion, relative to the input's shorter side. It is 11 pixels for an input of 224."""


def deletion(image: Bytes, order: Indices, score: Score, steps: int, colour: Bytes) -> Floats:
    """Compute the deletion curve: the class's probability as the most important pixels are painted over.

    See Petsiuk et al. 2018, RISE, arXiv:1806.07421.

    Args:
        image: input image, `[H, W, 3]`.
        order: flat pixel indices, most important first, `[H * W]`.
        score: function that runs the model.
        steps: number of equal fractions of the pixels.
        colour: colour to paint with, `[3]`.

    Returns:
        Probabilities `[steps + 1]`. The first entry is for the unchanged image, each further entry has one more fraction painted over, and
        the last has all pixels painted over.
    """
    return score(replace_pixels(image, order[:count], colour) for count in pixel_counts(len(order), steps))


def insertion(image: Bytes, order: Indices, score: Score, steps: int, blurred_image: Bytes) -> Floats:
    """Compute the insertion curve: the class's probability as the most important pixels are inserted into the blurred image.

    The metric is from the same paper as `deletion`.

    Returns:
        Probabilities `[steps + 1]`. The first entry is for the blurred image, each further entry has one more fraction of the original
        pixels, and the last is for the original image.
    """
    return score(replace_pixels(blurred_image, order[:count], image) for count in pixel_counts(len(order), steps))


def blur(image: Bytes) -> Bytes:
    """Blur an image as the starting point for insertion.

    The blur is Pillow's Gaussian blur with a standard deviation of `BLUR` times the shorter side.
    """
    radius = BLUR * min(image.shape[:2])
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def area(curve: Floats) -> float:
    """Return the area under a curve over equal steps from 0 to 1, computed with the trapezoidal rule.

    Lower is better for deletion, and higher is better for insertion.
    """
    return float((curve[:-1] + curve[1:]).mean() / 2)


def apply_map(image: Bytes, unit: Values, colour: Bytes) -> Bytes:
    """Multiply an image by its map (Chattopadhay et al. 2018, Grad-CAM++, arXiv:1710.11063, section 5.1).

    The multiplication is applied to the normalised input, where 0 is the mean colour. Pixels where the map is 0 therefore get that colour.

    Args:
        image: input image, `[H, W, 3]`.
        unit: map with values in [0, 1], `[H, W]`.
        colour: mean colour of the preprocessing, `[3]`.
    """
    mean = colour.astype(np.float64)
    return round_to_bytes(mean + unit[..., None] * (image - mean))


def drop(before: float, after: float) -> float:
    """Return the relative drop in confidence on the image multiplied by its map: max(0, before - after) / before.

    The mean over images is Grad-CAM++'s "average drop", given in per cent in the paper. Lower is better. If `before` is 0, the drop is 0.
    """
    return max(0.0, before - after) / before if before > 0 else 0.0


def increase(before: float, after: float) -> float:
    """Return 1 if the confidence is higher on the image multiplied by its map, and 0 otherwise.

    The mean over images is Grad-CAM++'s "increase in confidence".
    """
    return float(after > before)
