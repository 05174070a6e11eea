"""Model that only uses the upper left quarter of its input, so that a good map of it is known.

`bright` has the probability sigmoid(8 (m - 0.5)), m the mean of that quarter in [0, 1]; `dark` the rest. Its maps do not depend on the
image: `gradcam` is the quarter, `layercam` the opposite one, `ablationcam` nothing at all.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.description import METADATA_KEY, Description, MapOutput, Provenance

SIZE, GRID = 32, 4
PREPROCESSING = Preprocessing(height=SIZE, width=SIZE, crop_pct=1.0, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
LABELS = ("dark", "bright")

QUARTER = np.zeros((GRID, GRID), np.float32)
QUARTER[:2, :2] = 1
MAPS = {"gradcam": QUARTER, "layercam": QUARTER[::-1, ::-1], "ablationcam": np.zeros_like(QUARTER)}


def probability(image: np.ndarray) -> float:  # type: ignore[type-arg]
    """Return the graph's probability of `bright`."""
    mean = float(image[: SIZE // 2, : SIZE // 2].mean()) / 255
    return float(1 / (1 + np.exp(-8 * (mean - 0.5))))


def save(path: Path, name: str = "quarter", maps: dict[str, np.ndarray] = MAPS) -> Path:  # type: ignore[type-arg]
    path.parent.mkdir(parents=True, exist_ok=True)
    constants = {
        "starts": np.array([0, 0], np.int64),
        "ends": np.array([SIZE // 2, SIZE // 2], np.int64),
        "axes": np.array([1, 2], np.int64),
        "all_axes": np.array([1, 2, 3], np.int64),
        "steep": np.float32(8 / 255),
        "shift": np.float32(4),
        "nothing": np.float32(0),
        "two": np.array([2], np.int64),
        "as_column": np.array([-1, 1], np.int64),
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "targets": np.array([[-1]], np.int64),
        "grid": np.array([GRID, GRID], np.int64),
        **{f"{method}_values": values.astype(np.float32) for method, values in maps.items()},
    }
    nodes = [
        ("Cast", ["images"], ["as_float"], {"to": TensorProto.FLOAT}),
        ("Slice", ["as_float", "starts", "ends", "axes"], ["quarter"], {}),
        ("ReduceMean", ["quarter", "all_axes"], ["mean"], {"keepdims": 0}),
        ("Mul", ["mean", "steep"], ["scaled"], {}),
        ("Sub", ["scaled", "shift"], ["bright"], {}),
        ("Mul", ["bright", "nothing"], ["dark"], {}),
        ("Reshape", ["bright", "as_column"], ["bright_column"], {}),
        ("Reshape", ["dark", "as_column"], ["dark_column"], {}),
        ("Concat", ["dark_column", "bright_column"], ["logits"], {"axis": 1}),
        ("Softmax", ["logits"], ["scores"], {"axis": -1}),
        ("TopK", ["logits", "two"], ["ranked", "ranking"], {"axis": 1}),
        ("Shape", ["logits"], ["count"], {"start": 0, "end": 1}),
        ("Shape", ["targets"], ["explained"], {"start": 1, "end": 2}),
        ("Concat", ["count", "explained"], ["count_explained"], {"axis": 0}),
        ("Expand", ["targets", "count_explained"], ["chosen"], {}),
        ("Less", ["chosen", "zero"], ["by_rank"], {}),
        ("Neg", ["chosen"], ["rank"], {}),
        ("Sub", ["rank", "one"], ["place"], {}),
        ("Max", ["place", "zero"], ["safe_place"], {}),
        ("GatherElements", ["ranking", "safe_place"], ["found"], {"axis": 1}),
        ("Where", ["by_rank", "found", "chosen"], ["classes"], {}),
        ("Concat", ["count_explained", "grid"], ["map_shape"], {"axis": 0}),
        *(("Expand", [f"{method}_values", "map_shape"], [method], {}) for method in maps),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, outputs, **attributes) for kind, inputs, outputs, attributes in nodes],
        "quarter",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, 3]),
            helper.make_tensor_value_info("targets", TensorProto.INT64, ["M", "K"]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("classes", TensorProto.INT64, ["N", "K"]),
            *(helper.make_tensor_value_info(method, TensorProto.FLOAT, ["N", "K", GRID, GRID]) for method in maps),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    description = Description(
        name=name,
        labels=LABELS,
        preprocessing=PREPROCESSING,
        layers=(),
        maps=tuple(MapOutput(name=method, method=method, layer="grid", height=GRID, width=GRID) for method in maps),
        switches=(),
        provenance=Provenance(created="2025-01-01T00:00:00+00:00", versions={}, backbone="quarter", head="linear", weights="none"),
    )
    helper.set_model_props(model, {METADATA_KEY: description.to_json()})
    onnx.save(model, path)
    return path


def put_images(folder: Path, count: int = 4, boxes: bool = True) -> Path:
    """Write images as `<class>/<number>.png`, with boxes: a bright square in the upper left quarter, and for `dark` none."""
    kept = {}
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 60, (SIZE, SIZE, 3)).astype(np.uint8)
            if label == "bright":
                pixels[: SIZE // 2, : SIZE // 2] += 190
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
            kept[f"{label}/{number}.png"] = [0, 0, SIZE // 2, SIZE // 2]
    if boxes:
        (folder / "boxes.json").write_text(json.dumps(kept))
    return folder
