"""The exported file: its inputs and outputs, conditional computation, its check against PyTorch, and rejected exports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch

from tests.helpers.exports import reference
from tests.helpers.exports.small_networks import LABELS, PROVENANCE, Exports, blobs, make
from tlcli.contract.errors import ExportError, ModelFileError, ParityError, RequestError, SettingsError
from tlcli.contract.images import decoding
from tlcli.contract.maps.method_names import COSTLY, IN_GRAPH, METHODS, OF_ATTENTION
from tlcli.contract.model.description import METADATA_KEY
from tlcli.contract.model.onnx_model import Model
from tlcli.exports import Exported, export, exporter, onnx_writer
from tlcli.exports import parity as parity_module
from tlcli.exports.trace.explainer import Explainer
from tlcli.exports.trace.map_methods import FORMULAS
from tlcli.training.models.network import Network

IMAGES = blobs(4)
SEVERAL = ("conv1.2", "layer2", "layer4")
OF_LARGE_LAYERS = tuple(name for name in IN_GRAPH[1:] if name != "reciprocam")
"""Methods that are exported by default for several layers, one of which has more than 1,024 positions."""


@pytest.fixture(scope="module", autouse=True)
def _traced_anew() -> Iterator[None]:
    """Take no graph from the cache of the tests: here the exporter itself is tested."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (onnx_writer, exporter):
            patch.setattr(module, "flat_graph", getattr(module.flat_graph, "__wrapped__", module.flat_graph))
        yield


