"""Export of a classifier that already is an ONNX file, without PyTorch."""

from __future__ import annotations

import ast
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from tlcli.contract.errors import ExportError, SettingsError
from tlcli.contract.files.atomic_folder import temporary_folder
from tlcli.contract.images import decoding
from tlcli.contract.images.evenly_spaced import evenly_spaced
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.description import Description, Provenance
from tlcli.contract.model.onnx_model import Model
from tlcli.contract.model.repository_layout import MODEL_FILE, require_model_name
from tlcli.exports import onnx_parity
from tlcli.exports.onnx_source.classifier import Classifier, find_classifier, scores_output, zip_map_labels
from tlcli.exports.onnx_source.explained_graph import ExplainedGraph
from tlcli.exports.onnx_source.graph.graph_part import layer_nodes
from tlcli.exports.onnx_source.graph.observed_graph import ObservedGraph, observe
from tlcli.exports.onnx_source.graph.source_file import SourceFile, read_source, shown
from tlcli.exports.onnx_source.guess_preprocessing import guess_preprocessing
from tlcli.exports.onnx_source.image_input import ImageInput
from tlcli.exports.onnx_source.input_settings import CANDIDATES, InputSettings, Triple, image_input
from tlcli.exports.onnx_source.number_types import require_float32
from tlcli.exports.onnx_source.spatial_values import SpatialValue, SpatialValues
from tlcli.exports.publication import DEFAULT_CHECK_IMAGES, Exported, Say, model_folder, publish
from tlcli.exports.rewrite.closed_graph import check_graph, close_graph, describe


def export_onnx(
    path: Path,
    *,
    name: str,
    repository: Path,
    settings: InputSettings = InputSettings(),  # noqa: B008 - frozen
    labels: Sequence[str] | None = None,
    logits: str | None = None,
    image_paths: Sequence[Path] = (),
    guess_folder: Path | None = None,
    methods: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    check_images: int = DEFAULT_CHECK_IMAGES,
    say: Say = lambda _: None,
) -> Exported:
    """Export an ONNX classifier as the next version of model `name`, with maps. A file that fails a check is deleted.

    Args:
        path: ONNX file of an image classifier.
        name: name of the model.
        repository: model repository folder; created if it does not exist.
        settings: what is known of the file's input.
        labels: names of the classes; None uses those in the file, or `class_0`, `class_1`, ...
        logits: value or node that holds the logits; None finds it.
        image_paths: files and folders of images for the check; if empty, the check uses synthetic images of drawn shapes.
        guess_folder: folder of labelled images on which the usual normalisations are tried, if `settings` has none.
        methods: map methods by name; None selects all that the graph supports; an empty sequence exports a file without maps.
        layers: values or nodes to explain; None selects the last spatial value that all paths to the logits pass.
        check_images: maximum number of images for the check.
        say: callback that receives one progress line per step.

    Raises:
        NotFoundError, ModelFileError: see `read_source`.
        SettingsError: the preprocessing is unknown or contradicts the file, the labels do not match, or a name does not exist.
        ExportError: the file is not an image classifier, or an operator after a layer has no gradient rule.
        ParityError: the exported file differs from the original, or its gradients from finite differences.
    """
    require_model_name(name)
    with_maps = methods is None or len(methods) > 0
    loaded = load_classifier(path, settings, logits, labels, guess_folder, say)
    require_float32(loaded.graph, path)
    images, source = _images(loaded.images.preprocessing, image_paths, check_images)
    with model_folder(repository, name) as folder, temporary_folder(folder, ".export-") as partial:
        chosen = _layers(loaded.spatial_values(), layers) if with_maps else {}
        explained = ExplainedGraph(
            loaded.graph,
            loaded.classifier,
            list(chosen.values()),
            list(chosen),
            methods,
            loaded.images,
            str(path),
            loaded.scores,
            loaded.source.shape[0],
        )
        what = f" with maps of {' and '.join(chosen)}" if chosen else " without maps"
        say(f"writing {path.name}{what}")
        if chosen and not layers and _is_before_attention(loaded, next(iter(chosen.values()))):
            say(
                f"warning: attention follows {next(iter(chosen))}, as in a transformer, so its maps show an early layer:"
                " choose another with --cam-layer"
            )
        model = explained.flat()
        close_graph(explained.layout, model)
        exported = partial / MODEL_FILE
        onnx.save(model, str(exported))
        description = Description(
            name=name,
            labels=tuple(loaded.labels),
            preprocessing=loaded.images.preprocessing,
            layers=explained.layout.layers,
            maps=explained.layout.maps,
            switches=explained.layout.switches,
            provenance=_provenance(path),
        )
        describe(exported, description)
        _check_graph(exported, path)
        say(f"checking against {path.name} on {len(images)} images ({source})")
        opened = Model.open(exported, device="cpu")
        measured = onnx_parity.measure(explained, path, opened, loaded.images, images, source)
        onnx_parity.require(measured, path)
        provenance = description.provenance.model_copy(update={"parity": measured})
        description = description.model_copy(update={"provenance": provenance})
        describe(exported, description)
        version = publish(partial, folder, description)
    return Exported(folder / str(version) / MODEL_FILE, name, version, description, measured)


