"""Description of a model: everything that serving needs besides the graph, stored in the ONNX file as JSON."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tlcli.contract.errors import ModelFileError
from tlcli.contract.files.earlier_names import IMAGES_FIELD
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.maps.method_names import IN_GRAPH, OF_ATTENTION

METADATA_KEY = "tlcli.description"
"""Key of the JSON in the ONNX file's `metadata_props`."""

IMAGES, TARGETS, WANTED, SOFTMAX = "images", "targets", "wanted", "softmax"
SCORES, LOGITS, CLASSES, FEATURES, GRADIENTS = "scores", "logits", "classes", "features", "gradients"

Precision = Literal["fp32", "fp16", "int8"]

Task = Literal["single-label", "multi-label"]
"""What the classes of an image are: exactly one of them, or any number of them, also none."""

FUSED = "+"
"""Separator between the layer names in `MapOutput.layer` of a fused map."""


class Layer(BaseModel):
    """A layer that maps explain.

    name: name of the module in the backbone.
    features: name of the graph's output with the layer's activations, `[N, channels, height, width]`.
    gradients: name of the graph's output with the gradients of the classes' scores with respect to these activations,
        `[N, K, channels, height, width]`. A plain graph has neither of these outputs.
    channels: number of channels of the activations.
    height, width: size of the activations at the input size of the description's `preprocessing`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    features: str
    gradients: str
    channels: int
    height: int
    width: int


class MapOutput(BaseModel):
    """A map that the model offers.

    name: name used in requests: the method, or `method@layer` if the model explains several layers; a fused map is named by its method.
        Also the name of the graph's output, if the graph computes the map.
    method: name of the method; see `tlcli.contract.maps.method_names`.
    layer: name of the explained module; for a fused map, several names separated by `+`.
    height, width: size of the map, which equals the size of the layer, or of the largest layer for a fused map.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    method: str
    layer: str
    height: int
    width: int

    @property
    def in_graph(self) -> bool:
        """True if the graph computes the map, False if `tlcli.contract.model.explain` computes it."""
        return self.method in (*IN_GRAPH, *OF_ATTENTION)


class Parity(BaseModel):
    """Difference between the graph's outputs and PyTorch's, measured at export.

    images: number of images compared.
    source: origin of the images.
    logits: largest difference of the logits. It is absolute for logits up to 100; above that, it is relative to the largest logit, times
        100.
    maps: largest difference of each map by name, relative to the map's largest value. It is taken over the closest three quarters of the
        maps, or over all of them if only a linear layer on the spatial mean follows the layer. For FEM, the difference is measured from
        rounding bounds, because positions near its threshold may or may not count.
    top1_agreement: share of images with the same top-1 class, in [0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(validation_alias=IMAGES_FIELD)
    source: str
    logits: float
    maps: dict[str, float]
    top1_agreement: float


class MapAgreement(BaseModel):
    """Similarity of a map between a reduced-precision file and the float file, for the same images and classes.

    images: number of images whose maps were compared.
    rank_correlation, rank_correlation_median: mean and median over the images of Spearman's coefficient over a map's positions. A map
        that is constant in one file counts as 0; a map that is constant in both files is excluded. None if no image remains.
    pointing_before, pointing: fraction of the images with a box or mask for which the map's maximum is on the object, in the float file and
        in the reduced-precision file; None without such images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(validation_alias=IMAGES_FIELD)
    rank_correlation: float | None
    rank_correlation_median: float | None
    pointing_before: float | None = None
    pointing: float | None = None


class Agreement(BaseModel):
    """Comparison of a reduced-precision file with the float file from which it was converted.

    images: number of images compared.
    source: origin of the images.
    top1_before, top1: top-1 accuracy of the float file and of the reduced-precision file; None if the classes are unknown.
    agreement: share of images with the same top-1 class in both files.
    finite: share of images whose logits in the reduced-precision file are finite.
    time: time to compute scores relative to the float file, as the median over batches on the CPU that converted the file.
    maps: agreement of each map of the graph, by name.
    calibration: number and source of the images used for int8 calibration; None for fp16, which needs no calibration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(validation_alias=IMAGES_FIELD)
    source: str
    top1_before: float | None
    top1: float | None
    agreement: float
    finite: float
    time: float
    maps: dict[str, MapAgreement]
    calibration: str | None = None


class Provenance(BaseModel):
    """Origin of a model, with enough detail to reproduce it.

    created: time of the export, ISO 8601 in UTC.
    versions: version of each package at export, by package name.
    backbone: name of the backbone.
    head: name of the head.
    weights: source of the pretrained weights; for a file, its name without the folder.
    run: name of the run folder.
    from_run: name of the folder of the run that training started from; None if it started from other weights.
    dataset: spec of the data set.
    dataset_fingerprint: SHA-256 hash over the contents of the images.
    metrics: final metrics of the run (`val_top1`, ...), as shares in [0, 1].
    parity: comparison of the float graph with PyTorch.
    agreement: comparison of a reduced-precision file with the float graph.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    created: str
    versions: dict[str, str]
    backbone: str
    head: str
    weights: str
    run: str | None = None
    from_run: str | None = None
    dataset: str | None = None
    dataset_fingerprint: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    parity: Parity | None = None
    agreement: Agreement | None = None


