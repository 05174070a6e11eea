"""Maps of several layers as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tlcli.contract.images.heatmap import enlarge, to_unit


def fuse(maps: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """The layers' maps, each scaled to [0, 1] and enlarged to the largest of them; of their values the largest at every position.

    Args:
        maps: a layer each, float32 `[N, K, h, w]`.

    Returns:
        float32 `[N, K, H, W]`, in [0, 1]. A map that is constant counts as zeros.
    """
    height = max(one.shape[2] for one in maps)
    width = max(one.shape[3] for one in maps)
    enlarged = [[[enlarge(one, width, height) for one in of_classes] for of_classes in to_unit(of_layer)] for of_layer in maps]
    return np.max(np.asarray(enlarged, dtype=np.float32), axis=0)  # type: ignore[no-any-return]
