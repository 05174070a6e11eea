"""The same file in OpenVINO: by default it returns scores and maps of the first class, equal to those of ONNX Runtime."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.helpers.exports.small_networks import Exports, blobs
from tlcli.contract.maps.method_names import COSTLY

openvino = pytest.importorskip("openvino")

CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "one linear layer on the mean": (("resnet18", "linear"), {}),
    "hidden layers": (("vgg16", "mlp:256"), {"mlp_ratio": 1 / 32}),
    "large shared weights, one of them square": (("vgg11", "original"), {"mlp_ratio": 1 / 4}),
    "square kernels and max pooling behind the layer": (("vgg11", "mlp:512", "features.14"), {}),
    "in the middle, several layers": (("test_resnet", "mlp:16", "conv1.2", "layer2", "layer4"), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_scores_and_maps(name: str, exported: Exports) -> None:
    arguments, options = CASES[name]
    model = exported(*arguments, **options).model
    compiled = openvino.Core().compile_model(str(model.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    size = model.description.preprocessing
    outputs = [value.name for value in model.session.get_outputs()]
    for count in (1, 4):
        images = blobs(count, size.height, size.width)
        given = compiled({"images": images})
        there = {name: given[compiled.output(name)] for name in outputs}
        here = dict(zip(outputs, model.session.run(outputs, {"images": images}), strict=True))
        assert {name for name in outputs if _is_empty(there[name])} == {name for name in outputs if _is_empty(here[name])}
        np.testing.assert_array_equal(there["classes"], here["classes"])
        np.testing.assert_allclose(there["scores"], here["scores"], atol=1e-5)
        for output in model.description.graph_maps:
            if output.partition("@")[0] in COSTLY:
                assert _is_empty(there[output])
                continue
            assert here[output].size > 0
            assert there[output].shape == here[output].shape
            largest, apart = (np.abs(values).max((1, 2, 3)) for values in (here[output], there[output] - here[output]))
            relative = np.sort(apart / np.maximum(largest, 1e-3 * largest.max()))
            # The derivative of max pooling jumps: one image of four may lie on such an edge.
            assert relative[: math.ceil(0.75 * count)].max() <= 1e-4, output


def _is_empty(values: np.ndarray) -> bool:
    """Return True for an empty tensor, which OpenVINO returns from a branch as a number without dimensions."""
    return values.size == 0 or values.ndim == 0
