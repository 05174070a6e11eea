"""Logits of a foreign classifier: the value that contains them, and the layer that computes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, helper

from tlcli.contract.errors import ExportError, SettingsError
from tlcli.exports.onnx_source.graph.observed_graph import ObservedGraph
from tlcli.exports.onnx_source.graph.source_file import PREFIX, SourceFile, shown

_SQUASHING = {"Softmax": "softmax", "LogSoftmax": "log-softmax", "Sigmoid": "sigmoid", "HardSigmoid": "hard sigmoid"}
_PASSING = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Cast", "Transpose"})
"""Operators between the logits and the output that only change the shape."""


def scores_output(source: SourceFile, logits: str | None) -> str:
    """Return the name of the value from which the logits are searched backwards.

    A `ZipMap`, which turns scores into a dictionary of labels, is skipped.

    Args:
        source: the file.
        logits: value or node that the user named as the logits; None for the output of the file.

    Raises:
        SettingsError: there is no such value.
        ExportError: the file has several outputs.
    """
    graph = source.model.graph
    if logits is not None:
        return find_value(graph, logits, "--logits")
    by_output = {name: node for node in graph.node for name in node.output}
    dictionaries = [by_output[value.name] for value in graph.output if value.name in by_output]
    dictionaries = [node for node in dictionaries if node.op_type == "ZipMap"]
    if len(dictionaries) == 1:
        return dictionaries[0].input[0]
    outputs = [value.name for value in graph.output]
    if len(outputs) == 1:
        return outputs[0]
    by_maker = [name for name in outputs if by_output[name].op_type in _SQUASHING] if all(name in by_output for name in outputs) else []
    if len(by_maker) == 1:
        return by_maker[0]
    raise ExportError(
        f"{source.path}: has {len(outputs)} outputs ({', '.join(map(shown, outputs[:6]))}), so it is not a plain classifier, or has several"
        " heads: name the one to explain with --logits"
    )


def zip_map_labels(source: SourceFile) -> list[str] | None:
    """Return the labels that a `ZipMap` of the file holds, or None."""
    for node in source.model.graph.node:
        if node.op_type == "ZipMap":
            for attribute in node.attribute:
                if attribute.name == "classlabels_strings":
                    return [label.decode(errors="replace") for label in attribute.strings]
    return None


def find_value(graph: GraphProto, name: str, flag: str) -> str:
    """Return the value with the given name, or the first output of the node with that name.

    Raises:
        SettingsError: there is no such value or node.
    """
    for node in graph.node:
        if f"{PREFIX}{name}" in node.output:
            return f"{PREFIX}{name}"
    for node in graph.node:
        if node.name == name:
            return node.output[0]
    near = [shown(value) for node in graph.node for value in node.output if name.lower() in shown(value).lower()][:5]
    hint = f"; similar names: {', '.join(near)}" if near else ""
    raise SettingsError(f"{flag} {name}: no value or node of this name in the file{hint}")


@dataclass(frozen=True)
class LastLayer:
    """Fully connected layer that computes the logits.

    embedding: name of its input, `[N, d]`.
    weight: name of its constant weight.
    by_class: True for a weight `[C, d]`, False for `[d, C]`.
    """

    embedding: str
    weight: str
    by_class: bool


@dataclass(frozen=True)
class Classifier:
    """Logits of a foreign graph.

    logits: name of the value, which has C elements per image.
    flat: True if it is `[N, C]`, False if it has further axes of size 1.
    classes: number of classes, C.
    squashing: name of the function that the file applies to the logits; None if they are an output.
    last_layer: layer that computes the logits; None if it is not one fully connected layer.
    """

    logits: str
    flat: bool
    classes: int
    squashing: str | None
    last_layer: LastLayer | None


def find_classifier(graph: ObservedGraph, scores: str, named: bool, where: str) -> Classifier:
    """Find the logits.

    Args:
        graph: observed graph.
        scores: value from which to search; see `scores_output`.
        named: True if the user named this value as the logits.
        where: name of the file for messages.

    Raises:
        ExportError: the value does not have one number per class and image, or holds probabilities whose logits are not found.
    """
    logits, squashing = (scores, None) if named else _before_squashing(graph, scores)
    extent = graph.extents.get(logits)
    if extent is None:
        raise ExportError(
            f"{where}: {shown(logits)} is not a float32 tensor with one row per image, as logits are: name the logits with --logits"
        )
    others = [size for axis, size in enumerate(extent.dims) if axis != extent.batch and size != 1]
    if len(others) > 1 or extent.batch != 0 or extent.dims[0] != 1:
        raise ExportError(
            f"{where}: {shown(logits)} has the shape [N, {', '.join(map(str, extent.dims[1:]))}], not [N, classes]: it is not a classifier,"
            " or its logits have to be named with --logits"
        )
    classes = others[0] if others else 1
    if classes < 2:
        raise ExportError(f"{where}: {shown(logits)} has one number per image: a classifier needs at least two classes")
    rows = graph.sample.reshape(len(graph.sample), -1)
    if squashing is None and not named and rows.min() >= 0 and np.allclose(rows.sum(1), 1, atol=1e-4):
        raise ExportError(
            f"{where}: its output {shown(scores)} holds probabilities, and the softmax was not found: name the logits with --logits"
        )
    return Classifier(logits, extent.rank == 2, classes, squashing, _last_layer(graph, logits) if extent.rank == 2 else None)


def _before_squashing(graph: ObservedGraph, scores: str) -> tuple[str, str | None]:
    """Follow a value back through operators that preserve its elements. Return the input of a final softmax, or the value itself."""
    value = scores
    while (node := graph.maker(value)) is not None:
        if node.op_type in _SQUASHING:
            return _unchanged(graph, node.input[0]), _SQUASHING[node.op_type]
        if node.op_type == "Log" or node.op_type in _PASSING:
            value = node.input[0]
            continue
        break
    return scores, None


def _unchanged(graph: ObservedGraph, value: str) -> str:
    """Follow a value back through operators that change neither its elements nor its shape."""
    while (node := graph.maker(value)) is not None and node.op_type in _PASSING - {"Transpose", "Cast"}:
        if graph.extents.get(node.input[0]) != graph.extents.get(value):
            break
        value = node.input[0]
    return value


def _last_layer(graph: ObservedGraph, logits: str) -> LastLayer | None:
    node = graph.maker(_unchanged(graph, logits))
    if node is not None and node.op_type == "Add":
        data = [name for name in node.input if name not in graph.constants]
        if len(data) != 1:
            return None
        node = graph.maker(data[0])
        if node is None or node.op_type != "MatMul":
            return None
    if node is None or node.op_type not in ("Gemm", "MatMul"):
        return None
    embedding, weight = node.input[0], node.input[1]
    extent = graph.extents.get(embedding)
    if weight not in graph.constants or graph.constants[weight].ndim != 2 or extent is None or extent.rank != 2 or extent.batch != 0:
        return None
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("transA", 0) or extent.dims[0] != 1:
        return None
    return LastLayer(embedding, weight, bool(attributes.get("transB", 0)))