def put(network: Network, repository: Path, images: npt.NDArray[np.uint8] = IMAGES, name: str = "model", **more: Any) -> Exported:
    return export(
        network, name=name, labels=LABELS, repository=repository, images=list(images), source="blobs", provenance=PROVENANCE, **more
    )  # fmt: skip


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export ResNet-18 with a linear head."""
    return put(make("resnet18"), tmp_path_factory.mktemp("repository"), name="pets")


@pytest.mark.parametrize(("backbone", "head", "layers"), [("resnet18", "mlp:256", ["layer2"]), ("mobilenetv2_100", "linear", None)])
def test_photographs_agree_with_pytorch(
    backbone: str, head: str, layers: list[str] | None, unpacked: Callable[[str], Path], tmp_path: Path
) -> None:
    network = make(backbone, head)
    found = sorted((unpacked("cats-vs-dogs") / "test").rglob("*.jpg"))[::200]
    images = np.stack([network.config.preprocessing.apply(decoding.read(path)) for path in found])
    exported = put(network, tmp_path, images, layers=layers)
    assert exported.parity.images == len(images)
    assert exported.parity.top1_agreement == 1
    assert exported.parity.maps.keys() == set(exported.description.graph_maps)
    assert max(exported.parity.maps.values()) <= parity_module.MAPS_TOLERANCE
    answer = Model.open(exported.path, device="cpu").run(images)
    with torch.no_grad():
        np.testing.assert_allclose(answer.logits, network.predict(images).numpy(), atol=1e-3)


def test_the_file_is_whole_by_itself(pets: Exported) -> None:
    assert (pets.path.parts[-3:], pets.version) == (("pets", "1", "model.onnx"), 1)
    assert sorted(path.name for path in pets.path.parent.iterdir()) == ["model.onnx"]
    assert sorted(path.name for path in pets.path.parents[1].iterdir()) == ["1", "config.pbtxt", "configs"]

    model = onnx.load(str(pets.path))
    shapes = {
        value.name: [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "images": ["N", 64, 96, 3],
        "targets": ["M", "K"],
        "softmax": ["S", 1],
        "wanted": ["L", len(IN_GRAPH) + 2],
        "scores": ["N", 5],
        "logits": ["N", 5],
        "classes": ["N", "K"],
        "features": ["N", 512, 2, 3],
        "gradients": ["N", "K", 512, 2, 3],
        **{name: ["N", "K", 2, 3] for name in IN_GRAPH},
    }
    description = json.loads({entry.key: entry.value for entry in model.metadata_props}[METADATA_KEY])
    assert description["labels"] == list(LABELS)
    assert description["switches"] == [*IN_GRAPH, "features", "gradients"]
    assert [one["name"] for one in description["maps"]] == [method for method in METHODS if method not in OF_ATTENTION]
    assert {one["layer"] for one in description["maps"]} == {"layer4"}
    assert description["provenance"]["parity"]["top1_agreement"] == 1.0
    weights = sum(parameter.numel() * 4 for parameter in make("resnet18").parameters())
    assert pets.path.stat().st_size < 1.02 * weights, "a weight is stored twice"


def test_the_file_tells_nothing_of_the_machine_it_was_made_on(pets: Exported) -> None:
    content = pets.path.read_bytes()
    folders = {Path(__file__).parents[2], Path(torch.__file__).parents[1], Path.home(), pets.path.parents[2]}
    assert [str(folder) for folder in folders if str(folder).encode() in content] == []
    assert b"site-packages" not in content
    assert b"stack_trace" not in content


def test_outputs_of_several_layers(exported: Exports) -> None:
    session = exported("test_resnet", "mlp:16", *SEVERAL).model.session
    shapes = {value.name: value.shape for value in session.get_outputs()}
    sizes = {layer.name: [layer.height, layer.width] for layer in exported("test_resnet", "mlp:16", *SEVERAL).model.description.layers}
    assert sizes == {"conv1.2": [32, 48], "layer2": [8, 12], "layer4": [2, 3]}
    for layer, size in sizes.items():
        assert shapes[f"features@{layer}"][2:] == size
        assert shapes[f"gradients@{layer}"] == ["N", "K", *shapes[f"features@{layer}"][1:]]
        for method in OF_LARGE_LAYERS:
            assert shapes[f"{method}@{layer}"] == ["N", "K", *size]
            assert shapes[method] == ["N", "K", 32, 48]
    assert len(shapes) == 3 + 2 * 3 + 4 * len(OF_LARGE_LAYERS)


def test_everything_but_the_images_may_be_left_out(pets: Exported) -> None:
    """Costly maps and the gradients are then not computed, and returned as empty tensors."""
    session = onnxruntime.InferenceSession(str(pets.path), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["images"]
    assert {value.name for value in session.get_overridable_initializers()} == {"targets", "softmax", "wanted"}
    names = [value.name for value in session.get_outputs()]
    answer = dict(zip(names, session.run(None, {"images": IMAGES}), strict=True))
    np.testing.assert_array_equal(answer["classes"][:, 0], answer["logits"].argmax(1))
    assert {name for name in names if answer[name].size == 0} == {*COSTLY, "gradients"}
    assert answer["gradients"].shape == (0, 0, 512, 2, 3)
    asked = Model.open(pets.path, device="cpu").run(IMAGES, [-1], IN_GRAPH)
    for name in set(IN_GRAPH) - set(COSTLY):
        np.testing.assert_array_equal(answer[name], asked.maps[name])


def test_a_row_of_wanted_targets_or_softmax_serves_all_images_and_rows_are_joined(exported: Exports) -> None:
    model = exported("test_resnet", "mlp:16", *SEVERAL).model
    switches = model.description.switches
    rows = np.zeros((3, len(switches)), dtype=bool)
    rows[0, switches.index("fem@layer2")] = rows[2, switches.index("hirescam@layer4")] = True
    feed = {"images": IMAGES[:3], "wanted": rows, "targets": np.array([[1, 2]]), "softmax": np.array([[True], [False], [True]])}
    answer = dict(zip(switches, model.session.run(list(switches), feed), strict=True))
    assert {name for name in switches if answer[name].size} == {"fem@layer2", "hirescam@layer4", "gradients@layer4"}, "made of them"
    for row, softmax in enumerate((True, False, True)):
        alone = model.run(IMAGES[row : row + 1], [1, 2], ["hirescam@layer4"], softmax=softmax)
        expected = alone.maps["hirescam@layer4"][0]
        np.testing.assert_allclose(answer["hirescam@layer4"][row], expected, atol=1e-5 * expected.max())


def test_features_and_gradients_on_request(exported: Exports) -> None:
    case = exported("test_resnet", "mlp:16", *SEVERAL)
    names = [name for layer in case.model.description.layers for name in (layer.features, layer.gradients)]
    answer = case.model.run(IMAGES[:2], [[0, -1], [3, 2]], (), names)
    assert answer.maps == {}
    assert answer.classes is not None
    for layer in case.model.description.layers:
        _, activations, gradients = reference.Reference(case.network, layer.name).observe(IMAGES[:2], answer.classes)
        given = answer.evidence[layer.gradients]
        np.testing.assert_allclose(answer.evidence[layer.features], activations, atol=1e-5 * activations.abs().max())
        np.testing.assert_allclose(given, gradients, atol=1e-4 * gradients.abs().max())


def operators(model: Model, wanted: Sequence[str], folder: Path) -> Counter[str]:
    """Count the runs of each operator in the runtime's own profile."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(model.path), options, providers=["CPUExecutionProvider"])
    asked = np.array([[name in wanted for name in model.description.switches]])
    session.run(None, {"images": IMAGES[:2], "wanted": asked})
    events = json.loads(Path(session.end_profiling()).read_text())
    return Counter(event["args"]["op_name"] for event in events if event.get("cat") == "Node")


