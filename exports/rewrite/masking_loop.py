"""Loop of Recipro-CAM, which computes the scores with a layer's activations masked around each position."""

from __future__ import annotations

from onnx import GraphProto

from tlcli.exports.rewrite.pair_loop import PairLoop, close_pair_loop


def masking_loop(layer: int) -> PairLoop:
    """Return the names of the step for a layer. Its pairs are `image * h * w + row * w + column`."""
    place = f"masking/{layer}"
    return PairLoop(place, f"{place}/due", f"{place}/step", f"{place}/masked")


def close_masking_loop(graph: GraphProto, layer: int, features: str, classes: str) -> None:
    """Turn the step into a loop over all positions of all images, and replace the extra input with the loop's result.

    Args:
        graph: graph that contains one step as ordinary nodes; modified in place.
        layer: index of the layer.
        features: name of the output with the layer's activations, `[N, c, h, w]`.
        classes: name of the output with the explained classes, `[N, K]`.
    """
    close_pair_loop(graph, masking_loop(layer), features, (2, 3), classes)
