"""Triton takes the exported file with the configurations beside it: read by Triton's own schema and held against the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format

from tests.helpers.exports.small_networks import Case, Exports, blobs
from tests.helpers.exports.triton_rules import Graph, refusal
from tlcli.contract.model.description import METADATA_KEY, Description, Plain
from tlcli.exports.triton_config import batching_pbtxt, config_pbtxt, triton_files

model_config_pb2: Any = pytest.importorskip("tritonclient.grpc.model_config_pb2")

CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "a layer": (("resnet18", "linear"), {}),
    "several": (("test_resnet", "mlp:16", "conv1.2", "layer2", "layer4"), {}),
    "any size": (("test_resnet", "linear"), {"dynamic_size": True}),
    "no maps": (("test_resnet", "linear"), {"methods": ()}),
    "none in the graph": (("test_resnet", "linear"), {"methods": ("eigencam", "scorecam")}),
}
OLDEST_ONNX_RUNTIME = {"ir_version": 10, "opset": 21}
"""Highest IR version of ONNX Runtime 1.20, which is in the Triton that deploy/kserve names."""


def read(text: str) -> Any:
    """Parse a configuration.

    Raises:
        google.protobuf.text_format.ParseError: the text is no `ModelConfig`.
    """
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, exported: Exports) -> Case:
    arguments, options = CASES[request.param]
    return exported(*arguments, **options)


def names(tensors: Any) -> list[str]:
    return [one.name for one in tensors]


def test_the_whole_graph_is_offered(case: Case) -> None:
    config, graph = read(config_pbtxt(case.model.description)), Graph.read(str(case.model.path))
    assert (config.name, config.backend, config.max_batch_size) == (case.model.description.name, "onnxruntime", 0)
    assert not config.HasField("dynamic_batching")
    assert refusal(config, graph) == ""
    assert sorted(names(config.input)) == sorted([*graph.required, *graph.optional])
    assert {one.name for one in config.input if one.optional} == graph.optional.keys()
    assert sorted(names(config.output)) == sorted(graph.outputs)
    for one in config.input:  # more than Triton asks: what is open there is open here
        assert tuple(one.dims) == {**graph.required, **graph.optional}[one.name].dims


def test_what_comes_by_default_is_offered_in_batches(case: Case) -> None:
    config, graph = read(batching_pbtxt(case.model.description)), Graph.read(str(case.model.path))
    assert config.max_batch_size > 1
    assert config.HasField("dynamic_batching")
    assert refusal(config, graph) == ""
    assert names(config.input) == list(graph.required) == ["images"]
    outputs = list(graph.outputs)
    size = case.model.description.preprocessing
    given = dict(zip(outputs, case.model.session.run(outputs, {"images": blobs(2, size.height, size.width)}), strict=True))
    large = {layer.gradients for layer in case.model.description.layers}  # which maps may need, and nobody asks Triton for
    assert sorted(names(config.output)) == sorted(name for name in outputs if given[name].size and name not in large)


def test_merged_requests_get_what_each_gets_alone(case: Case) -> None:
    """Triton puts the requests' images one behind the other, and cuts every output along its first dimension."""
    outputs = names(read(batching_pbtxt(case.model.description)).output)
    size = case.model.description.preprocessing
    images = blobs(4, size.height, size.width)
    merged = case.model.session.run(outputs, {"images": images})
    for start, stop in ((0, 1), (1, 3), (3, 4)):
        alone = case.model.session.run(outputs, {"images": images[start:stop]})
        for name, together, single in zip(outputs, merged, alone, strict=True):
            largest = np.abs(single).max()
            np.testing.assert_allclose(together[start:stop], single, atol=1e-4 * largest, rtol=1e-4, err_msg=name)


def test_targets_merge_if_each_image_has_its_row_and_not_otherwise(exported: Exports) -> None:
    """`targets` is no input of the batching configuration since one row may serve all images of a request, besides Triton's refusal."""
    model = exported("test_resnet", "linear").model
    images = blobs(3)
    rows = [np.array([[2], [0]]), np.array([[-1]])]  # of a request of two images, and of one of one
    merged = model.session.run(["classes", "gradcam"], {"images": images, "targets": np.concatenate(rows)})
    for targets, start, stop in ((rows[0], 0, 2), (rows[1], 2, 3)):
        alone = model.session.run(["classes", "gradcam"], {"images": images[start:stop], "targets": targets})
        np.testing.assert_array_equal(merged[0][start:stop], alone[0])
        np.testing.assert_allclose(merged[1][start:stop], alone[1], atol=1e-5)
    a_row_a_request = np.array([[2], [-1]])
    classes = model.session.run(["classes"], {"images": images, "targets": a_row_a_request})[0]
    assert classes[0, 0] == 2
    assert classes[1, 0] != 2, "the second image of the first request has the second request's class"


