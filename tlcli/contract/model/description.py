"""Description of a model: everything that serving needs besides the graph, stored in the ONNX file as JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tlcli.contract.errors import ModelFileError
from tlcli.contract.files.earlier_names import IMAGES_FIELD
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.maps.method_names import IN_GRAPH

METADATA_KEY = "tlcli.description"
"""Key of the JSON in the ONNX file's `metadata_props`."""

IMAGES, TARGETS, WANTED, SOFTMAX = "images", "targets", "wanted", "softmax"
SCORES, LOGITS, CLASSES, FEATURES, GRADIENTS = "scores", "logits", "classes", "features", "gradients"

Precision = Literal["fp32", "fp16", "int8"]

FUSED = "+"
"""Separator of the layer names in `MapOutput.layer` of a map that is fused from several layers."""


class Layer(BaseModel):
    """A layer that maps explain.

    name: name of the module in the backbone.
    features: the graph's output with its activations, `[N, channels, height, width]`.
    gradients: the graph's output with the derivatives for them, `[N, K, channels, height, width]`.
    height, width: size at the input size of the description's `preprocessing`.
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

    name: name in requests: the method, or `method@layer` if there are several layers. Also the name of the graph's output, if the
        graph computes the map.
    method: see `tlcli.contract.maps.method_names`.
    layer: the module whose activations it explains; several, separated by `+`, for a fused map.
    height, width: size of the map, which is the layer's own size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    method: str
    layer: str
    height: int
    width: int

    @property
    def in_graph(self) -> bool:
        """True if the graph computes the map; otherwise `tlcli.contract.model.explain` does."""
        return self.method in IN_GRAPH


class Parity(BaseModel):
    """Difference between the graph's outputs and PyTorch's, measured at export.

    images: number of real images compared, from the data set `source`.
    logits: largest difference; absolute up to logits of 100, above that relative to the largest logit, times 100.
    maps: largest difference by name, relative to the map's largest value. It is taken over the closest three quarters of the maps,
        or over all of them if only a linear layer on the spatial mean follows the layer. FEM has its own threshold, so its maps are
        always reduced to the closest three quarters.
    top1_agreement: share of images with the same top-1 class, in [0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(validation_alias=IMAGES_FIELD)
    source: str
    logits: float
    maps: dict[str, float]
    top1_agreement: float


class MapAgreement(BaseModel):
    """Similarity of a map in a reduced-precision file and in the float file, for the same images and classes.

    images: number of images whose maps were compared.
    rank_correlation, rank_correlation_median: mean and median over the images of Spearman's coefficient over a map's positions. A map
        that is constant in one of the files counts as 0; one that is constant in both is left out. None if no image remains.
    pointing_before, pointing: share of the images with a box or a mask whose map has its maximum on the object, in the float file
        and in this one; None without such images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(validation_alias=IMAGES_FIELD)
    rank_correlation: float | None
    rank_correlation_median: float | None
    pointing_before: float | None = None
    pointing: float | None = None


class Agreement(BaseModel):
    """Comparison of a reduced-precision file with the float file that it was converted from.

    images: number of images compared, from the data set `source`.
    top1_before, top1: accuracy of the float file and of this one; None if the classes are unknown.
    agreement: share of images with the same top-1 class in both files.
    finite: share of images whose logits are finite in this file.
    time: time for scores, relative to the float file: the median over batches, on the CPU that converted the file.
    maps: the maps of the graph, by name.
    calibration: number and source of the images that the int8 ranges come from; None for fp16, which needs none.
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
    """Origin of a model, complete enough to reproduce it.

    versions: package name to version at export.
    run: name of the run folder.
    dataset: spec of the data set.
    dataset_fingerprint: SHA-256 over the contents of the images.
    metrics: final metrics of the run (`val_top1`, ...), shares in [0, 1].
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
    dataset: str | None = None
    dataset_fingerprint: str | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    parity: Parity | None = None
    agreement: Agreement | None = None


class Description(BaseModel):
    """Description of a model, as stored in its ONNX file. Readers reject an unknown `format_version`.

    layers: the layers that maps explain, in the order in which the network computes them; empty for a model without maps.
    switches: the graph's outputs that are only computed if the input `wanted` requests them, in the order of that input.
    dynamic_size: True if the graph takes images of any height and width; `preprocessing` holds the size used in training.
    precision: precision of the forward pass: float32, float16 from the normalised image to the last layer's input, or int8 in its
        convolutions. The graph's inputs and outputs are the same for all, and maps are computed in float32.
    temperature: divisor of the trained network's logits that calibrates the scores; the graph returns logits that are already divided.
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
    provenance: Provenance

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of all maps, in the order of `maps`."""
        return tuple(output.name for output in self.maps)

    @property
    def graph_maps(self) -> tuple[str, ...]:
        """Names of the maps that the graph computes."""
        return tuple(output.name for output in self.maps if output.in_graph)

    def map_output(self, name: str) -> MapOutput:
        """Return the map with that name.

        Raises:
            KeyError: the model has no such map.
        """
        return {output.name: output for output in self.maps}[name]

    def layer(self, name: str) -> Layer:
        """Return the layer with that name.

        Raises:
            KeyError: the model explains no such layer.
        """
        return {layer.name: layer for layer in self.layers}[name]

    def to_json(self) -> str:
        """Serialise the description to the JSON that `from_metadata` reads."""
        return self.model_dump_json()

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], where: str) -> Description:
        """Read the description from an ONNX file's metadata.

        Raises:
            ModelFileError: the description is missing, or this version cannot read it; the message begins with `where`.
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
                f"{where}: its description cannot be read: {place}: {first['msg']}. Export it again with this version of tlcli"
            ) from error
