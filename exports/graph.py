"""The explainer written as ONNX: named dimensions, a default for the classes, the description inside."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import torch

from contract.description import CLASSES, IMAGES, LOGITS, METADATA_KEY, SCORES, SOFTMAX, TARGETS, WANTED, Description
from contract.errors import ExportError, first_line
from contract.model import FIRST_RANKED
from exports.ablation import CHANNELS_A_STEP, ablated_input, close_loop, due_input
from exports.explainer import Explainer
from exports.gating import gate
from exports.methods import NEEDS_ABLATION

OPSET = 20
IR_VERSION = 10
"""Of the newest runtimes everything reads it; onnx by itself writes one that released ONNX Runtimes refuse."""

_MAX_PROTOBUF_BYTES = 2**31 - 1


def write_graph(explainer: Explainer, path: Path, dynamic_size: bool = False) -> None:
    """Write the graph, still without a description.

    Args:
        explainer: the network with its maps.
        path: of the file.
        dynamic_size: leave the pictures' height and width open.

    Raises:
        ExportError: PyTorch's exporter has no ONNX form for something in the network, or the file would pass 2 GiB.
    """
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in explainer.network.parameters())
    if parameters >= _MAX_PROTOBUF_BYTES:
        raise ExportError(f"the network has {parameters:,} bytes of weights; one ONNX file holds at most {_MAX_PROTOBUF_BYTES:,}")
    _write_flat(explainer, path, dynamic_size)
    model = onnx.load(str(path))
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{number}"
    if explainer.looped:
        for number, layer in enumerate(explainer.layers):
            close_loop(model.graph, number, layer.features, layer.channels, CLASSES)
    defaults = {TARGETS: np.array([[FIRST_RANKED]], dtype=np.int64)}
    if explainer.layers:
        gate(model.graph, explainer.switches, _empty_shapes(explainer), [_computed_unasked(explainer, name) for name in explainer.switches])
        defaults[SOFTMAX] = np.array([[False]])
    _name_dimensions(model.graph, explainer, dynamic_size)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in defaults.items())
    model.producer_name = "tlcli"
    onnx.save(model, str(path))


def _write_flat(explainer: Explainer, path: Path, dynamic_size: bool) -> None:
    size = explainer.network.config.preprocessing
    looped = explainer.layers if explainer.looped else ()
    images = torch.zeros(3, size.height, size.width, 3, dtype=torch.uint8)
    targets = torch.tensor([[FIRST_RANKED, 0], [0, FIRST_RANKED]])
    softmax = torch.zeros(2, 1, dtype=torch.bool)
    due = [torch.arange(CHANNELS_A_STEP) for _ in looped]
    ablated = [torch.zeros(3, layer.channels, 2) for layer in looped]
    dynamic, auto = torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO
    sizes = {0: auto, 1: dynamic, 2: dynamic} if dynamic_size else {0: auto}
    numbers = range(len(looped))
    try:
        with _quiet():
            program = torch.onnx.export(
                explainer,
                (images, targets, softmax, due, ablated),
                dynamo=True,
                input_names=[IMAGES, TARGETS, SOFTMAX, *map(due_input, numbers), *map(ablated_input, numbers)],
                output_names=list(explainer.outputs),
                dynamic_shapes=(sizes, {0: dynamic, 1: auto}, {0: dynamic}, [None for _ in looped], [{0: auto, 2: auto} for _ in looped]),
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = _cause(error)
        if dynamic_size:
            reason += "; it may need pictures of one size: leave out --dynamic-size"
        raise ExportError(f"{explainer.network.config.backbone} has no ONNX form: {reason}") from error
    if program is None:
        raise ExportError("PyTorch's exporter returned nothing")
    program.model.ir_version = IR_VERSION
    program.save(str(path))


def _empty_shapes(explainer: Explainer) -> dict[str, tuple[int, ...]]:
    """What stands for an output that is not computed."""
    maps = {one.name: (0, 0, one.height, one.width) for one in explainer.maps if one.in_graph}
    return maps | {layer.gradients: (0, 0, layer.channels, layer.height, layer.width) for layer in explainer.layers}


def _computed_unasked(explainer: Explainer, switch: str) -> bool:
    """The maps that cost little are, for clients that do not know of `wanted`."""
    return any(one.name == switch and one.method not in NEEDS_ABLATION for one in explainer.maps)


def describe(path: Path, description: Description) -> None:
    """Put the description into the file's metadata."""
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA_KEY: description.to_json()})
    onnx.save(model, str(path))


def check_graph(path: Path) -> None:
    """Raises: ExportError: `onnx.checker` finds the file invalid (types and shapes included)."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx.checker refuses the graph: {str(error).splitlines()[0]}") from error


def _name_dimensions(graph: onnx.GraphProto, explainer: Explainer, dynamic_size: bool) -> None:
    """N pictures, K classes; `targets`, `wanted` and `softmax` have M, L and S rows, of which each is N or 1."""
    size = explainer.network.config.preprocessing
    labels = explainer.network.config.num_classes

    def extent(height: int, width: int, where: str) -> list[str | int]:
        return [f"{where}_h", f"{where}_w"] if dynamic_size else [height, width]

    names: dict[str, list[str | int]] = {
        IMAGES: ["N", *(["H", "W"] if dynamic_size else [size.height, size.width]), 3],
        TARGETS: ["M", "K"],
        WANTED: ["L", len(explainer.switches)],
        SOFTMAX: ["S", 1],
        SCORES: ["N", labels],
        LOGITS: ["N", labels],
        CLASSES: ["N", "K"],
        **{one.name: ["N", "K", *extent(one.height, one.width, one.layer)] for one in explainer.maps},
    }
    for layer in explainer.layers:
        names[layer.features] = ["N", layer.channels, *extent(layer.height, layer.width, layer.name)]
        names[layer.gradients] = ["N", "K", *names[layer.features][1:]]
    for value in (*graph.input, *graph.output):
        value.type.tensor_type.ClearField("shape")
        for name in names[value.name]:
            dimension = value.type.tensor_type.shape.dim.add()
            if isinstance(name, int):
                dimension.dim_value = name
            else:
                dimension.dim_param = name
    del graph.value_info[:]  # they speak of dimensions by the tracer's names


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps and logs what it tries; a failure still arrives as an exception."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