def test_what_is_not_wanted_is_not_computed(exported: Exports, tmp_path: Path) -> None:
    """Counted, not timed. The layer's gradients need transposed convolutions, Ablation-CAM a loop; scores need neither."""
    model = exported("test_resnet", "mlp:16", *SEVERAL).model
    scores = operators(model, (), tmp_path)
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in exported("test_resnet", "mlp:16", *SEVERAL).network.modules())
    assert (scores["Conv"], scores["ConvTranspose"], scores["Loop"], scores["If"]) == (convolutions, 0, 0, 1)

    fem = operators(model, ["fem@layer2"], tmp_path)
    assert (fem["Conv"], fem["ConvTranspose"], fem["Loop"]) == (convolutions, 0, 0)
    assert fem.total() > scores.total()
    last, middle, first = (operators(model, [f"gradcam@{layer}"], tmp_path) for layer in reversed(SEVERAL))
    assert last["ConvTranspose"] == 0, "only the head is behind the last layer"
    assert last.total() > scores.total()
    assert 0 < middle["ConvTranspose"] < first["ConvTranspose"]
    assert middle["Loop"] == first["Loop"] == 0
    both = operators(model, ["gradcam@layer2", "hirescam@layer2", "gradients@layer2"], tmp_path)
    assert both["ConvTranspose"] == middle["ConvTranspose"], "two maps of a layer share its gradients"
    fused = operators(model, ["gradcam"], tmp_path)
    assert first["ConvTranspose"] <= fused["ConvTranspose"] <= first["ConvTranspose"] + middle["ConvTranspose"]
    ablation = operators(model, ["ablationcam@layer4"], tmp_path)
    assert (ablation["Loop"], ablation["Conv"], ablation["ConvTranspose"]) == (1, convolutions, 0)


@pytest.mark.parametrize(("head", "layers"), [("linear", ()), ("mlp:16", SEVERAL)])
@pytest.mark.parametrize("softmax", [False, True])
def test_a_batch_answers_as_its_images_do_alone(head: str, layers: tuple[str, ...], softmax: bool, exported: Exports) -> None:
    model = exported("test_resnet", head, *layers).model
    targets, names = np.array([[0, -1], [-3, 2], [4, 4], [-1, -5]]), model.description.graph_maps
    together = model.run(IMAGES, targets, names, softmax=softmax)
    for row, image in enumerate(IMAGES):
        alone = model.run(image[None], targets[row : row + 1], names, softmax=softmax)
        np.testing.assert_allclose(alone.logits[0], together.logits[row], atol=1e-5)
        np.testing.assert_array_equal(alone.classes[0], together.classes[row])  # type: ignore[index]
        for name, values in together.maps.items():
            tolerance = 1e-3 if name.startswith("ablationcam") else 1e-4  # it subtracts scores that are all but equal
            np.testing.assert_allclose(alone.maps[name][0], values[row], atol=tolerance * np.abs(values[row]).max(), err_msg=name)


def test_many_classes_at_once_answer_as_one_by_one(exported: Exports) -> None:
    model = exported("test_resnet", "mlp:16", *SEVERAL).model
    names = [name for name in model.description.graph_maps if "ablation" not in name]
    together = model.run(IMAGES[:2], [0, 1, 2, 3, 4, -1, -2], names)
    for k in range(5):
        alone = model.run(IMAGES[:2], [k], names)
        for name, values in together.maps.items():
            np.testing.assert_allclose(alone.maps[name][:, 0], values[:, k], atol=1e-4 * np.abs(values).max(), err_msg=name)


def test_without_maps_there_are_only_scores(tmp_path: Path) -> None:
    network = make("test_resnet")
    exported = put(network, tmp_path, methods=())
    model = Model.open(exported.path, device="cpu")
    assert (model.description.maps, model.description.layers, model.description.switches) == ((), (), ())
    assert [value.name for value in model.session.get_outputs()] == ["scores", "logits", "classes"]
    assert [value.name for value in model.session.get_inputs()] == ["images"], "all others have a default"
    np.testing.assert_allclose(model.run(IMAGES).logits, network.predict(IMAGES), atol=1e-5)
    with pytest.raises(RequestError, match="has no map gradcam"):
        model.run(IMAGES, methods=["gradcam"])


def test_versions_count_up_and_an_old_one_stays(tmp_path: Path) -> None:
    network = make("test_resnet")
    first = put(network, tmp_path, methods=["fem"])
    content = first.path.read_bytes()
    second = put(network, tmp_path, methods=["fem", "scorecam"])
    assert second.version == 2
    assert second.description.methods == ("fem", "scorecam")
    assert second.description.graph_maps == ("fem",)
    assert first.path.read_bytes() == content


