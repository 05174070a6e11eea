"""Loop of Ablation-CAM, which computes the scores without each channel of a layer."""

from __future__ import annotations

from onnx import GraphProto

from tlcli.exports.rewrite.pair_loop import PAIRS_PER_STEP, PairLoop, close_pair_loop

CHANNELS_PER_STEP = PAIRS_PER_STEP
"""Number of channels per step, and thus the number of copies of a layer's activations in memory at a time."""


def due_input(layer: int) -> str:
    """Return the name of the extra input, int64 `[CHANNELS_PER_STEP]`, which holds each pair as `image * c + channel`."""
    return f"ablation/{layer}/due"


def step_output(layer: int) -> str:
    """Return the name of the step's output, float32 `[CHANNELS_PER_STEP, K]`, which holds the scores without these channels."""
    return f"ablation/{layer}/step"


def ablated_input(layer: int) -> str:
    """Return the name of the input that the loop's result replaces, float32 `[N, c, K]`, which holds the scores of all steps."""
    return f"ablation/{layer}/ablated"


def close_loop(graph: GraphProto, layer: int, features: str, channels: int, classes: str) -> None:
    """Turn the step into a loop over all channels of all images, and replace the input `ablated_input` with the loop's result.

    Args:
        graph: graph that contains one step as ordinary nodes; modified in place.
        layer: index of the layer.
        features: name of the output with the layer's activations, `[N, c, h, w]`.
        channels: number of channels, c.
        classes: name of the output with the explained classes, `[N, K]`.
    """
    loop = PairLoop(f"ablation/{layer}", due_input(layer), step_output(layer), ablated_input(layer))
    close_pair_loop(graph, loop, features, channels, classes)
