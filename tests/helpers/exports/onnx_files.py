"""Small ONNX classifiers with random weights, in the forms that common exporters write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.description import Description, Provenance
from tlcli.contract.model.onnx_model import Model
from tlcli.exports.onnx_source.classifier import find_classifier, scores_output
from tlcli.exports.onnx_source.explained_graph import ExplainedGraph
from tlcli.exports.onnx_source.graph.observed_graph import observe
from tlcli.exports.onnx_source.graph.source_file import read_source, shown
from tlcli.exports.onnx_source.image_input import ImageInput
from tlcli.exports.onnx_source.spatial_values import SpatialValues
from tlcli.exports.rewrite.closed_graph import check_graph, close_graph, describe

SIZE = 16
CHANNELS = 6
CLASSES = 5
Inputs = Sequence[str | np.ndarray]


class Graph:
    """Builder of a file: `add` appends a node and returns the name of its first output."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def normal(self, *shape: int, scale: float | None = None) -> np.ndarray:
        scale = scale if scale is not None else 1 / max(1.0, np.prod(shape[1:])) ** 0.5
        return (self._random.standard_normal(shape) * scale).astype(np.float32)

    def add(
        self, operator: str, *inputs: str | np.ndarray, name: str | None = None, outputs: int = 1, domain: str = "", **attributes: Any
    ) -> str:
        names = [value if isinstance(value, str) else self._weight(value) for value in inputs]
        output = name or f"v{len(self.nodes)}"
        produced = [output, *(f"{output}_{number}" for number in range(1, outputs))]
        self.nodes.append(helper.make_node(operator, names, produced, name=f"node_{output}", domain=domain, **attributes))
        return output

    def _weight(self, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def save(
        self,
        path: Path,
        *outputs: str,
        shape: Sequence[str | int] = ("N", 3, SIZE, SIZE),
        opset: int = 17,
        kind: int = TensorProto.FLOAT,
        properties: dict[str, str] | None = None,
    ) -> Path:
        inputs = [helper.make_tensor_value_info("x", kind, list(shape))]
        values = [helper.make_empty_tensor_value_info(name) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", inputs, values, self.weights)
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 2)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=max(8, helper.find_min_ir_version_for([opsets[0]])))
        helper.set_model_props(model, properties or {})
        onnx.save(model, str(path))
        return path


def stem(graph: Graph, x: str = "x", channels: int = CHANNELS, name: str = "layer") -> str:
    """Add a convolution to `[N, 6, 8, 8]`, whose output is the explained layer."""
    return graph.add(
        "Conv", x, graph.normal(channels, 3, 3, 3), graph.normal(channels, scale=0.3), name=name, strides=[2, 2], pads=[1, 1, 1, 1]
    )


def head(graph: Graph, x: str, features: int = CHANNELS) -> str:
    """Add a mean over the positions, and a fully connected layer."""
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    return graph.add("Gemm", pooled, graph.normal(CLASSES, features), graph.normal(CLASSES, scale=0.1), transB=1)


def keras_like(path: Path) -> Path:
    """As tf2onnx writes Keras networks: channels last at both ends, padding SAME, a mean by ReduceMean, MatMul and Add, a softmax."""
    g = Graph()
    x = g.add("Transpose", "x", perm=[0, 3, 1, 2])
    x = g.add("Conv", x, g.normal(8, 3, 3, 3), g.normal(8, scale=0.3), auto_pad="SAME_UPPER", strides=[2, 2])
    x = g.add("Clip", x, np.float32(0), np.float32(6))
    x = g.add("Conv", x, g.normal(8, 1, 3, 3), auto_pad="SAME_UPPER", group=8)
    x = g.add("BatchNormalization", x, *(np.abs(g.normal(8, scale=1)) + 0.5 for _ in range(4)))
    x = g.add("Relu", x, name="activation")
    x = g.add("Transpose", x, perm=[0, 2, 3, 1], name="last")
    x = g.add("ReduceMean", x, axes=[1, 2], keepdims=0)
    x = g.add("Add", g.add("MatMul", x, g.normal(8, CLASSES)), g.normal(CLASSES, scale=0.1), name="logits")
    return g.save(path, g.add("Softmax", x, axis=-1), shape=("N", SIZE, SIZE, 3))


def keras_mobilenet_v3_like(path: Path) -> Path:
    """Channels last inside, hard swish of single operators, a 1x1 convolution as classifier, and a reshape to the logits."""
    g = Graph()
    x = g.add("Conv", g.add("Transpose", "x", perm=[0, 3, 1, 2]), g.normal(8, 3, 3, 3), strides=[2, 2], pads=[0, 0, 1, 1])
    x = g.add("Transpose", x, perm=[0, 2, 3, 1])
    gate = g.add("Mul", g.add("Clip", g.add("Add", x, np.float32(3)), np.float32(0), np.float32(6)), np.float32(1 / 6))
    x = g.add("Mul", x, gate, name="activation")
    x = g.add("ReduceMean", x, axes=[1, 2], keepdims=1)
    x = g.add("Conv", g.add("Transpose", x, perm=[0, 3, 1, 2]), g.normal(12, 8, 1, 1), g.normal(12, scale=0.2))
    x = g.add("HardSwish", x)
    x = g.add("Conv", x, g.normal(CLASSES, 12, 1, 1), g.normal(CLASSES, scale=0.1))
    shape = g.add("Concat", g.add("Slice", g.add("Shape", x), np.array([0]), np.array([1])), np.array([CLASSES]), axis=0)
    x = g.add("Reshape", g.add("Transpose", x, perm=[0, 2, 3, 1]), shape)
    return g.save(path, g.add("Softmax", x), shape=("N", SIZE, SIZE, 3))


