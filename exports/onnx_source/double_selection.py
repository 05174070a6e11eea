"""Operators of `double_tail` that select elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnx.reference.op_run import OpRun


class GatherElements(OpRun):
    """Selection of elements along an axis. The evaluator's own fails for most shapes of the indices."""

    op_domain = ""

    def _run(self, x: npt.NDArray[Any], indices: npt.NDArray[Any], axis: int | None = None) -> tuple[npt.NDArray[Any]]:
        places = list(np.ogrid[tuple(slice(size) for size in indices.shape)])
        places[(axis or 0) % x.ndim] = indices
        return (x[tuple(places)],)
