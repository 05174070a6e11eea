"""Files in the forms of common exporters: the export finds logits, layer and layout, and its own check passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.helpers.exports.onnx_files import CLASSES, FORMS, SIZE, Graph, explain, head, stem
from tlcli.contract.errors import ExportError
from tlcli.contract.model.onnx_model import Model
from tlcli.exports.onnx_export import export_onnx
from tlcli.exports.onnx_source.input_settings import InputSettings

UNIT = InputSettings(input_range="0..1")
ALL = ("gradcam", "gradcam_plus_plus", "xgradcam", "hirescam", "gradcam_elementwise", "layercam", "fem", "ablationcam")


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_exported_and_agrees_with_finite_differences(form: str, tmp_path: Path) -> None:
    path = FORMS[form](tmp_path / f"{form}.onnx")
    exported = export_onnx(path, name=form, repository=tmp_path / "models", settings=UNIT, check_images=4)
    parity = exported.parity
    assert parity.logits < 1e-5
    assert set(parity.maps) >= set(ALL)
    assert max(parity.maps.values()) < 1e-4
    model = Model.open(exported.path, device="cpu")
    answer = model.run(images(), np.array([[0, 2], [1, 1], [4, 3]]), model.description.graph_maps)
    alone = [model.run(images()[row : row + 1], np.array([[0, 2], [1, 1], [4, 3]])[row : row + 1], ALL) for row in range(3)]
    for method in ALL:
        np.testing.assert_allclose(answer.maps[method], np.concatenate([one.maps[method] for one in alone]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("form", "layer", "pooled"),
    [
        ("keras", "last", True),
        ("keras-mobilenet-v3", "activation", False),
        ("ultralytics", "last", True),
        ("paddle", "last", True),
        ("custom-vision", "v1", True),
    ],
)
def test_the_last_spatial_value_is_the_layer(form: str, layer: str, pooled: bool, tmp_path: Path) -> None:
    explained, model = explain(FORMS[form](tmp_path / "form.onnx"), tmp_path / "model.onnx")
    assert [value.name for value in model.description.layers] == [layer]
    assert explained.pooled_linear is pooled
    assert ("cam" in model.description.methods) is pooled


def test_labels_come_from_the_file(tmp_path: Path) -> None:
    for form, first in (("ultralytics", "thing 0"), ("custom-vision", "label 0")):
        path = FORMS[form](tmp_path / f"{form}.onnx")
        exported = export_onnx(path, name=form, repository=tmp_path, settings=UNIT, check_images=1, methods=())
        assert exported.description.labels[0] == first
        assert exported.description.layers == ()


def test_a_layer_in_the_middle_off_the_main_path(tmp_path: Path) -> None:
    path = FORMS["ultralytics"](tmp_path / "form.onnx")
    for layer in ("v5", "stem"):  # a convolution inside of a residual branch, and the first one
        exported = export_onnx(path, name=layer, repository=tmp_path, settings=UNIT, layers=[layer], check_images=4)
        assert max(exported.parity.maps.values()) < 1e-4


def test_several_layers_are_fused(tmp_path: Path) -> None:
    path = FORMS["paddle"](tmp_path / "form.onnx")
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, layers=["last", "conv2d_0.tmp_0"], check_images=4)
    assert [layer.name for layer in exported.description.layers] == ["conv2d_0.tmp_0", "last"]
    assert {"gradcam@last", "gradcam@conv2d_0.tmp_0", "gradcam"} <= set(exported.parity.maps)
    assert max(exported.parity.maps.values()) < 1e-4


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 15, 18, 20, 21, 23])
def test_every_opset(opset: int, tmp_path: Path) -> None:
    g = Graph()
    x = g.add("Relu", stem(g))
    bounds = {"min": 0.1, "max": 2.0} if opset < 11 else {}
    x = g.add("Clip", x, *(() if bounds else (np.float32(0.1), np.float32(2))), **bounds)
    x = g.add("Pad", x, pads=[0, 0, 1, 1, 0, 0, 1, 1]) if opset < 11 else g.add("Pad", x, np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    axes = np.array([2, 3])
    x = g.add("ReduceMean", x, axes, keepdims=1, name="pool") if opset >= 18 else g.add("ReduceMean", x, axes=[2, 3], keepdims=1)
    x = g.add("Squeeze", x, axes) if opset >= 13 else g.add("Squeeze", x, axes=[2, 3])
    x = g.add("Dropout", x)
    x = g.add("Gemm", x, g.normal(CLASSES, 6), g.normal(CLASSES), transB=1)
    path = g.save(tmp_path / "x.onnx", g.add("Softmax", x, axis=1), opset=opset)
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, check_images=2)
    assert exported.parity.logits < 1e-5
    assert max(exported.parity.maps.values()) < 1e-4


def test_functions_branches_and_old_weights_among_the_inputs(tmp_path: Path) -> None:
    """A function of its own, an `If` on a constant, and weights listed as inputs, as files of IR version 3 have them."""
    g = Graph()
    x = g.add("Twice", stem(g), domain="own")
    branches = {}
    for branch, operator in (("then_branch", "Relu"), ("else_branch", "Neg")):
        node, value = onnx.helper.make_node(operator, [x], [branch]), onnx.helper.make_tensor_value_info(branch, 1, None)
        branches[branch] = onnx.helper.make_graph([node], branch, [], [value])
    x = g.add("If", np.array(True), name="chosen", **branches)
    path = g.save(tmp_path / "x.onnx", head(g, x))
    model = onnx.load(str(path))
    double = onnx.helper.make_node("Add", ["a", "a"], ["b"])
    model.functions.append(onnx.helper.make_function("own", "Twice", ["a"], ["b"], [double], [onnx.helper.make_opsetid("", 17)]))
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    for weight in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    onnx.save(model, str(path))
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, check_images=2)
    assert max(exported.parity.maps.values()) < 1e-4


def test_a_newer_ir_version_and_nodes_out_of_order(tmp_path: Path) -> None:
    """The onnx package writes the newest IR version by default. ONNX Runtime takes nodes in any order, which some converters use."""
    g = Graph()
    path = g.save(tmp_path / "x.onnx", head(g, g.add("Relu", stem(g), name="last")))
    model = onnx.load(str(path))
    model.ir_version = 14
    first = model.graph.node.pop(0)
    model.graph.node.append(first)
    onnx.save(model, str(path))
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, check_images=2)
    assert [layer.name for layer in exported.description.layers] == ["last"]
    assert exported.parity.logits < 1e-5


def test_a_batch_within_the_channels(tmp_path: Path) -> None:
    """A file for one image, with the channels in the place of the batch, and the batch behind them."""
    for number, (perm, shape) in enumerate((([0, 1, 2, 3], [6, 64]), ([1, 0, 2, 3], [6, 1, 64]))):
        g = Graph()
        x = g.add("Tanh", g.add("Reshape", g.add("Transpose", stem(g), perm=perm), np.array(shape)))
        x = x if number == 0 else g.add("Transpose", x, perm=[1, 0, 2])
        path = g.save(
            tmp_path / "x.onnx", g.add("Gemm", g.add("Reshape", x, np.array([1, 384])), g.normal(384, CLASSES)), shape=(1, 3, SIZE, SIZE)
        )
        exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, layers=["layer"], check_images=4)
        assert exported.parity.logits < 1e-5
        assert max(exported.parity.maps.values()) < 1e-4


def test_external_weights_are_read(tmp_path: Path) -> None:
    path = FORMS["keras"](tmp_path / "form.onnx")
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    exported = export_onnx(path, name="m", repository=tmp_path / "models", settings=UNIT, check_images=2)
    assert exported.parity.logits < 1e-5
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(Exception, match="weights are in another file"):
        export_onnx(path, name="m", repository=tmp_path / "models", settings=UNIT)


def test_probabilities_can_be_explained(tmp_path: Path) -> None:
    """The gradient of a probability is `p (g - sum_j p_j g_j)` for the gradients g of the logits."""
    for form in ("keras", "keras-mobilenet-v3"):
        _, model = explain(FORMS[form](tmp_path / "form.onnx"), tmp_path / "model.onnx")
        every = model.run(images(), list(range(CLASSES)), (), ["gradients"]).evidence["gradients"]
        answer = model.run(images(), [1, 3], (), ["gradients"], softmax=True)
        mean = np.einsum("nk,nkchw->nchw", answer.scores, every)
        for column, class_id in enumerate((1, 3)):
            expected = answer.scores[:, class_id, None, None, None] * (every[:, class_id] - mean)
            np.testing.assert_allclose(answer.evidence["gradients"][:, column], expected, atol=1e-6)


def recurrent(g: Graph, x: str) -> str:
    """As in Sequencer: an LSTM along the rows."""
    rows = g.add("Reshape", g.add("Transpose", x, perm=[3, 0, 2, 1]), np.array([8, -1, 6]))
    y = g.add("LSTM", rows, g.normal(1, 24, 6, scale=1), g.normal(1, 24, 6, scale=1), hidden_size=6, name="summed")
    y = g.add("Reshape", g.add("Squeeze", y, np.array([1])), np.array([8, -1, 8, 6]))
    return g.add("Transpose", y, perm=[1, 3, 2, 0])


def warped(g: Graph, x: str) -> str:
    grid = g.add("Tanh", g.add("Transpose", g.add("Conv", x, g.normal(2, 6, 1, 1)), perm=[0, 2, 3, 1]))
    return g.add("GridSample", x, grid, name="summed")


@pytest.mark.parametrize(("body", "name"), [(recurrent, "LSTM, a recurrent layer"), (warped, "GridSample, a warp by positions")])
def test_an_operator_without_a_rule_is_named(body: Callable[[Graph, str], str], name: str, tmp_path: Path) -> None:
    g = Graph()
    x = body(g, stem(g))
    path = g.save(tmp_path / "x.onnx", head(g, g.add("Relu", x, name="late")), opset=18)
    message = (
        rf"no gradient rule for {name} \(node_summed\), after layer: choose a layer behind it with --cam-layer, such as late,"
        r" or export .* \(--cam none\)"
    )
    with pytest.raises(ExportError, match=message):
        export_onnx(path, name="m", repository=tmp_path / "models", settings=UNIT, layers=["layer"])
    assert not (tmp_path / "models" / "m").exists()
    export_onnx(path, name="m", repository=tmp_path / "models", settings=UNIT, layers=["late"], check_images=1)


def test_an_operator_without_a_rule_and_no_layer_behind_it(tmp_path: Path) -> None:
    g = Graph()
    x = g.add("Hardmax", g.add("Flatten", stem(g)), name="summed")
    path = g.save(tmp_path / "x.onnx", g.add("Gemm", x, g.normal(384, CLASSES)))
    with pytest.raises(ExportError, match=r"Hardmax \(node_summed\), after layer: no layer behind it has a height and a width, or"):
        export_onnx(path, name="m", repository=tmp_path / "models", settings=UNIT)


def test_uint8_and_reversed_channels(tmp_path: Path) -> None:
    g = Graph()
    x = g.add("Cast", "x", to=1)
    x = g.add("Div", g.add("Transpose", x, perm=[0, 3, 1, 2]), np.float32(255))
    path = g.save(tmp_path / "x.onnx", head(g, stem(g, x)), shape=("N", SIZE, SIZE, 3), kind=onnx.TensorProto.UINT8)
    exported = export_onnx(path, name="m", repository=tmp_path, check_images=2)
    settings = InputSettings(input_range="0..1", channel_order="bgr")
    form = FORMS["keras"](tmp_path / "form.onnx")
    reversed_channels = export_onnx(form, name="r", repository=tmp_path, settings=settings, check_images=2)
    plain = export_onnx(form, name="p", repository=tmp_path, settings=UNIT, check_images=2)
    for one in (exported, reversed_channels, plain):
        assert max(one.parity.maps.values()) < 1e-4
    swapped = Model.open(plain.path, "cpu").run(np.ascontiguousarray(images()[..., ::-1])).logits
    np.testing.assert_allclose(Model.open(reversed_channels.path, "cpu").run(images()).logits, swapped, rtol=1e-5, atol=1e-6)


def test_a_scalar_that_is_computed_from_a_shape(tmp_path: Path) -> None:
    """A selection by a scalar removes an axis, so the scalar must stay one when it is folded."""
    g = Graph()
    x = g.add("Tanh", stem(g))
    last = g.add("Sub", g.add("Gather", g.add("Shape", x), np.array(1)), np.array(1))
    x = g.add("Gemm", g.add("Flatten", g.add("Gather", x, last, axis=1)), g.normal(64, CLASSES))
    path = g.save(tmp_path / "x.onnx", x)
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, layers=["layer"], check_images=2)
    assert max(exported.parity.maps.values()) < 1e-4
