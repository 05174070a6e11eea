"""Writer of an explainer's ONNX file, with named dimensions, defaults for optional inputs, and an embedded description."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import torch

from tlcli.contract.errors import ExportError, first_line
from tlcli.contract.files.atomic_file import named_errors
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
    MapOutput,
    Plain,
)
from tlcli.contract.model.onnx_model import FIRST_RANKED
from tlcli.contract.process.quiet import quiet
from tlcli.exports.rewrite.ablation_loop import CHANNELS_PER_STEP, ablated_input, close_loop, due_input
from tlcli.exports.rewrite.conditional_outputs import make_conditional
from tlcli.exports.rewrite.conditional_plan import Switch
from tlcli.exports.rewrite.openvino_weights import separate_square_weights
from tlcli.exports.rewrite.plain_graph import LinearAblation, make_plain, set_shapes
from tlcli.exports.rewrite.shared_weights import share_weights
from tlcli.exports.rewrite.symbolic_sizes import take_sizes_from
from tlcli.exports.rewrite.target_choice import COTANGENTS, close_choice, limit_ranking
from tlcli.exports.trace.explainer import Explainer, is_pooled_linear
from tlcli.exports.trace.map_methods import NEEDS_ABLATION
from tlcli.training.models.target_layers import resolve_layers

OPSET = 20
IR_VERSION = 10
"""IR version of exported files. The onnx package writes a newer version by default, which released versions of ONNX Runtime reject."""

_MAX_PROTOBUF_BYTES = 2**31 - 1

_COMMON_METHOD = "gradcam"
"""The most frequently requested map method."""


def write_graph(explainer: Explainer, path: Path, flat: onnx.ModelProto | None = None, plain: Plain | None = None) -> None:
    """Write the graph to a file, without the description.

    Args:
        explainer: network with its maps.
        path: path of the file to write.
        flat: result of `flat_graph` for this explainer, to reuse it; it is not modified. None exports it anew.
        plain: form of a plain graph; None writes the graph with optional inputs.

    Raises:
        ExportError: see `flat_graph` and `tlcli.exports.rewrite.plain_graph.make_plain`.
    """
    if flat is None:
        model = flat_graph(explainer)
    else:
        model = onnx.ModelProto()
        model.CopyFrom(flat)
    if plain is None:
        close_graph(explainer, model)
    else:
        close_plain_graph(explainer, model, plain)
    onnx.save(model, str(path))


def flat_graph(explainer: Explainer) -> onnx.ModelProto:
    """Export the explainer with PyTorch's exporter.

    The result is a flat graph: it has no branches yet, and still has the extra inputs and outputs that `close_graph` removes.

    Raises:
        ExportError: PyTorch's exporter does not support an operator of the network, or the file would exceed 2 GiB.
    """
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in explainer.network.parameters())
    if parameters >= _MAX_PROTOBUF_BYTES:
        raise ExportError(
            f"the network has {parameters:,} bytes of weights; one ONNX file holds at most {_MAX_PROTOBUF_BYTES:,}: use a smaller backbone"
        )
    with tempfile.TemporaryDirectory() as folder, named_errors(Path(folder)):
        path = Path(folder) / "flat.onnx"
        _write_flat(explainer, path)
        model = onnx.load(str(path))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
        # These fields hold source paths of this machine for each node: private, and a megabyte of each session's memory.
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    if explainer.layers:
        take_sizes_from(model.graph, COTANGENTS, {0: (IMAGES, 0), 1: (TARGETS, 1)})
        for number in range(len(explainer.layers)):
            take_sizes_from(model.graph, ablated_input(number), {0: (IMAGES, 0), 2: (TARGETS, 1)})
    return model


def close_graph(explainer: Explainer, model: onnx.ModelProto) -> None:
    """Replace the extra inputs and outputs of a flat graph with branches and loops, in place."""
    defaults = {TARGETS: np.array([[FIRST_RANKED]], dtype=np.int64)}
    if explainer.layers:
        close_choice(model.graph)
        for number, layer in enumerate(explainer.layers if explainer.looped else ()):
            close_loop(model.graph, number, layer.features, layer.channels, CLASSES)
        separate_square_weights(model.graph)
        share_weights(model.graph)
        limit_ranking(model.graph, explainer.network.config.num_classes)
        make_conditional(model.graph, _switches(explainer), {CLASSES: (0, 0)}, [COTANGENTS])
        defaults[SOFTMAX] = np.array([[False]])
    set_shapes(model.graph, _shapes(explainer))
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in defaults.items())
    model.producer_name = "tlcli"


def close_plain_graph(explainer: Explainer, model: onnx.ModelProto, plain: Plain) -> None:
    """Turn a flat graph into a plain graph, in place."""
    maps = [output.name for output in plain_maps(explainer)]
    ablations = [LinearAblation(0, explainer.layers[0].features)] if has_linear_ablation(explainer) else []
    make_plain(model, plain, maps, _shapes(explainer, plain), ablations)
    model.producer_name = "tlcli"


def plain_maps(explainer: Explainer) -> tuple[MapOutput, ...]:
    """Return the maps of the explainer that a plain graph computes: those in the graph that need no loop."""
    loops = frozenset() if has_linear_ablation(explainer) else NEEDS_ABLATION
    return tuple(output for output in explainer.maps if output.in_graph and output.method not in loops)


def has_linear_ablation(explainer: Explainer) -> bool:
    """Return True if the explainer computes Ablation-CAM, and has a closed form for it."""
    if not explainer.looped or len(explainer.layers) != 1:
        return False
    return is_pooled_linear(explainer.network, *resolve_layers(explainer.network, [explainer.layers[0].name]))


def _write_flat(explainer: Explainer, path: Path) -> None:
    size = explainer.network.config.preprocessing
    dynamic, auto = torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO
    sizes = {0: auto, 1: dynamic, 2: dynamic} if explainer.dynamic_size else {0: auto}
    inputs: dict[str, tuple[Any, Any]] = {  # an example and the dynamic dimensions of each input
        IMAGES: (torch.zeros(3, size.height, size.width, 3, dtype=torch.uint8), sizes),
        TARGETS: (torch.tensor([[FIRST_RANKED, 0], [0, FIRST_RANKED]]), {0: dynamic, 1: auto}),
    }
    names = list(inputs)
    if explainer.layers:
        looped = explainer.layers if explainer.looped else ()
        inputs |= {
            SOFTMAX: (torch.zeros(2, 1, dtype=torch.bool), {0: dynamic}),
            COTANGENTS: (torch.zeros(3, 2, explainer.last_layer.width), {0: auto, 1: auto}),
            "due": ([torch.arange(CHANNELS_PER_STEP) for _ in looped], [None for _ in looped]),
            "ablated": ([torch.zeros(3, layer.channels, 2) for layer in looped], [{0: auto, 2: auto} for _ in looped]),
        }
        names += [SOFTMAX, COTANGENTS, *map(due_input, range(len(looped))), *map(ablated_input, range(len(looped)))]
    try:
        with quiet("torch.onnx"):
            program = torch.onnx.export(
                explainer,
                tuple(example for example, _ in inputs.values()),
                dynamo=True,
                input_names=names,
                output_names=list(explainer.outputs),
                dynamic_shapes=tuple(dimensions for _, dimensions in inputs.values()),
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = _cause(error)
        if explainer.dynamic_size:
            reason += "; the network may need images of one size: leave out --dynamic-size"
        raise ExportError(f"{explainer.network.config.backbone} has no ONNX form: {reason}") from error
    if program is None:
        raise ExportError(f"PyTorch's exporter returned no graph for {explainer.network.config.backbone}: use another backbone")
    program.model.ir_version = IR_VERSION
    program.save(str(path))


def _switches(explainer: Explainer) -> list[Switch]:
    """Return the outputs that are computed on request.

    For clients that do not send `wanted`, the features and all maps except Ablation-CAM are computed by default.
    """
    maps = {output.name: output for output in explainer.maps}
    shapes: dict[str, tuple[int, ...]] = {layer.features: (0, layer.channels, layer.height, layer.width) for layer in explainer.layers}
    shapes |= {layer.gradients: (0, 0, layer.channels, layer.height, layer.width) for layer in explainer.layers}
    return [
        Switch(
            name, (0, 0, maps[name].height, maps[name].width), maps[name].method not in NEEDS_ABLATION, maps[name].method == _COMMON_METHOD
        )
        if name in maps
        else Switch(name, shapes[name], default=len(shapes[name]) == 4)
        for name in explainer.switches
    ]


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


def _shapes(explainer: Explainer, plain: Plain | None = None) -> dict[str, list[str | int]]:
    """Return the shapes of the graph's inputs and outputs, with names for dimensions of any size.

    N is the number of images and K the number of explained classes. M, L and S are the numbers of rows of `targets`, `wanted` and
    `softmax`, each either N or 1; a plain graph has N rows of `targets`.
    """
    size = explainer.network.config.preprocessing
    labels = explainer.network.config.num_classes
    n: str | int = "N"
    k: str | int = "K"
    if plain is not None:
        n, k = plain.batch or n, 1 if plain.classes == "top" else plain.explained or k

    def extent(height: int, width: int, where: str) -> list[str | int]:
        return [f"{where}_h", f"{where}_w"] if explainer.dynamic_size else [height, width]

    shapes: dict[str, list[str | int]] = {
        IMAGES: [n, *(["H", "W"] if explainer.dynamic_size else [size.height, size.width]), 3],
        TARGETS: ["M" if plain is None else n, k],
        WANTED: ["L", len(explainer.switches)],
        SOFTMAX: ["S", 1],
        SCORES: [n, labels],
        LOGITS: [n, labels],
        CLASSES: [n, k],
        **{output.name: [n, k, *extent(output.height, output.width, output.layer)] for output in explainer.maps},
    }
    for layer in explainer.layers:
        shapes[layer.features] = [n, layer.channels, *extent(layer.height, layer.width, layer.name)]
        shapes[layer.gradients] = [n, k, *shapes[layer.features][1:]]
    return shapes


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
