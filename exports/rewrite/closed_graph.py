"""Last steps of every export: from a flat graph to the file's graph, with branches, loops, defaults and named dimensions.

A flat graph computes all outputs unconditionally, and has the extra inputs and outputs that `target_choice` and `ablation_loop` describe.
PyTorch's exporter writes it (`tlcli.exports.onnx_writer`), or `tlcli.exports.onnx_source` adds it to an existing ONNX file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper

from tlcli.contract.errors import ExportError, first_line
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.maps.method_names import COSTLY
from tlcli.contract.model.description import (
    CLASSES,
    IMAGES,
    LOGITS,
    METADATA_KEY,
    SCORES,
    SOFTMAX,
    TARGETS,
    WANTED,
    Description,
    Layer,
    MapOutput,
    Plain,
)
from tlcli.contract.model.onnx_model import FIRST_RANKED
from tlcli.exports.rewrite.ablation_loop import close_loop
from tlcli.exports.rewrite.conditional_outputs import make_conditional
from tlcli.exports.rewrite.conditional_plan import Switch
from tlcli.exports.rewrite.masking_loop import close_masking_loop
from tlcli.exports.rewrite.openvino_weights import separate_square_weights
from tlcli.exports.rewrite.plain_graph import LinearAblation, make_plain, set_shapes
from tlcli.exports.rewrite.shared_weights import share_weights
from tlcli.exports.rewrite.target_choice import COTANGENTS, close_choice, limit_ranking

OPSET = 20
IR_VERSION = 10
"""IR version of exported files. The onnx package writes a newer version by default, which released versions of ONNX Runtime reject."""

_COMMON_METHOD = "gradcam"
"""The most frequently requested map method."""


@dataclass(frozen=True)
class GraphLayout:
    """Inputs and outputs of a flat graph.

    preprocessing: transform from an image to the graph's input; its size is the size of the input.
    num_classes: number of classes, C.
    layers: explained layers, in the order in which the network computes them; empty for a graph without maps.
    maps: maps that the file offers, including those computed outside the graph.
    switches: outputs that are computed on request: the maps of the graph, then each layer's features and gradients.
    dynamic_size: True if the graph accepts images of any height and width.
    masks_in_loop: True if the graph contains the step of a Recipro-CAM loop.
    """

    preprocessing: Preprocessing
    num_classes: int
    layers: tuple[Layer, ...]
    maps: tuple[MapOutput, ...]
    switches: tuple[str, ...]
    dynamic_size: bool = False
    masks_in_loop: bool = False

    @property
    def looped(self) -> bool:
        """True if the graph contains the step of an Ablation-CAM loop."""
        return any(output.method == "ablationcam" for output in self.maps)


def close_graph(layout: GraphLayout, model: onnx.ModelProto) -> None:
    """Replace the extra inputs and outputs of a flat graph with branches and loops, in place."""
    defaults = {TARGETS: np.array([[FIRST_RANKED]], dtype=np.int64)}
    if layout.layers:
        close_choice(model.graph)
        for number, layer in enumerate(layout.layers if layout.looped else ()):
            close_loop(model.graph, number, layer.features, layer.channels, CLASSES)
        for number, layer in enumerate(layout.layers if layout.masks_in_loop else ()):
            close_masking_loop(model.graph, number, layer.features, CLASSES)
        separate_square_weights(model.graph)
        share_weights(model.graph)
        limit_ranking(model.graph, layout.num_classes)
        make_conditional(model.graph, _switches(layout), {CLASSES: (0, 0)}, [COTANGENTS])
        defaults[SOFTMAX] = np.array([[False]])
    set_shapes(model.graph, _shapes(layout))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in defaults.items())
    model.producer_name = "tlcli"


def close_plain_graph(
    layout: GraphLayout, model: onnx.ModelProto, plain: Plain, maps: Sequence[str], ablations: Sequence[LinearAblation]
) -> None:
    """Turn a flat graph into a plain graph, in place. For the arguments see `tlcli.exports.rewrite.plain_graph.make_plain`."""
    make_plain(model, plain, maps, _shapes(layout, plain), ablations)
    model.producer_name = "tlcli"


def describe(path: Path, description: Description) -> None:
    """Store the description in the metadata of an ONNX file."""
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA_KEY: description.to_json()})
    onnx.save(model, str(path))


def check_graph(path: Path) -> None:
    """Check an ONNX file with `onnx.checker`, including its types and shapes.

    Raises:
        ExportError: the file is invalid.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx.checker rejects the graph ({first_line(error)}): use another backbone") from error


def _switches(layout: GraphLayout) -> list[Switch]:
    """Return the outputs that are computed on request.

    For clients that do not send `wanted`, the features and all maps except the costly ones are computed by default.
    """
    maps = {output.name: output for output in layout.maps}
    shapes: dict[str, tuple[int, ...]] = {layer.features: (0, layer.channels, layer.height, layer.width) for layer in layout.layers}
    shapes |= {layer.gradients: (0, 0, layer.channels, layer.height, layer.width) for layer in layout.layers}
    return [
        Switch(name, (0, 0, maps[name].height, maps[name].width), maps[name].method not in COSTLY, maps[name].method == _COMMON_METHOD)
        if name in maps
        else Switch(name, shapes[name], default=len(shapes[name]) == 4)
        for name in layout.switches
    ]


def _shapes(layout: GraphLayout, plain: Plain | None = None) -> dict[str, list[str | int]]:
    """Return the shapes of the graph's inputs and outputs, with names for dimensions of any size.

    N is the number of images and K the number of explained classes. M, L and S are the numbers of rows of `targets`, `wanted` and
    `softmax`, each either N or 1; a plain graph has N rows of `targets`.
    """
    size, labels = layout.preprocessing, layout.num_classes
    n: str | int = "N"
    k: str | int = "K"
    if plain is not None:
        n, k = plain.batch or n, 1 if plain.classes == "top" else plain.explained or k

    def extent(height: int, width: int, where: str) -> list[str | int]:
        return [f"{where}_h", f"{where}_w"] if layout.dynamic_size else [height, width]

    shapes: dict[str, list[str | int]] = {
        IMAGES: [n, *(["H", "W"] if layout.dynamic_size else [size.height, size.width]), 3],
        TARGETS: ["M" if plain is None else n, k],
        WANTED: ["L", len(layout.switches)],
        SOFTMAX: ["S", 1],
        SCORES: [n, labels],
        LOGITS: [n, labels],
        CLASSES: [n, k],
        **{output.name: [n, k, *extent(output.height, output.width, output.layer)] for output in layout.maps},
    }
    for layer in layout.layers:
        shapes[layer.features] = [n, layer.channels, *extent(layer.height, layer.width, layer.name)]
        shapes[layer.gradients] = [n, k, *shapes[layer.features][1:]]
    return shapes
