"""Plain graphs in other runtimes, with classes chosen at run time: the same scores and maps as in ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.exports.small_networks import Exports, blobs
from tests.helpers.runtimes import onnxruntime_web
from tlcli.contract.model.description import Plain
from tlcli.contract.model.onnx_model import Model
from tlcli.exports.parity import MAPS_TOLERANCE, MAPS_TOLERANCES

Values = np.ndarray
Run = Callable[[Model, list[dict[str, Values]], Path], list[dict[str, Values]]]

CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "one linear layer on the mean": (("resnet18", "linear"), {}),
    "hidden layers": (("vgg11", "mlp:256"), {"mlp_ratio": 1 / 32}),
    "large shared weights, one of them square": (("vgg11", "original"), {"mlp_ratio": 1 / 4}),
    "square kernels and max pooling behind the layer": (("vgg11", "mlp:512", "features.14"), {}),
    "in the middle, several layers": (("test_resnet", "mlp:16", "conv1.2", "layer2", "layer4"), {}),
}
FORMS = {
    "any number of images and classes": Plain(),
    "three images, two classes": Plain(batch=3, explained=2),
    "the first class": Plain(classes="top"),
    "one image, the first class": Plain(classes="top", batch=1),
}
TRIED = [
    *((case, "any number of images and classes") for case in CASES),
    *((case, form) for case in ("one linear layer on the mean", "in the middle, several layers") for form in [*FORMS][1:]),
]
TARGETS = np.array([[2, -1], [0, 1], [-2, 4]])


def in_browsers_runtime(model: Model, feeds: list[dict[str, Values]], folder: Path) -> list[dict[str, Values]]:
    onnxruntime_web.require()
    return onnxruntime_web.run(model.path, feeds, folder)


def in_openvino(model: Model, feeds: list[dict[str, Values]], folder: Path) -> list[dict[str, Values]]:
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(str(model.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [output.name for output in model.session.get_outputs()]
    answers = [compiled(feed) for feed in feeds]
    return [{name: answer[compiled.output(name)] for name in names} for answer in answers]


@pytest.mark.slow
@pytest.mark.parametrize("run", [in_browsers_runtime, in_openvino])
@pytest.mark.parametrize(("case", "form"), TRIED)
def test_the_same_scores_and_maps(case: str, form: str, run: Run, exported: Exports, tmp_path: Path) -> None:
    arguments, options = CASES[case]
    model = exported(*arguments, **options).plain(FORMS[form], form.replace(" ", "-"))
    feeds = feeds_for(model, FORMS[form])
    outputs = [output.name for output in model.session.get_outputs()]
    answered: dict[str, list[tuple[Values, Values]]] = {name: [] for name in outputs}
    for feed, there in zip(feeds, run(model, feeds, tmp_path / "web"), strict=True):
        assert there.keys() == {*outputs}
        for name, here in zip(outputs, model.session.run(outputs, feed), strict=True):
            assert (there[name].shape, there[name].dtype) == (here.shape, here.dtype)
            answered[name].append((here, there[name]))
    for name, pairs in answered.items():
        here, there = (np.concatenate(values) for values in zip(*pairs, strict=True))
        if name == "classes":
            np.testing.assert_array_equal(there, here)
        elif name in ("scores", "logits"):
            np.testing.assert_allclose(there, here, atol=1e-5 * max(1, np.abs(here).max()))
        else:
            largest, apart = (np.abs(values).max((2, 3)).ravel() for values in (here, there - here))
            relative = np.sort(apart / np.maximum(largest, 1e-3 * largest.max()))
            # The derivatives of ReLU and max pooling jump: an image may lie on such an edge.
            assert relative[: math.ceil(0.75 * len(relative))].max() <= MAPS_TOLERANCES.get(name.partition("@")[0], MAPS_TOLERANCE), name


def feeds_for(model: Model, form: Plain) -> list[dict[str, Values]]:
    """Return runs of one and three images, or of the fixed number."""
    size = model.description.preprocessing
    images = blobs(3, size.height, size.width)
    rows = [slice(0, 1), slice(0, 3)] if form.batch is None else [slice(start, start + form.batch) for start in range(0, 3, form.batch)]
    feeds = [{"images": images[some], "targets": TARGETS[some]} for some in rows]
    return [{value.name: feed[value.name] for value in model.session.get_inputs()} for feed in feeds]
