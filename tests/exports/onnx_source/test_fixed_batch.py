"""Files for a fixed number of images: the export makes them take any number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from tests.exports.onnx_source.test_tokens import NETWORKS, network_of
from tests.exports.onnx_source.test_torchvision_files import write
from tests.helpers.exports.onnx_autograd import OnnxReference
from tests.helpers.exports.onnx_files import CLASSES, SIZE, Graph, explain, head, stem
from tests.helpers.exports.small_networks import blobs
from tlcli.contract.errors import ExportError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.exports.onnx_export import export_onnx
from tlcli.exports.onnx_source.image_input import ImageInput
from tlcli.exports.onnx_source.input_settings import InputSettings

UNIT = InputSettings(input_range="0..1")
Body = Callable[[Graph, str, int], str]


def reshaped(g: Graph, x: str, batch: int) -> str:
    tokens = g.add("Transpose", g.add("Reshape", x, np.array([batch, 6, 64])), perm=[0, 2, 1])
    heads = g.add("Transpose", g.add("Reshape", tokens, np.array([batch, 64, 2, 3])), perm=[0, 2, 1, 3])
    rows = g.add("Tanh", g.add("Reshape", heads, np.array([batch * 2, 64, 3])))
    return head(g, g.add("Reshape", rows, np.array([batch, 6, 8, 8])))


def class_tokens(g: Graph, x: str, batch: int) -> str:
    """A class token, repeated for the images when the file was written, and an embedding with rows for each image."""
    tokens = g.add("Transpose", g.add("Reshape", x, np.array([batch, 6, 64])), perm=[0, 2, 1])
    token = np.repeat(g.normal(1, 1, 6, scale=1), batch, 0)
    tokens = g.add("Concat", token, tokens, axis=1)
    tokens = g.add("Tanh", g.add("Add", tokens, np.repeat(g.normal(1, 65, 6, scale=1), batch, 0)))
    mixed = g.add("MatMul", g.normal(2, 65), tokens)
    return g.add("Gemm", g.add("Flatten", mixed), g.normal(12, CLASSES))


def resized(g: Graph, x: str, batch: int) -> str:
    y = g.add("Resize", x, "", "", np.array([batch, 6, 4, 4]), mode="linear")
    y = g.add("Expand", g.add("Sigmoid", g.add("ReduceMax", y, axes=[1], keepdims=1)), np.array([batch, 6, 4, 4]))
    return g.add("Gemm", g.add("Flatten", y), g.normal(96, CLASSES))


def recurrent(g: Graph, x: str, batch: int) -> str:
    """An LSTM over the rows, whose initial states are zeros for the images, before the explained layer."""
    rows = g.add("Transpose", g.add("ReduceMax", x, axes=[1], keepdims=0), perm=[1, 0, 2])
    states = np.zeros((1, batch, 4), dtype=np.float32)
    y = g.add("LSTM", rows, g.normal(1, 16, 8, scale=1), g.normal(1, 16, 4, scale=1), "", "", states, states, hidden_size=4)
    y = g.add("Transpose", g.add("Squeeze", y, np.array([1])), perm=[1, 2, 0])
    y = g.add("Conv", g.add("Unsqueeze", y, np.array([1])), g.normal(6, 1, 3, 3), name="late")
    return head(g, g.add("Tanh", y))


@pytest.mark.parametrize("batch", [1, 2, 6, 8])
@pytest.mark.parametrize("body", [reshaped, class_tokens, resized, recurrent])
def test_it_takes_any_number_of_images(body: Body, batch: int, tmp_path: Path) -> None:
    g = Graph()
    path = g.save(tmp_path / "x.onnx", body(g, stem(g), batch), shape=(batch, 3, SIZE, SIZE))
    layer = "late" if body is recurrent else "layer"
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, layers=[layer], check_images=3)
    assert exported.parity.logits < 1e-5
    assert max(exported.parity.maps.values()) < 1e-4


@pytest.mark.parametrize(("name", "batch"), [("vit", 3), ("torchvision vit", 4), ("swin 2", 2)])
def test_maps_of_transformers_are_those_of_autograd(name: str, batch: int, tmp_path: Path) -> None:
    network: nn.Module = network_of(name)
    size = NETWORKS[name][2]
    path = write(network, tmp_path / "x.onnx", dynamo=False, batch=batch, size=size, fixed=True)
    _, model = explain(path, tmp_path / "model.onnx", image=ImageInput(Preprocessing(height=size[0], width=size[1]), channels_last=False))
    assert max(OnnxReference(network, model).distances(blobs(3, *size)).values()) < 1e-4


def test_images_that_are_compared_with_each_other_are_refused(tmp_path: Path) -> None:
    g = Graph()
    rows = g.add("Flatten", stem(g))
    centred = g.add("Sub", rows, g.add("ReduceMean", rows, axes=[0], keepdims=1))
    x = g.add("MatMul", g.normal(4, 4), centred)
    path = g.save(tmp_path / "x.onnx", g.add("Gemm", x, g.normal(384, CLASSES)), shape=(4, 3, SIZE, SIZE))
    with pytest.raises(ExportError, match=r"takes 4 images at a time .*: export it again with a dynamic batch size") as error:
        export_onnx(path, name="m", repository=tmp_path / "models", settings=UNIT)
    assert "\n" not in str(error.value)
