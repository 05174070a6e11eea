"""Outputs in branches: a graph made by hand, run with every choice of them."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tlcli.contract.model.description import IMAGES, WANTED
from tlcli.exports.rewrite.conditional_outputs import Switch, gate

SWITCHES = (
    Switch("evidence", (0, 3), default=False),
    Switch("map", (0, 3), default=True, common=True),
    Switch("other", (0, 0, 3), default=False),
    Switch("summary", (0,), default=True),
)
NAMES = tuple(switch.name for switch in SWITCHES)

NEEDS = {"evidence": set[str](), "map": {"evidence"}, "other": {"evidence", "map"}, "summary": set[str]()}
"""`other` is computed from `map`, that from `evidence`: they are then answered too."""


def session() -> onnxruntime.InferenceSession:
    """score = relu(images); kinds = argmax; evidence = 3 score; map = evidence + score; other = [map, evidence]; summary = sum(score^2)."""
    nodes = [
        helper.make_node("Relu", [IMAGES], ["score"], name="a"),
        helper.make_node("ArgMax", ["score"], ["kinds"], name="b", axis=1, keepdims=1),
        helper.make_node("Mul", ["score", "three"], ["evidence"], name="c"),
        helper.make_node("Add", ["evidence", "score"], ["map"], name="d"),
        helper.make_node("Unsqueeze", ["map", "first"], ["map_row"], name="e"),
        helper.make_node("Unsqueeze", ["evidence", "first"], ["evidence_row"], name="f"),
        helper.make_node("Concat", ["map_row", "evidence_row"], ["other"], name="g", axis=0),
        helper.make_node("Mul", ["score", "score"], ["squares"], name="h"),
        helper.make_node("ReduceSum", ["squares", "second"], ["summary"], name="i", keepdims=0),
    ]
    constants = {"three": np.float32(3), "first": np.array([0]), "second": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, ["N", 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("kinds", TensorProto.INT64, [None, None]),
            *(helper.make_tensor_value_info(switch.name, TensorProto.FLOAT, [None] * len(switch.empty)) for switch in SWITCHES),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    gate(graph, SWITCHES, {"kinds": (0, 0)})
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def gated() -> onnxruntime.InferenceSession:
    return session()


VALUES = np.array([[1.0, -2.0, 3.0], [4.0, 0.5, -1.0]], dtype=np.float32)


def expected() -> dict[str, np.ndarray]:
    score = np.maximum(VALUES, 0)
    return {
        "score": score, "kinds": score.argmax(1)[:, None], "evidence": 3 * score, "map": 4 * score,
        "other": np.stack([4 * score, 3 * score]), "summary": (score**2).sum(1),
    }  # fmt: skip


def check(answer: dict[str, np.ndarray], wanted: set[str]) -> None:
    computed = wanted.union(*(NEEDS[name] for name in wanted))
    for name, values in expected().items():
        if name == "score" or name in computed or (name == "kinds" and wanted):
            np.testing.assert_array_equal(answer[name], values, err_msg=name)
        elif name == "kinds":
            assert answer[name].shape == (0, 0)
        else:
            (empty,) = (switch.empty for switch in SWITCHES if switch.name == name)
            assert answer[name].shape == empty, name


def run(gated: onnxruntime.InferenceSession, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [value.name for value in gated.get_outputs()]
    return dict(zip(names, gated.run(None, {IMAGES: VALUES, **feed}), strict=True))


@pytest.mark.parametrize("choice", list(itertools.product([False, True], repeat=len(SWITCHES))), ids=str)
def test_what_is_wanted_is_computed_with_what_it_needs_and_no_more(choice: tuple[bool, ...], gated: onnxruntime.InferenceSession) -> None:
    wanted = {name for name, asked in zip(NAMES, choice, strict=True) if asked}
    check(run(gated, {WANTED: np.array([choice])}), wanted)


def test_any_row_may_want_it(gated: onnxruntime.InferenceSession) -> None:
    rows = np.zeros((3, len(SWITCHES)), dtype=bool)
    rows[0, NAMES.index("summary")] = rows[2, NAMES.index("map")] = True
    check(run(gated, {WANTED: rows}), {"summary", "map"})


def test_left_out_the_defaults_are_computed(gated: onnxruntime.InferenceSession) -> None:
    check(run(gated, {}), {switch.name for switch in SWITCHES if switch.default})
    (value,) = [value for value in gated.get_overridable_initializers() if value.name == WANTED]
    assert value.type == "tensor(bool)"


def test_the_outputs_keep_their_order(gated: onnxruntime.InferenceSession) -> None:
    assert [value.name for value in gated.get_outputs()] == ["score", "kinds", *NAMES]
