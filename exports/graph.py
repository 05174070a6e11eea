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

from contract.description import IMAGES, METADATA_KEY, TARGETS, WANTED, Description
from contract.errors import ExportError, first_line
from contract.model import FIRST_RANKED
from exports.explainer import GRADIENTS, Explainer
from exports.gating import gate

OPSET = 20
IR_VERSION = 10
"""Of the newest runtimes everything reads it; onnx by itself writes one that released ONNX Runtimes refuse."""

_MAX_PROTOBUF_BYTES = 2**31 - 1


def write_graph(explainer: Explainer, path: Path) -> None:
    """Write the graph, still without a description.

    Raises:
        ExportError: PyTorch's exporter has no ONNX form for something in the network, or the file would pass 2 GiB.
    """
    size = explainer.network.config.preprocessing
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in explainer.network.parameters())
    if parameters >= _MAX_PROTOBUF_BYTES:
        raise ExportError(f"the network has {parameters:,} bytes of weights; one ONNX file holds at most {_MAX_PROTOBUF_BYTES:,}")
    images = torch.zeros(3, size.height, size.width, 3, dtype=torch.uint8)
    targets = torch.tensor([[FIRST_RANKED, 0], [0, FIRST_RANKED]])
    dynamic = torch.export.Dim.DYNAMIC
    try:
        with _quiet():
            program = torch.onnx.export(
                explainer,
                (images, targets),
                dynamo=True,
                input_names=[IMAGES, TARGETS],
                output_names=list(explainer.outputs),
                dynamic_shapes=({0: dynamic}, {0: dynamic, 1: dynamic}),
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"{explainer.network.config.backbone} has no ONNX form: {_cause(error)}") from error
    if program is None:
        raise ExportError("PyTorch's exporter returned nothing")
    program.model.ir_version = IR_VERSION
    program.save(str(path))
    model = onnx.load(str(path))
    channels, height, width = explainer.feature_shape
    empty: dict[str, tuple[int, ...]] = dict.fromkeys(explainer.methods, (0, 0, height, width))
    gate(model.graph, explainer.methods, GRADIENTS, {**empty, GRADIENTS: (0, 0, channels, height, width)})
    _name_dimensions(model.graph, explainer)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([[FIRST_RANKED]], dtype=np.int64), TARGETS))
    model.producer_name = "tlcli"
    onnx.save(model, str(path))


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


def _name_dimensions(graph: onnx.GraphProto, explainer: Explainer) -> None:
    """N pictures, K classes; `targets` has M rows, which is N or 1."""
    channels, height, width = explainer.feature_shape
    size = explainer.network.config.preprocessing
    labels = explainer.network.config.num_classes
    names: dict[str, list[str | int]] = {
        IMAGES: ["N", size.height, size.width, 3],
        TARGETS: ["M", "K"],
        WANTED: [len(explainer.methods)],
        "scores": ["N", labels],
        "logits": ["N", labels],
        "classes": ["N", "K"],
        "features": ["N", channels, height, width],
        **{method: ["N", "K", height, width] for method in explainer.methods},
    }
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
