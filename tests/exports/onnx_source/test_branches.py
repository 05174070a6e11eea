"""Default layers of networks with several branches, and layouts that only look like maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.exports.onnx_files import CLASSES, Graph, stem
from tlcli.contract.errors import ExportError
from tlcli.exports.onnx_export import export_onnx
from tlcli.exports.onnx_source.input_settings import InputSettings

UNIT = InputSettings(input_range="0..1")


def tokens_of(g: Graph, count: int, name: str) -> str:
    """Embed `count` x `count` patches of the image, with a class token in front."""
    size = 16 // count
    patches = g.add("Conv", "x", g.normal(6, 3, size, size), strides=[size, size], name=f"{name}_patches")
    tokens = g.add("Transpose", g.add("Reshape", patches, np.array([0, 6, count * count])), perm=[0, 2, 1])
    shape = g.add("Concat", g.add("Shape", "x", start=0, end=1), np.array([1, 6]), axis=0)
    tokens = g.add("Concat", g.add("Expand", g.normal(1, 1, 6, scale=1), shape), tokens, axis=1)
    return g.add("Tanh", tokens, name=name)


def crossed(g: Graph, own: str, other: str) -> str:
    """Return the class token of one branch after its attention to the patches of the other, as in CrossViT."""
    query = g.add("Slice", own, np.array([0]), np.array([1]), np.array([1]))
    patches = g.add("Slice", other, np.array([1]), np.array([2**62]), np.array([1]))
    keys = g.add("MatMul", patches, g.normal(6, 6, scale=1))
    weights = g.add("Softmax", g.add("MatMul", query, g.add("Transpose", keys, perm=[0, 2, 1])), axis=-1)
    return g.add("Add", g.add("MatMul", weights, patches), query)


def two_branches(path: Path) -> Path:
    g = Graph()
    first, second = tokens_of(g, 8, "fine"), tokens_of(g, 4, "coarse")
    joined = g.add("Concat", crossed(g, first, second), crossed(g, second, first), axis=2)
    return g.save(path, g.add("Gemm", g.add("Flatten", joined), g.normal(12, CLASSES)))


def test_the_last_maps_of_both_branches_are_explained_and_fused(tmp_path: Path) -> None:
    exported = export_onnx(two_branches(tmp_path / "x.onnx"), name="m", repository=tmp_path, settings=UNIT, check_images=4)
    layers = [(layer.name, layer.height, layer.width) for layer in exported.description.layers]
    assert layers == [("fine", 8, 8), ("coarse", 4, 4)]
    assert {"gradcam", "gradcam@fine", "gradcam@coarse"} <= set(exported.parity.maps)
    assert max(exported.parity.maps.values()) < 1e-4


def test_one_branch_can_be_named(tmp_path: Path) -> None:
    path = two_branches(tmp_path / "x.onnx")
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, layers=["coarse"], check_images=2)
    assert [layer.name for layer in exported.description.layers] == ["coarse"]
    assert max(exported.parity.maps.values()) < 1e-4


def test_the_keys_of_an_attention_are_no_map(tmp_path: Path) -> None:
    """Heads of keys, `[N, 4, 8, 16]`, come out of the same transpose as a map in channels-last order."""
    g = Graph()
    rows = g.add("MatMul", g.add("Transpose", g.add("Reshape", stem(g), np.array([0, 6, 64])), perm=[0, 2, 1]), g.normal(6, 8, scale=1))
    heads = g.add("Reshape", g.add("MatMul", g.normal(16, 64, scale=1), rows), np.array([0, 16, 4, 2]))
    keys = g.add("Transpose", heads, perm=[0, 2, 3, 1], name="keys")
    logits = g.add("Gemm", g.add("Flatten", g.add("Sin", keys)), g.normal(128, CLASSES))
    path = g.save(tmp_path / "x.onnx", logits)
    with pytest.raises(ExportError, match=r"--cam-layer keys: .*(positions do not follow|without a height and a width)"):
        export_onnx(path, name="m", repository=tmp_path / "models", settings=UNIT, layers=["keys"])
