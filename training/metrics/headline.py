"""Headline metric of a run: macro recall leads where a class has many times the images of another, and top-1 elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

LOPSIDED = 3
"""Classes are lopsided if the largest has more than this multiple of the images of the smallest in the training part.

At 3 to 1, a network of two classes that always answers with the larger one has a top-1 of 75 % and a macro recall of 50 %.
"""


def why_macro_recall(counts: Mapping[str, int]) -> str | None:
    """Return why macro recall is the headline metric, as a clause after "because"; None if top-1 is.

    Args:
        counts: number of training images by class. Classes without images are ignored.
    """
    present = {name: count for name, count in counts.items() if count}
    if not present:
        return None
    largest, smallest = max(present, key=lambda name: present[name]), min(present, key=lambda name: present[name])
    if present[largest] <= LOPSIDED * present[smallest]:
        return None
    images = f"{present[largest]:,} images of {largest} and {present[smallest]:,} of {smallest}"
    return f"it weighs every class equally, and the training part has {images}"
