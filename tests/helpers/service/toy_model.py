"""Small real model in the format of an export, written node by node, and the same arithmetic in NumPy.

It classifies colours: features are mixtures of an 8 x 8 grid of mean RGB, by default the grid itself; the classifier is linear on their
mean over the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.description import METADATA_KEY, Description, Layer, MapOutput, Provenance

LABELS = ("red", "green", "blue", "yellow", "magenta", "cyan", "grey")
COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIZE, CELL, GRID = 64, 8, 8
METHODS = ("cam", "gradcam", "eigencam", "eigengradcam", "scorecam", "faster_scorecam")
SWITCHES = ("gradcam", "gradients")
PREPROCESSING = Preprocessing(height=SIZE, width=SIZE, crop_pct=0.875, interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ToyAnswer:
    scores: Floats
    logits: Floats
    cam: Floats
    gradcam: Floats
    features: Floats


@dataclass(frozen=True)
class ToyModel:
    """Parameters of a toy model.

    weight: `[C, c]`.
    bias: `[C]`.
    mix: `[c, 3]`.
    faulty: whether a run fails on images whose first pixel is white.
    dynamic: whether it accepts images of any size that is divisible by 8.
    """

    weight: Floats
    bias: Floats
    mix: Floats
    faulty: bool = False
    dynamic: bool = False

    @classmethod
    def make(cls, seed: int, faulty: bool = False, channels: int = 3, dynamic: bool = False) -> ToyModel:
        generator = np.random.default_rng(seed)
        weight = generator.normal(0, 0.1, (len(LABELS), 3)).astype(np.float32)
        weight[:3] += np.float32(1.5) * (2 * np.eye(3, dtype=np.float32) - 1)  # the first three classes are the colours by name
        bias = generator.normal(0, 0.1, len(LABELS)).astype(np.float32)
        mix = np.eye(3, dtype=np.float32) if channels == 3 else generator.normal(0, 1, (channels, 3)).astype(np.float32)
        return cls((weight @ np.linalg.pinv(mix)).astype(np.float32), bias, mix, faulty, dynamic)

    def answer(self, image: npt.NDArray[np.uint8], softmax: bool = False) -> ToyAnswer:
        """Compute what the graph does for one input `[H, W, 3]`; maps are for every class, `[C, h, w]`."""
        unit = (image.astype(np.float32) / 255 - np.float32(PREPROCESSING.mean)) / np.float32(PREPROCESSING.std)
        features = unit.reshape(GRID, CELL, GRID, CELL, 3).mean(axis=(1, 3))
        features = np.einsum("kc,hwc->khw", self.mix, features)
        logits = self.weight @ features.mean(axis=(1, 2)) + self.bias
        powers = np.exp(logits - logits.max())
        scores = powers / powers.sum()
        cam = np.einsum("ck,khw->chw", self.weight, features)
        slopes = scores[:, None] * (self.weight - scores @ self.weight) if softmax else self.weight
        return ToyAnswer(scores, logits, cam, np.maximum(np.einsum("ck,khw->chw", slopes / GRID**2, features), 0), features)

    def save(self, path: Path, name: str) -> None:
        """Write the graph with its description."""
        path.parent.mkdir(parents=True, exist_ok=True)
        model = helper.make_model(self._graph(), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        helper.set_model_props(model, {METADATA_KEY: self._describe(name).to_json()})
        onnx.save(model, path)

    def _graph(self) -> onnx.GraphProto:
        mean, std = (np.array(value, np.float32).reshape(1, 3, 1, 1) for value in (PREPROCESSING.mean, PREPROCESSING.std))
        constants = {
            "full": np.float32(255),
            "mean": mean,
            "std": std,
            "weight": self.weight,
            "bias": self.bias,
            "width": np.array([len(LABELS)], np.int64),
            "zero": np.array([0], np.int64),
            "one": np.array([1], np.int64),
            "targets": np.array([[-1]], np.int64),
            "wanted": np.ones((1, len(SWITCHES)), np.bool_),
            "softmax": np.array([[False]]),
            "mix": self.mix.reshape(-1, 3, 1, 1),
            "first": np.array(0, np.int64),
            "second": np.array(1, np.int64),
            "deep": np.array([3, 4], np.int64),
            "last": np.array([2], np.int64),
            "ones": np.array([1, 1, 1], np.int64),
        }
        nodes = [
            ("Cast", ["images"], "as_float", {"to": TensorProto.FLOAT}),
            ("Transpose", ["as_float"], "channels_first", {"perm": [0, 3, 1, 2]}),
            ("Div", ["channels_first", "full"], "unit", {}),
            ("Sub", ["unit", "mean"], "centred", {}),
            ("Div", ["centred", "std"], "normal", {}),
            ("AveragePool", ["normal"], "colours", {"kernel_shape": [CELL, CELL], "strides": [CELL, CELL]}),
            ("Conv", ["colours", "mix"], "features", {}),
            ("ReduceMean", ["features", "axes"], "pooled", {"keepdims": 0}),
            ("Gemm", ["pooled", "weight", "bias"], "logits", {"transB": 1}),
            ("Softmax", ["logits"], "scores", {"axis": -1}),
            # classes: ids as they are, -r as the r-th of the ranking
            ("TopK", ["logits", "width"], ("ranked_logits", "ranking"), {"axis": 1}),
            ("Shape", ["logits"], "count", {"start": 0, "end": 1}),
            ("Shape", ["targets"], "explained", {"start": 1, "end": 2}),
            ("Concat", ["count", "explained"], "count_explained", {"axis": 0}),
            ("Expand", ["targets", "count_explained"], "asked", {}),
            ("Less", ["asked", "zero"], "by_rank", {}),
            ("Neg", ["asked"], "rank", {}),
            ("Sub", ["rank", "one"], "place", {}),
            ("Max", ["place", "zero"], "safe_place", {}),
            ("GatherElements", ["ranking", "safe_place"], "found", {"axis": 1}),
            ("Where", ["by_rank", "found", "asked"], "classes", {}),
            # the maps: the gradient of a logit with respect to the features is its row of the weights over their number
            ("Gather", ["weight", "classes"], "rows", {"axis": 0}),
            ("Einsum", ["rows", "features"], "cam", {"equation": "nkc,nchw->nkhw"}),
            # of a probability p: p times what the row has over the mean row, weighted by all p
            ("MatMul", ["scores", "weight"], "mean_row", {}),
            ("Unsqueeze", ["mean_row", "one"], "mean_rows", {}),
            ("Sub", ["rows", "mean_rows"], "over", {}),
            ("GatherElements", ["scores", "classes"], "probability", {"axis": 1}),
            ("Unsqueeze", ["probability", "last"], "probabilities", {}),
            ("Mul", ["over", "probabilities"], "softmax_rows", {}),
            ("Unsqueeze", ["softmax", "last"], "of_probability", {}),
            ("Where", ["of_probability", "softmax_rows", "rows"], "slopes", {}),
            ("Shape", ["features"], "extent", {"start": 2}),
            ("ReduceProd", ["extent"], "positions", {"keepdims": 0}),
            ("Cast", ["positions"], "area", {"to": TensorProto.FLOAT}),
            ("Concat", ["ones", "extent"], "grid", {"axis": 0}),
            ("Div", ["slopes", "area"], "shares", {}),
            ("Einsum", ["shares", "features"], "summed", {"equation": "nkc,nchw->nkhw"}),
            ("Relu", ["summed"], "all_gradcam", {}),
            ("Unsqueeze", ["shares", "deep"], "flat_gradients", {}),
            ("Expand", ["flat_gradients", "grid"], "all_gradients", {}),
            ("Cast", ["wanted"], "wanted_number", {"to": TensorProto.INT32}),
            ("ReduceMax", ["wanted_number", "zero"], "wanted_by_any", {"keepdims": 0}),
            ("Cast", ["wanted_by_any"], "wanted_by_row", {"to": TensorProto.BOOL}),
            ("Gather", ["wanted_by_row", "first"], "gradcam_wanted", {}),
            ("Gather", ["wanted_by_row", "second"], "gradients_wanted", {}),
            ("If", ["gradcam_wanted"], "gradcam", _if("all_gradcam", (0, 0, GRID, GRID))),
            ("If", ["gradients_wanted"], "gradients", _if("all_gradients", (0, 0, len(self.mix), GRID, GRID))),
        ]
        constants["axes"] = np.array([2, 3], np.int64)
        if self.faulty:
            constants["corner"] = np.array([0, 0, 0, 0], np.int64)
            constants["white"] = np.array(255, np.uint8)
            constants["beyond"] = np.array(10**6, np.int64)
            nodes[8] = ("Gemm", ["pooled", "weight", "checked_bias"], "logits", {"transB": 1})
            nodes[8:8] = [
                ("GatherND", ["images", "corner"], "pixel", {}),
                ("Equal", ["pixel", "white"], "is_white", {}),
                ("Cast", ["is_white"], "flag", {"to": TensorProto.INT64}),
                ("Mul", ["flag", "beyond"], "row", {}),
                ("Unsqueeze", ["bias", "zero"], "biases", {}),
                ("Gather", ["biases", "row"], "checked_bias", {"axis": 0}),
            ]
        sides, grid = (["H", "W"], ["h", "w"]) if self.dynamic else ([SIZE, SIZE], [GRID, GRID])
        return helper.make_graph(
            [
                helper.make_node(kind, inputs, [outputs] if isinstance(outputs, str) else list(outputs), **attributes)
                for kind, inputs, outputs, attributes in nodes
            ],
            "toy",
            [
                helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *sides, 3]),
                helper.make_tensor_value_info("targets", TensorProto.INT64, ["M", "K"]),
                helper.make_tensor_value_info("wanted", TensorProto.BOOL, ["L", len(SWITCHES)]),
                helper.make_tensor_value_info("softmax", TensorProto.BOOL, ["S", 1]),
            ],
            [
                helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", len(LABELS)]),
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", len(LABELS)]),
                helper.make_tensor_value_info("classes", TensorProto.INT64, ["N", "K"]),
                helper.make_tensor_value_info("cam", TensorProto.FLOAT, ["N", "K", *grid]),
                helper.make_tensor_value_info("gradcam", TensorProto.FLOAT, ["N", "K", *grid]),
                helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", len(self.mix), *grid]),
                helper.make_tensor_value_info("gradients", TensorProto.FLOAT, ["N", "K", len(self.mix), *grid]),
            ],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )

    def _describe(self, name: str) -> Description:
        layer = Layer(name="grid", features="features", gradients="gradients", channels=len(self.mix), height=GRID, width=GRID)
        return Description(
            name=name,
            labels=LABELS,
            preprocessing=PREPROCESSING,
            layers=(layer,),
            maps=tuple(MapOutput(name=method, method=method, layer="grid", height=GRID, width=GRID) for method in METHODS),
            switches=SWITCHES,
            dynamic_size=self.dynamic,
            provenance=Provenance(created="2025-01-01T00:00:00+00:00", versions={}, backbone="grid", head="linear", weights="none"),
        )


def _if(name: str, empty: tuple[int, ...]) -> dict[str, onnx.GraphProto]:
    """Return both branches of a switch: the value of that name, or an empty tensor."""

    def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
        return helper.make_graph(list(nodes), name, [], [helper.make_empty_tensor_value_info(f"{name}_out")])

    nothing = numpy_helper.from_array(np.zeros(empty, np.float32))
    for_both = [f"{name}_out"]
    then, other = helper.make_node("Identity", [name], for_both), helper.make_node("Constant", [], for_both, value=nothing)
    return {"then_branch": branch(then), "else_branch": branch(other)}
