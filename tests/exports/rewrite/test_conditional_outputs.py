"""Conditional outputs of a graph written by hand: the plan of their branches, and the answers to every choice of them."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from tlcli.contract.model.description import IMAGES, WANTED
from tlcli.exports.rewrite.conditional_outputs import make_conditional
from tlcli.exports.rewrite.conditional_plan import ConditionalPlan, Switch, plan_conditions

SWITCHES = (
    Switch("evidence", (0, 3), default=False),
    Switch("map", (0, 3), default=True, common=True),
    Switch("other", (0, 0, 3), default=False),
    Switch("summary", (0,), default=True),
)
NAMES = tuple(switch.name for switch in SWITCHES)

NEEDS = {"evidence": set[str](), "map": {"evidence"}, "other": {"evidence", "map"}, "summary": set[str]()}
"""`other` is computed from `map`, and that from `evidence`: a request for one returns the others too."""


def network() -> list[NodeProto]:
    """Return a small network.

    score = relu(images); kinds = argmax(score); evidence = 3 score; map = evidence + score; other = [map, evidence];
    summary = sum(score^2).
    """
    return [
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


def session() -> onnxruntime.InferenceSession:
    """Return a session of the network whose switches are conditional."""
    constants = {"three": np.float32(3), "first": np.array([0]), "second": np.array([1])}
    graph = helper.make_graph(
        network(),
        "graph",
        [helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, ["N", 3])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info("kinds", TensorProto.INT64, [None, None]),
            *(helper.make_tensor_value_info(switch.name, TensorProto.FLOAT, [None] * len(switch.empty)) for switch in SWITCHES),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    make_conditional(graph, SWITCHES, {"kinds": (0, 0)})
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def conditional() -> onnxruntime.InferenceSession:
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


def run(conditional: onnxruntime.InferenceSession, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [value.name for value in conditional.get_outputs()]
    return dict(zip(names, conditional.run(None, {IMAGES: VALUES, **feed}), strict=True))


@pytest.mark.parametrize("choice", list(itertools.product([False, True], repeat=len(SWITCHES))), ids=str)
def test_what_is_wanted_is_computed_with_what_it_needs_and_no_more(
    choice: tuple[bool, ...], conditional: onnxruntime.InferenceSession
) -> None:
    wanted = {name for name, asked in zip(NAMES, choice, strict=True) if asked}
    check(run(conditional, {WANTED: np.array([choice])}), wanted)


def test_any_row_may_want_it(conditional: onnxruntime.InferenceSession) -> None:
    rows = np.zeros((3, len(SWITCHES)), dtype=bool)
    rows[0, NAMES.index("summary")] = rows[2, NAMES.index("map")] = True
    check(run(conditional, {WANTED: rows}), {"summary", "map"})


def test_left_out_the_defaults_are_computed(conditional: onnxruntime.InferenceSession) -> None:
    check(run(conditional, {}), {switch.name for switch in SWITCHES if switch.default})
    (value,) = [value for value in conditional.get_overridable_initializers() if value.name == WANTED]
    assert value.type == "tensor(bool)"


def test_the_outputs_keep_their_order(conditional: onnxruntime.InferenceSession) -> None:
    assert [value.name for value in conditional.get_outputs()] == ["score", "kinds", *NAMES]


def names_in(indices: frozenset[int]) -> str:
    return "".join(node.name for index, node in enumerate(network()) if index in indices)


@pytest.fixture(scope="module")
def plan() -> ConditionalPlan:
    return plan_conditions(network(), SWITCHES, required=["score"], together=["kinds"])


def test_each_node_has_its_scope(plan: ConditionalPlan) -> None:
    assert names_in(plan.always) == "a"
    assert names_in(plan.shared) == "b"
    assert {name: names_in(indices) for name, indices in plan.own.items()} == {
        "evidence": "c", "map": "d", "other": "efg", "summary": "hi",
    }  # fmt: skip


def test_the_plan_knows_which_switches_take_which(plan: ConditionalPlan) -> None:
    assert plan.takes == {"evidence": (), "map": ("evidence",), "other": ("evidence", "map"), "summary": ()}
    assert set(plan.users("evidence")) == {"map", "other"}
    assert plan.users("summary") == []
    assert plan.in_order(["other", "summary"]) == ["evidence", "map", "other", "summary"]


def sizes_of_images(last: str) -> list[NodeProto]:
    """Return nodes that compute map = images * f(shape of images) with the operator `last`."""
    return [
        helper.make_node("Identity", [IMAGES], ["score"], name="score"),
        helper.make_node("Shape", [IMAGES], ["shape"], name="shape"),
        helper.make_node(last, ["shape"], ["factor"], name="factor"),
        helper.make_node("Mul", [IMAGES, "factor"], ["map"], name="map"),
    ]


@pytest.mark.parametrize(("last", "shared"), [("Cast", {1, 2}), ("DequantizeLinear", {1})])
def test_sizes_are_computed_once_for_all_branches_and_int8_weights_in_their_own(last: str, shared: set[int]) -> None:
    plan = plan_conditions(sizes_of_images(last), [Switch("map", (0, 3), default=True, common=True)], ["score"], [])
    assert plan.shared == shared
    assert plan.own["map"] == {1, 2, 3} - shared


def test_a_node_of_two_switches_is_in_both_branches() -> None:
    nodes = [
        helper.make_node("Identity", [IMAGES], ["score"], name="score"),
        helper.make_node("Relu", [IMAGES], ["common"], name="common"),
        helper.make_node("Neg", ["common"], ["first"], name="first"),
        helper.make_node("Abs", ["common"], ["second"], name="second"),
    ]
    plan = plan_conditions(nodes, [Switch("first", (0, 3), default=True), Switch("second", (0, 3), default=True)], ["score"], [])
    assert plan.own == {"first": {1, 2}, "second": {1, 3}}
    assert plan.shared == frozenset()