def ultralytics_like(path: Path) -> Path:
    """As Ultralytics writes classifiers: one image at a time, SiLU as Sigmoid and Mul, a concatenation, labels in the metadata."""
    g = Graph()
    x = stem(g, channels=8, name="stem")
    x = g.add("Mul", x, g.add("Sigmoid", x))
    first = g.add("Split", x, np.array([4, 4]), axis=1, outputs=2)
    y = g.add("Conv", f"{first}_1", g.normal(4, 4, 3, 3), pads=[1, 1, 1, 1])
    y = g.add("Add", g.add("Mul", y, g.add("Sigmoid", y)), f"{first}_1")
    x = g.add("Concat", first, f"{first}_1", y, axis=1)
    x = g.add("Conv", x, g.normal(10, 12, 1, 1))
    x = g.add("Mul", x, g.add("Sigmoid", x), name="last")
    x = g.add("Reshape", g.add("GlobalAveragePool", x), np.array([1, 10]))
    x = g.add("Gemm", x, g.normal(CLASSES, 10), g.normal(CLASSES, scale=0.1), transB=1)
    names = {"names": str({number: f"thing {number}" for number in range(CLASSES)}), "task": "classify"}
    return g.save(path, g.add("Softmax", x, axis=1, name="output0"), shape=(1, 3, SIZE, SIZE), properties=names, opset=13)


def paddle_like(path: Path) -> Path:
    """As Paddle2ONNX writes PaddleClas networks: scale and bias as Mul and Add, reshapes by computed shapes, MatMul, Add, Softmax."""
    g = Graph()
    x = stem(g, channels=8, name="conv2d_0.tmp_0")
    x = g.add("BatchNormalization", x, *(np.abs(g.normal(8, scale=1)) + 0.5 for _ in range(4)))
    x = g.add("HardSigmoid", x, alpha=1 / 6, beta=0.5)
    squeezed = g.add("Conv", g.add("GlobalAveragePool", x), g.normal(8, 8, 1, 1), g.normal(8, scale=0.3))
    x = g.add("Mul", x, g.add("HardSigmoid", squeezed, alpha=0.2, beta=0.5), name="last")
    x = g.add("GlobalAveragePool", x)
    batch = g.add("Slice", g.add("Shape", x), np.array([0]), np.array([1]), np.array([0]))
    x = g.add("Reshape", x, g.add("Concat", batch, np.array([-1]), axis=0))
    x = g.add("Add", g.add("MatMul", x, g.normal(8, CLASSES)), g.normal(CLASSES, scale=0.1))
    return g.save(path, g.add("Softmax", x, axis=1, name="softmax_0.tmp_0"), shape=("N", 3, SIZE, SIZE), opset=11)


def custom_vision_like(path: Path) -> Path:
    """As Azure Custom Vision writes networks: the scores as a dictionary of labels, and the best label as a string."""
    g = Graph()
    logits = head(g, g.add("Relu", stem(g)))
    scores = g.add("Softmax", logits, axis=1)
    labels = [f"label {number}" for number in range(CLASSES)]
    g.add("ZipMap", scores, name="loss", domain="ai.onnx.ml", classlabels_strings=labels)
    best = g.add("ArgMax", scores, axis=1, keepdims=0)
    g.add("ArrayFeatureExtractor", np.array(labels, dtype=object), best, name="classLabel", domain="ai.onnx.ml")
    return g.save(path, "classLabel", "loss", shape=("N", 3, SIZE, SIZE), opset=9)


FORMS = {
    "keras": keras_like,
    "keras-mobilenet-v3": keras_mobilenet_v3_like,
    "ultralytics": ultralytics_like,
    "paddle": paddle_like,
    "custom-vision": custom_vision_like,
}


def explain(
    path: Path, out: Path, layers: Sequence[str] = (), methods: Sequence[str] | None = None, image: ImageInput | None = None
) -> tuple[ExplainedGraph, Model]:
    """Add maps to a file without checking them. The input is in [0, 1] unless `image` says otherwise."""
    source = read_source(path)
    scores = scores_output(source, None)
    last = source.shape[3] == 3
    height, width = source.shape[1:3] if last else source.shape[2:4]
    assert height is not None
    assert width is not None
    preprocessing = Preprocessing(height=height, width=width, mean=(0, 0, 0), std=(1, 1, 1))
    image = image or ImageInput(preprocessing, last)
    random = np.random.default_rng(0)
    graph = observe(source, lambda count: image.apply(random.integers(0, 256, (count, height, width, 3), dtype=np.uint8)), scores)
    classifier = find_classifier(graph, scores, False, str(path))
    spatial = SpatialValues(graph, classifier.logits, last, str(path))
    values = [spatial.find(name) for name in layers] or list(spatial.default())
    names = [shown(value.name) for value in values]
    explained = ExplainedGraph(graph, classifier, values, names, methods, image, str(path), scores, source.shape[0])
    model = explained.flat()
    close_graph(explained.layout, model)
    onnx.save(model, str(out))
    description = Description(
        name=path.stem,
        labels=tuple(f"class_{number}" for number in range(classifier.classes)),
        preprocessing=image.preprocessing,
        layers=explained.layout.layers,
        maps=explained.layout.maps,
        switches=explained.layout.switches,
        provenance=Provenance(created="2026-01-01T00:00:00+00:00", versions={}, backbone="b", head="h", weights="none"),
    )
    describe(out, description)
    check_graph(out)
    return explained, Model.open(out, device="cpu")
