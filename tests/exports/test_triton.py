"""The configuration for Triton names the graph's inputs and outputs, no others, as they are."""

from __future__ import annotations

import re
from typing import Any

import pytest

from exports.triton import config_pbtxt
from tests.exports.networks import Exports

KINDS = {"TYPE_UINT8": "tensor(uint8)", "TYPE_INT64": "tensor(int64)", "TYPE_BOOL": "tensor(bool)", "TYPE_FP32": "tensor(float)"}
TENSOR = re.compile(r'\{ name: "([^"]+)", data_type: (\w+), dims: \[ ([-\d, ]+) \](, optional: true)? \}')

CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "a layer": (("resnet18", "linear"), {}),
    "several": (("test_resnet", "mlp:16", "conv1.2", "layer2", "layer4"), {}),
    "any size": (("test_resnet", "linear"), {"dynamic_size": True}),
    "no maps": (("test_resnet", "linear"), {"methods": ()}),
    "none in the graph": (("test_resnet", "linear"), {"methods": ("eigencam", "scorecam")}),
}


@pytest.mark.parametrize("name", CASES)
def test_it_names_what_the_graph_has(name: str, exported: Exports) -> None:
    arguments, options = CASES[name]
    model = exported(*arguments, **options).model
    text = config_pbtxt(model.description)
    assert re.search(r"^max_batch_size: [1-9]\d*$", text, re.MULTILINE)
    assert 'backend: "onnxruntime"' in text
    assert text.count("{") == text.count("}")
    assert text.count("[") == text.count("]")
    inputs, outputs = text.split("output [")
    required = {value.name: value for value in model.session.get_inputs()}
    optional = {value.name: value for value in model.session.get_overridable_initializers()}
    there = {value.name: value for value in model.session.get_outputs()}

    named = {found[0]: found for found in TENSOR.findall(inputs)}
    assert len(named) == len(TENSOR.findall(inputs)) == inputs.count("name:") - 1
    assert named.keys() == {*required, *optional}
    assert {name for name in named if named[name][3]} == optional.keys()
    answered = {found[0]: found for found in TENSOR.findall(outputs)}
    assert len(answered) == len(TENSOR.findall(outputs)) == outputs.count("name:")
    assert answered.keys() == there.keys()
    assert not any(found[3] for found in answered.values())

    for value in (*required.values(), *optional.values(), *there.values()):
        _, kind, dims, _ = {**named, **answered}[value.name]
        assert KINDS[kind] == value.type, value.name
        sizes = [int(one) for one in dims.split(",")]
        assert len(sizes) == len(value.shape) - 1, f"{value.name}: Triton adds the batch's dimension"
        for size, given in zip(sizes, value.shape[1:], strict=True):
            assert size == (given if isinstance(given, int) else -1), value.name