@dataclass(frozen=True)
class LoadedClassifier:
    """Foreign classifier with what is known about it.

    source: the file. images: form of its input. graph: its observed graph. classifier: its logits. labels: its classes.
    scores: value from which the logits were found.
    """

    source: SourceFile
    images: ImageInput
    graph: ObservedGraph
    classifier: Classifier
    labels: list[str]
    scores: str

    def spatial_values(self) -> SpatialValues:
        """Return the values that maps can explain."""
        return SpatialValues(self.graph, self.classifier.logits, self.images.channels_last, str(self.source.path))


def load_classifier(
    path: Path,
    settings: InputSettings,
    logits: str | None = None,
    labels: Sequence[str] | None = None,
    guess_folder: Path | None = None,
    say: Say = lambda _: None,
    needs_preprocessing: bool = True,
) -> LoadedClassifier:
    """Read a foreign file and find its logits. For the arguments and exceptions, see `export_onnx`.

    Args:
        path, settings, logits, labels, guess_folder, say: see `export_onnx`.
        needs_preprocessing: False to accept an unknown normalisation, for a caller that only lists layers.
    """
    source = read_source(path)
    scores = scores_output(source, logits)
    stored = zip_map_labels(source) or _labels_of(source)
    guessed = not settings.is_known and guess_folder is not None
    assumed = CANDIDATES[0][1:] if guessed or not (settings.is_known or needs_preprocessing) else None
    form = image_input(source, settings, assumed)
    size = form.preprocessing
    random = np.random.default_rng(0)
    graph = observe(source, lambda count: form.apply(random.integers(0, 256, (count, size.height, size.width, 3), np.uint8)), scores)
    classifier = find_classifier(graph, scores, logits is not None, str(path))
    if labels is None:
        labels = stored if stored and len(stored) == classifier.classes else [f"class_{index}" for index in range(classifier.classes)]
    if len(labels) != classifier.classes:
        raise SettingsError(f"--labels: {len(labels)} labels, but {path} has {classifier.classes} classes: give a label for each")
    if classifier.squashing in ("sigmoid", "hard sigmoid"):
        say(f"warning: {path.name} ends in a {classifier.squashing}: the exported scores are the softmax of its logits instead")
    if guessed:
        assert guess_folder is not None
        guess = _guess(source, settings, graph, scores, labels, guess_folder, say)
        form = image_input(source, settings, guess)
    return LoadedClassifier(source, form, graph, classifier, list(labels), scores)


def _guess(
    source: SourceFile, settings: InputSettings, graph: ObservedGraph, scores: str, labels: Sequence[str], folder: Path, say: Say
) -> tuple[Triple, Triple, str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(graph.model.SerializeToString(), providers=["CPUExecutionProvider"])

    def run(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        (values,) = session.run([scores], {graph.input: batch})
        return np.asarray(values).reshape(len(batch), -1)

    return guess_preprocessing(source, settings, run, labels, folder, say)


def _labels_of(source: SourceFile) -> list[str] | None:
    """Return the labels in the metadata `names`, as Ultralytics writes them: `{0: 'cat', 1: 'dog'}`."""
    try:
        names = ast.literal_eval(source.properties.get("names", ""))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        return [str(names[index]) for index in range(len(names))]
    return [str(name) for name in names] if isinstance(names, list | tuple) else None


def _layers(spatial: SpatialValues, names: Sequence[str] | None) -> dict[str, SpatialValue]:
    """Return the values to explain by name, in the order in which the file computes them."""
    if not names:
        return {shown(value.name): value for value in spatial.default()}
    order = [value.name for value in spatial()]
    chosen = {name: spatial.find(name) for name in dict.fromkeys(names)}
    if len({value.name for value in chosen.values()}) < len(chosen):
        raise SettingsError(f"--cam-layer: {' and '.join(chosen)} name the same value: use only one of them")
    missing = [name for name, value in chosen.items() if value.name not in order]
    if missing:
        raise ExportError(f"--cam-layer {missing[0]}: the logits do not depend on it: choose another layer")
    return dict(sorted(chosen.items(), key=lambda item: order.index(item[1].name)))


def _is_before_attention(loaded: LoadedClassifier, layer: SpatialValue) -> bool:
    """Return True if a softmax is between a layer and the logits, and the layer has no tokens."""
    if layer.prefix is not None:
        return False
    _, nodes = layer_nodes(loaded.graph, [layer.name], loaded.classifier.logits)
    return any(node.op_type == "Softmax" for node in nodes)


def _images(preprocessing: Preprocessing, paths: Sequence[Path], count: int) -> tuple[list[npt.NDArray[np.uint8]], str]:
    if paths:
        files = decoding.find(paths)
        chosen = [preprocessing.apply(decoding.read(files[index])) for index in evenly_spaced(len(files), count)]
        return chosen, ", ".join(map(str, paths))
    from tlcli.training.data.drawing.draw_shape import draw

    size = max(preprocessing.height, preprocessing.width)
    return [preprocessing.apply(draw(index, 0, size=size).image) for index in range(count)], "drawn shapes"


def _check_graph(exported: Path, path: Path) -> None:
    try:
        check_graph(exported)
    except ExportError as error:
        raise ExportError(str(error).replace("use another backbone", f"export {path} again with a newer exporter")) from error


def _provenance(path: Path) -> Provenance:
    packages = {package: metadata.version(package) for package in ("tlcli", "onnx")}
    import onnxruntime

    return Provenance(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=packages | {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()},
        backbone=path.stem,
        head="original",
        weights=path.name,
    )