def test_the_configuration_of_before_is_refused(exported: Exports) -> None:
    """Triton loads no model with both optional inputs and batching."""
    model = exported("test_resnet", "linear").model
    text = config_pbtxt(model.description).replace("max_batch_size: 0", "max_batch_size: 64").replace("dims: [ -1, ", "dims: [ ")
    assert "not supported for models that support batching" in refusal(read(text), Graph.read(str(model.path)))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name: "targets", data_type: TYPE_INT64', 'name: "targets", data_type: TYPE_INT32', "TYPE_INT64"),
        ('name: "gradcam"', 'name: "grad_cam"', "unexpected 'grad_cam'"),
        ("dims: [ -1, 64, 96, 3 ]", "dims: [ -1, 96, 64, 3 ]", "shape"),
        ("dims: [ -1, 5 ]", "dims: [ -1, -1 ]", "shape"),
        (', optional: true', "", "expects 4 inputs"),
    ],
)  # fmt: skip
def test_the_rules_see_what_is_wrong(exported: Exports, old: str, new: str, problem: str) -> None:
    model = exported("test_resnet", "linear").model
    text = config_pbtxt(model.description)
    assert old in text
    assert problem in refusal(read(text.replace(old, new)), Graph.read(str(model.path)))


def test_a_misspelt_field_is_no_configuration(exported: Exports) -> None:
    text = config_pbtxt(exported("test_resnet", "linear").model.description)
    with pytest.raises(text_format.ParseError, match="max_batchsize"):
        read(text.replace("max_batch_size", "max_batchsize"))


@pytest.mark.parametrize("make", [config_pbtxt, batching_pbtxt])
def test_clients_find_the_description_in_it(exported: Exports, make: Callable[[Description], str]) -> None:
    labels = ('a "quoted" label', "back\\slash", "Kätzchen", "猫", "two\nlines")
    description = exported("test_resnet", "linear").model.description.model_copy(update={"labels": labels})
    text = make(description)
    assert text.isascii()
    assert Description.from_metadata({METADATA_KEY: read(text).parameters[METADATA_KEY].string_value}, "config.pbtxt") == description


def test_older_onnx_runtimes_read_the_file(case: Case) -> None:
    model = onnx.load(str(case.model.path), load_external_data=False)
    assert model.ir_version <= OLDEST_ONNX_RUNTIME["ir_version"]
    assert {one.domain for one in model.opset_import} == {""}
    assert model.opset_import[0].version <= OLDEST_ONNX_RUNTIME["opset"]


@pytest.mark.parametrize(
    ("plain", "inputs"),
    [
        (Plain(), {"images": [64, 96, 3], "targets": [-1]}),
        (Plain(explained=2), {"images": [64, 96, 3], "targets": [2]}),
        (Plain(classes="top"), {"images": [64, 96, 3]}),
        (Plain(batch=3, explained=1), {"images": [3, 64, 96, 3], "targets": [3, 1]}),
    ],
    ids=str,
)
def test_requests_with_maps_are_merged_for_a_plain_graph(plain: Plain, inputs: dict[str, list[int]], exported: Exports) -> None:
    model = exported("test_resnet", "mlp:16").plain(plain)
    files = triton_files(model.description)
    assert [*files] == ["config.pbtxt"]
    config, graph = read(files["config.pbtxt"]), Graph.read(str(model.path))
    assert refusal(config, graph) == ""
    assert {one.name: [*one.dims] for one in config.input} == inputs
    assert not any(one.optional for one in config.input)
    assert sorted(names(config.output)) == sorted(graph.outputs)
    assert "gradcam" in names(config.output)
    assert config.max_batch_size == (64 if plain.batch is None else 0)
    assert config.HasField("dynamic_batching") == (plain.batch is None)
    assert Description.from_metadata({METADATA_KEY: config.parameters[METADATA_KEY].string_value}, "here") == model.description
