"""Plain graphs: the values of the graph with optional inputs, from plain operators alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.helpers.exports.small_networks import Case, Exports, blobs
from tlcli.contract.errors import ExportError, RequestError
from tlcli.contract.maps.method_names import COSTLY
from tlcli.contract.model.description import Plain
from tlcli.contract.model.onnx_model import Model
from tlcli.exports.parity import MAPS_TOLERANCE, MAPS_TOLERANCES
from tlcli.exports.rewrite.plain_graph import make_plain

CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "pooled and linear": (("test_resnet", "linear"), {}),
    "hidden layers": (("test_resnet", "mlp:16"), {}),
    "in the middle, several layers": (("test_resnet", "mlp:16", "conv1.2", "layer2", "layer4"), {}),
    "any size": (("test_resnet", "linear"), {"dynamic_size": True}),
}
FORMS = (Plain(), Plain(classes="top"), Plain(batch=2, explained=2), Plain(batch=4, classes="top"), Plain(explained=1))
TRIED = [
    pytest.param(
        name, form, id=f"{name}, {form}", marks=[pytest.mark.slow] if name in ("in the middle, several layers", "any size") else []
    )
    for name in CASES
    for form in FORMS
    if name != "any size" or form.batch is None  # the export refuses a fixed batch of images of any size
]
TARGETS = np.array([[0, -1, -2], [1, 2, 3], [-1, -3, 4]])


@pytest.mark.parametrize(("name", "form"), TRIED)
def test_the_values_of_the_graph_with_optional_inputs(name: str, form: Plain, exported: Exports) -> None:
    """Three images and three classes: fixed shapes are padded and split."""
    arguments, options = CASES[name]
    case = exported(*arguments, **options)
    plain = case.plain(form)
    maps = plain.description.graph_maps
    others = {*COSTLY, "finercam"}
    assert set(maps) >= {name for name in case.model.description.graph_maps if name.partition("@")[0] not in others}
    targets = TARGETS if form.classes == "input" else [-1]
    there, here = (model.run(blobs(3), targets, maps) for model in (plain, case.model))
    np.testing.assert_array_equal(there.classes, here.classes)
    np.testing.assert_allclose(there.logits, here.logits, atol=1e-6)
    for name in maps:
        assert there.maps[name].shape == here.maps[name].shape
        apart = np.abs(there.maps[name] - here.maps[name]).max() / np.abs(here.maps[name]).max()
        assert apart <= MAPS_TOLERANCES.get(name.partition("@")[0], MAPS_TOLERANCE) / 10, name
    np.testing.assert_array_equal(plain.run(blobs(3)).scores, there.scores)


@pytest.mark.parametrize(("name", "form"), TRIED)
def test_every_operator_is_plain_and_every_input_required(name: str, form: Plain, exported: Exports) -> None:
    arguments, options = CASES[name]
    model = exported(*arguments, **options).plain(form)
    graph = onnx.load(str(model.path)).graph
    assert not [node for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    kinds = {node.op_type for node in graph.node}
    assert kinds.isdisjoint({"If", "Loop", "Scan", "Einsum", "Range"})
    if form.batch is not None:
        assert "Shape" not in kinds
    assert [value.name for value in graph.input] == (["images", "targets"] if form.classes == "input" else ["images"])
    assert {value.name for value in graph.input}.isdisjoint(weight.name for weight in graph.initializer)
    assert [value.name for value in graph.output] == ["scores", "logits", "classes", *model.description.graph_maps]


def test_shapes_are_fixed_on_request(exported: Exports) -> None:
    model = exported("test_resnet", "linear").plain(Plain(batch=2, explained=3))
    assert [value.shape for value in model.session.get_inputs()] == [[2, 64, 96, 3], [2, 3]]
    shapes = {value.name: value.shape for value in model.session.get_outputs()}
    assert (shapes["scores"], shapes["classes"], shapes["gradcam"]) == ([2, 5], [2, 3], [2, 3, 2, 3])


def test_ablation_cam_without_a_loop_behind_a_linear_layer_only(exported: Exports) -> None:
    assert "ablationcam" in exported("test_resnet", "linear").plain(Plain()).description.graph_maps
    case = exported("test_resnet", "mlp:16")
    assert "ablationcam" not in case.plain(Plain()).description.graph_maps


def test_what_a_plain_graph_cannot_do_is_refused(exported: Exports) -> None:
    case = exported("test_resnet", "linear")
    top = case.plain(Plain(classes="top"))
    with pytest.raises(RequestError, match="explains only the top-ranked class"):
        top.run(blobs(1), [2], ["gradcam"])
    assert top.run(blobs(1), [-1, -1], ["gradcam"]).maps["gradcam"].shape == (1, 2, 2, 3)
    with pytest.raises(RequestError, match="explains logits only"):
        case.plain(Plain()).run(blobs(1), [2], ["gradcam"], softmax=True)
    with pytest.raises(RequestError, match="has no output features"):
        case.plain(Plain()).run(blobs(1), [2], evidence=["features"])


def test_loops_are_refused(exported: Exports) -> None:
    case = exported("test_resnet", "mlp:16")
    with pytest.raises(ExportError, match="ablationcam needs a loop"):
        make_plain(case.flat(), Plain(), ["ablationcam"], {})
    flat = case.flat()
    branch = helper.make_node("If", ["true"], ["decided"], then_branch=_same("a"), else_branch=_same("b"))
    flat.graph.initializer.append(helper.make_tensor("true", TensorProto.BOOL, [], [True]))
    for node in flat.graph.node:
        node.input[:] = ["decided" if name == "images" else name for name in node.input]
    flat.graph.node.insert(0, branch)
    with pytest.raises(ExportError, match="operators If, which a plain graph cannot contain"):
        make_plain(flat, Plain(), ["gradcam"], {})


def _same(name: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(name, TensorProto.UINT8, [None] * 4)
    return helper.make_graph([helper.make_node("Identity", ["images"], [name])], name, [], [output])


def test_the_first_class_is_the_first_of_equal_ones(exported: Exports) -> None:
    """TopK and ArgMax choose the same of two equal logits."""
    case = exported("test_resnet", "linear")
    plain = [_with_equal_logits(case, form) for form in (Plain(), Plain(classes="top"))]
    first, second = (model.run(blobs(2), [-1], ["gradcam"]) for model in plain)
    assert np.ptp(first.logits) == 0
    assert first.classes is not None
    np.testing.assert_array_equal(first.classes, 0)
    np.testing.assert_array_equal(second.classes, 0)


def _with_equal_logits(case: Case, form: Plain) -> Model:
    model = case.plain(form, "equal")
    proto = onnx.load(str(model.path))
    for weight in proto.graph.initializer:
        if weight.dims[:1] == [5]:
            weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros(weight.dims, np.float32), weight.name))
    onnx.save(proto, str(model.path))
    return Model.open(model.path, "cpu")