def test_an_export_that_disagrees_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity_module, "LOGITS_TOLERANCE", -1.0)  # nothing can agree to that
    with pytest.raises(ParityError, match=r"differs from PyTorch on 4 images: logits differ by"):
        put(make("test_resnet"), tmp_path, methods=["fem"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("backbone", "head", "layers"), [("resnet18", "linear", ()), ("test_resnet", "mlp:16", SEVERAL)])
def test_the_check_notices_another_networks_file_by_every_map(backbone: str, head: str, layers: tuple[str, ...], exported: Exports) -> None:
    case = exported(backbone, head, *layers)
    own = parity_module.measure(case.network, case.model, list(IMAGES), "blobs")
    parity_module.require(own)
    assert own.maps.keys() == set(case.model.description.graph_maps)
    other = parity_module.measure(make(backbone, head, seed=1).requires_grad_(False), case.model, list(IMAGES), "blobs")
    assert other.logits > parity_module.LOGITS_TOLERANCE
    for name in case.model.description.graph_maps:
        assert other.maps[name] > 100 * parity_module.MAPS_TOLERANCE, name
    with pytest.raises(ParityError, match=r"gradcam.* differs by"):
        parity_module.require(other)


def test_every_method_has_a_name_a_source_and_one_formula() -> None:
    assert tuple(FORMULAS) == (*IN_GRAPH, *OF_ATTENTION)
    assert tuple(METHODS) == reference.METHODS
    assert all(method.source for method in METHODS.values())
    assert len({method.title for method in METHODS.values()}) == len(METHODS)


def test_methods_that_the_head_does_not_allow_are_refused(tmp_path: Path) -> None:
    for layers, where in ((None, "at layer4"), (["layer2"], "at layer2"), (["layer3", "layer2"], "at layer2 and layer3")):
        with pytest.raises(ExportError) as refused:
            put(make("test_resnet", "mlp:16"), tmp_path, methods=["gradcam", "cam"], layers=layers)
        message = str(refused.value)
        assert message.startswith("cam needs a head that is one linear layer on the layer's spatial mean; the head 'mlp:16' of test_resnet")
        assert f"is not, {where}: choose from gradcam, " in message
        assert "\n" not in message
    with pytest.raises(ExportError, match="cam needs a head"):
        Explainer(make("test_resnet").requires_grad_(False), ["cam"], ["layer3"])
    with pytest.raises(ExportError, match=f"unknown map method 'lime': choose from {', '.join(METHODS)}"):
        put(make("test_resnet"), tmp_path, methods=["gradcam", "lime"])
    with pytest.raises(SettingsError, match=r"'\.\./m' is not a model name"):
        put(make("test_resnet"), tmp_path, name="../m")
    with pytest.raises(ExportError, match="2 labels for a network of 5 classes: give one for each class"):
        export(make("test_resnet"), name="m", labels=["a", "b"], repository=tmp_path, images=list(IMAGES), source="", provenance=PROVENANCE)
    assert list(tmp_path.iterdir()) == []


def test_requests_that_do_not_fit_are_refused(exported: Exports) -> None:
    model = exported("resnet18").model
    with pytest.raises(RequestError, match=r"takes uint8 \[N, 64, 96, 3\], not uint8 \[1, 32, 96, 3\]$"):
        model.run(np.zeros((1, 32, 96, 3), dtype=np.uint8))
    with pytest.raises(RequestError, match="has no class 5: expected 0 to 4"):
        model.run(IMAGES, [5], ["cam"])
    with pytest.raises(RequestError, match="has no class -6"):
        model.run(IMAGES, [-6], ["cam"])
    with pytest.raises(RequestError, match="has no map eigencam; it has: cam, gradcam"):
        model.run(IMAGES, [0], ["eigencam"])
    with pytest.raises(RequestError, match="has no output features@layer1"):
        model.run(IMAGES, [0], [], ["features@layer1"])
    with pytest.raises(RequestError, match=r"targets of shape \[2, 1\] for 4 images: expected \[4 or 1, K\]"):
        model.run(IMAGES, [[0], [1]], ["cam"])


def test_a_file_without_a_description_is_refused(exported: Exports, tmp_path: Path) -> None:
    bare = onnx.load(str(exported("test_resnet").model.path))
    del bare.metadata_props[:]
    onnx.save(bare, str(tmp_path / "bare.onnx"))
    with pytest.raises(ModelFileError, match="not exported by tlcli"):
        Model.open(tmp_path / "bare.onnx", device="cpu")