class Plain(BaseModel):
    """Form of a plain graph: without branches, loops and optional inputs, for runtimes that lack them.

    classes: `input` if the graph has the required input `targets`, `top` if it explains the first-ranked class and has no such input.
    batch: number of images per run, N; None for any number.
    explained: number of explained classes per image, K; None for any number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: Literal["input", "top"] = "input"
    batch: int | None = Field(default=None, ge=1)
    explained: int | None = Field(default=None, ge=1)


class Description(BaseModel):
    """Description of a model, as stored in its ONNX file. Readers reject an unknown `format_version`.

    name: name of the model.
    labels: class names, in the order of the class ids.
    preprocessing: transform from an image to the graph's input.
    layers: layers that maps explain, in the order in which the network computes them; empty for a model without maps.
    maps: maps that the model offers, whether or not the graph computes them.
    switches: outputs of the graph that are computed only if the input `wanted` requests them, in the order of that input.
    dynamic_size: True if the graph accepts images of any height and width; `preprocessing` then holds the size used in training.
    precision: precision of the forward pass: float32, float16 from the normalised image to the last layer's input, or int8 in the
        convolutions. The graph's inputs and outputs are the same for all, and maps are computed in float32.
    temperature: divisor of the trained network's logits that calibrates the scores; the graph returns logits that are already divided.
    task: `multi-label` if an image can have several labels: scores are then sigmoids, one for each class by itself. Files of earlier
        versions have one label per image.
    thresholds: score of each class from which on an image has its label; empty with one label per image.
    plain: form of a plain graph, which always computes all of its maps and returns neither features nor gradients; None for a graph with
        the optional inputs `wanted`, `softmax` and `targets`.
    provenance: origin of the model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    layers: tuple[Layer, ...]
    maps: tuple[MapOutput, ...]
    switches: tuple[str, ...]
    dynamic_size: bool = False
    precision: Precision = "fp32"
    temperature: float = Field(default=1.0, gt=0)
    task: Task = "single-label"
    thresholds: tuple[float, ...] = ()
    plain: Plain | None = None
    provenance: Provenance

    @model_validator(mode="after")
    def _one_threshold_for_each_label(self) -> Description:
        if len(self.thresholds) != (len(self.labels) if self.task == "multi-label" else 0):
            raise ValueError(f"{len(self.thresholds)} thresholds for {len(self.labels)} labels of a {self.task} model")
        return self

    def assigned(self, scores: npt.NDArray[np.float32]) -> list[int]:
        """Return the ids of the labels that an image has, best first: the classes whose score reaches their threshold.

        Args:
            scores: score of each class, float32 `[C]`.
        """
        order = np.argsort(-scores, kind="stable")
        return [int(class_id) for class_id in order if self.thresholds and scores[class_id] >= self.thresholds[class_id]]

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of all maps that the model offers, in the order of `maps`."""
        return tuple(output.name for output in self.maps)

    @property
    def graph_maps(self) -> tuple[str, ...]:
        """Names of the maps that the graph computes."""
        return tuple(output.name for output in self.maps if output.in_graph)

    @property
    def evidence(self) -> tuple[str, ...]:
        """Names of the graph's outputs with the features and gradients of the layers. A plain graph has none."""
        return () if self.plain else tuple(name for layer in self.layers for name in (layer.features, layer.gradients))

    def map_output(self, name: str) -> MapOutput:
        """Return the map with the given name.

        Raises:
            KeyError: the model has no such map.
        """
        return {output.name: output for output in self.maps}[name]

    def layer(self, name: str) -> Layer:
        """Return the explained layer with the given name.

        Raises:
            KeyError: the model explains no such layer.
        """
        return {layer.name: layer for layer in self.layers}[name]

    def to_json(self) -> str:
        """Serialise the description to the JSON that `from_metadata` reads."""
        return self.model_dump_json()

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], where: str) -> Description:
        """Parse the description in an ONNX file's metadata.

        Raises:
            ModelFileError: the description is missing, or this version of tlcli cannot read it; the message begins with `where`.
        """
        text = metadata.get(METADATA_KEY)
        if text is None:
            raise ModelFileError(f"{where}: not exported by tlcli (no {METADATA_KEY!r} in its metadata): export it with `tlcli export`")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first: dict[str, Any] = dict(error.errors()[0])
            place = ".".join(str(part) for part in first["loc"]) or "the JSON"
            raise ModelFileError(
                f"{where}: its description cannot be read: {place}: {first['msg']}: export it again with this version of tlcli"
            ) from error
