"""A small real model in the contract's shape, written node by node, and the same arithmetic in numpy.

It sees colours: features are an 8 x 8 grid of mean RGB, the classifier is linear on their mean over the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from contract.description import METADATA_KEY, Description, MapOutput, Provenance
from contract.preprocessing import Preprocessing

LABELS = ("red", "green", "blue", "yellow", "magenta", "cyan", "grey")
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIZE, CELL, GRID = 64, 8, 8
PREPROCESSING = Preprocessing(height=SIZE, width=SIZE, crop_pct=0.875, interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ToyAnswer:
    scores: Floats
    logits: Floats
    cam: Floats
    gradcam: Floats


@dataclass(frozen=True)
class ToyModel:
    """weight: `[C, 3]`; bias: `[C]`. `faulty` fails while it runs, on any picture whose first pixel is white."""

    weight: Floats
    bias: Floats
    faulty: bool = False

    @classmethod
    def make(cls, seed: int, faulty: bool = False) -> ToyModel:
        generator = np.random.default_rng(seed)
        weight = generator.normal(0, 0.1, (len(LABELS), 3)).astype(np.float32)
        weight[:3] += np.float32(1.5) * (2 * np.eye(3, dtype=np.float32) - 1)  # the first three classes are the colours by name
        return cls(weight, generator.normal(0, 0.1, len(LABELS)).astype(np.float32), faulty)

    def answer(self, image: npt.NDArray[np.uint8]) -> ToyAnswer:
        """What the graph computes for one input `[H, W, 3]`; maps for every class, `[C, h, w]`."""
        unit = (image.astype(np.float32) / 255 - np.float32(PREPROCESSING.mean)) / np.float32(PREPROCESSING.std)
        features = unit.reshape(GRID, CELL, GRID, CELL, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
        logits = self.weight @ features.mean(axis=(1, 2)) + self.bias
        powers = np.exp(logits - logits.max())
        cam = np.einsum("ck,khw->chw", self.weight, features)
        return ToyAnswer(powers / powers.sum(), logits, cam, np.maximum(cam / GRID**2, 0))

    def save(self, path: Path, name: str) -> None:
        """Write the graph with its description."""
        path.parent.mkdir(parents=True, exist_ok=True)
        model = helper.make_model(self._graph(), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        helper.set_model_props(model, {METADATA_KEY: _describe(name).to_json()})
        onnx.save(model, path)

    def _graph(self) -> onnx.GraphProto:
        mean, std = (np.array(value, np.float32).reshape(1, 3, 1, 1) for value in (PREPROCESSING.mean, PREPROCESSING.std))
        constants = {
            "full": np.float32(255),
            "mean": mean,
            "std": std,
            "weight": self.weight,
            "bias": self.bias,
            "area": np.float32(GRID**2),
            "width": np.array([len(LABELS)], np.int64),
            "zero": np.array([0], np.int64),
            "one": np.array([1], np.int64),
            "targets": np.array([[-1]], np.int64),
        }
        nodes = [
            ("Cast", ["images"], "as_float", {"to": TensorProto.FLOAT}),
            ("Transpose", ["as_float"], "channels_first", {"perm": [0, 3, 1, 2]}),
            ("Div", ["channels_first", "full"], "unit", {}),
            ("Sub", ["unit", "mean"], "centred", {}),
            ("Div", ["centred", "std"], "normal", {}),
            ("AveragePool", ["normal"], "features", {"kernel_shape": [CELL, CELL], "strides": [CELL, CELL]}),
            ("ReduceMean", ["features", "axes"], "pooled", {"keepdims": 0}),
            ("Gemm", ["pooled", "weight", "bias"], "logits", {"transB": 1}),
            ("Softmax", ["logits"], "scores", {"axis": -1}),
            # classes: ids as they are, -r as the r-th of the ranking
            ("TopK", ["logits", "width"], ("ranked_logits", "ranking"), {"axis": 1}),
            ("Shape", ["logits"], "count", {"start": 0, "end": 1}),
            ("Shape", ["targets"], "explained", {"start": 1, "end": 2}),
            ("Concat", ["count", "explained"], "count_explained", {"axis": 0}),
            ("Expand", ["targets", "count_explained"], "wanted", {}),
            ("Less", ["wanted", "zero"], "by_rank", {}),
            ("Neg", ["wanted"], "rank", {}),
            ("Sub", ["rank", "one"], "place", {}),
            ("Max", ["place", "zero"], "safe_place", {}),
            ("GatherElements", ["ranking", "safe_place"], "found", {"axis": 1}),
            ("Where", ["by_rank", "found", "wanted"], "classes", {}),
            # the maps: the gradient of a logit with respect to the features is its row of the weights over their number
            ("Gather", ["weight", "classes"], "rows", {"axis": 0}),
            ("Einsum", ["rows", "features"], "cam", {"equation": "nkc,nchw->nkhw"}),
            ("Div", ["cam", "area"], "share", {}),
            ("Relu", ["share"], "gradcam", {}),
        ]
        constants["axes"] = np.array([2, 3], np.int64)
        if self.faulty:
            constants["corner"] = np.array([0, 0, 0, 0], np.int64)
            constants["white"] = np.array(255, np.uint8)
            constants["beyond"] = np.array(10**6, np.int64)
            nodes[7] = ("Gemm", ["pooled", "weight", "checked_bias"], "logits", {"transB": 1})
            nodes[7:7] = [
                ("GatherND", ["images", "corner"], "pixel", {}),
                ("Equal", ["pixel", "white"], "is_white", {}),
                ("Cast", ["is_white"], "flag", {"to": TensorProto.INT64}),
                ("Mul", ["flag", "beyond"], "row", {}),
                ("Unsqueeze", ["bias", "zero"], "biases", {}),
                ("Gather", ["biases", "row"], "checked_bias", {"axis": 0}),
            ]
        return helper.make_graph(
            [
                helper.make_node(kind, inputs, [outputs] if isinstance(outputs, str) else list(outputs), **attributes)
                for kind, inputs, outputs, attributes in nodes
            ],
            "toy",
            [
                helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, 3]),
                helper.make_tensor_value_info("targets", TensorProto.INT64, ["M", "K"]),
            ],
            [
                helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(LABELS)]),
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(LABELS)]),
                helper.make_tensor_value_info("classes", TensorProto.INT64, ["N", "K"]),
                helper.make_tensor_value_info("cam", TensorProto.FLOAT, ["N", "K", GRID, GRID]),
                helper.make_tensor_value_info("gradcam", TensorProto.FLOAT, ["N", "K", GRID, GRID]),
                helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", 3, GRID, GRID]),
            ],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )


def _describe(name: str) -> Description:
    return Description(
        name=name,
        labels=LABELS,
        preprocessing=PREPROCESSING,
        maps=tuple(MapOutput(method=method, layer="grid", height=GRID, width=GRID) for method in ("cam", "gradcam")),
        feature_channels=3,
        provenance=Provenance(created="2025-01-01T00:00:00+00:00", versions={}, backbone="grid", head="linear", weights="none"),
    )
