"""A model's description: all that serving needs beside the graph, kept inside the ONNX file as JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tlcli.contract.errors import ModelFileError
from tlcli.contract.files.earlier_names import IMAGES_FIELD
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.maps.method_names import IN_GRAPH

METADATA_KEY = "tlcli.description"
"""Where the JSON stands in the ONNX file's `metadata_props`."""

IMAGES, TARGETS, WANTED, SOFTMAX = "images", "targets", "wanted", "softmax"
SCORES, LOGITS, CLASSES, FEATURES, GRADIENTS = "scores", "logits", "classes", "features", "gradients"

Precision = Literal["fp32", "fp16", "int8"]

FUSED = "+"
"""Stands between the layers' names in the `layer` of a map that is fused of several."""


class Layer(BaseModel):
    """A layer that maps explain.

    name: the module's, in the backbone.
    features: the graph's output that holds its activations, `[N, channels, height, width]`.
    gradients: the output that holds their derivatives, `[N, K, channels, height, width]`.
    height, width: at the input size of the description's `preprocessing`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    features: str
    gradients: str
    channels: int
    height: int
    width: int


class MapOutput(BaseModel):
    """A map that can be asked for.

    name: what it is asked by: the method's name, and `method@layer` where there are several layers. It is the graph's output
        too, if the graph computes it.
    method: see `tlcli.contract.maps.method_names`.
    layer: the module whose activations it explains; several, with `+` between them, for a map that is fused of theirs.
    height, width: of the map, which is the layer's own size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    method: str
    layer: str
    height: int
    width: int

    @property
    def in_graph(self) -> bool:
        """Whether the graph computes it; else `tlcli.contract.model.explain` does."""
        return self.method in IN_GRAPH


class Parity(BaseModel):
    """How far the graph's answers lay from PyTorch's when it was exported.

    images: how many real images were compared, from the set that `source` names.
    logits: the largest difference; absolute up to logits of 100, above that as a share of the largest logit, times 100.
    maps: a name each, the largest difference relative to the map's largest value; among the nearest three
        quarters of the maps, unless one linear layer on the spatial mean is all that follows the layer; FEM's, which
        has a threshold of its own, always among the nearest three quarters.
    top1_agreement: the share of images with the same first class, in [0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(validation_alias=IMAGES_FIELD)
    source: str
    logits: float
    maps: dict[str, float]
    top1_agreement: float


class MapAgreement(BaseModel):
    """How alike a map of a file in smaller numbers and that of the float file are, for the same images and classes.

    images: those whose maps were compared.
    rank_correlation, rank_correlation_median: Spearman's coefficient over a map's positions: its mean and its median over the images. A
        map that is constant in one of the files counts as 0, one that is in both not at all; None if none is left.
    pointing_before, pointing: the share of images with a box or a mask whose map's largest point lies on the object, in the float file
        and in this one; None where there are none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int = Field(validation_alias=IMAGES_FIELD)
    rank_correlation: float | None
    rank_correlation_median: float | None
    pointing_before: float | None = None
    pointing: float | None = None


class Agreement(BaseModel):
    """How a file in smaller numbers answers, beside the float file that it was made of.

    images: how many were compared, from the set that `source` names.
    top1_before, top1: the share that is answered right by the float file and by this one; None where the classes are not known.
    agreement: the share with the same first class in both.
    finite: the share whose logits are numbers in this file.
    time: what scores take in this file, as a share of what they take in the float file: the median over batches, on the CPU that wrote it.
    maps: of the graph, by name.
    calibration: how many images the ranges of int8 come from, and which; None for fp16, which needs none.
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
    """Where a model comes from: enough to make it again.

    versions: package name to version, as exported.
    run: the run folder's name; dataset: its spec; dataset_fingerprint: SHA-256 over the images' contents.
    metrics: final figures of the run (`val_top1`, ...), shares in [0, 1].
    parity: of the float graph, with PyTorch.
    agreement: of a file in smaller numbers, with the float graph.
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
    """Versioned: a reader refuses a `format_version` it does not know.

    layers: those that maps explain, in the order in which the network computes them; none in a model without maps.
    switches: the graph's outputs that are computed only if `wanted` says so, in its order.
    dynamic_size: the graph takes images of any height and width; those of `preprocessing` are what it was trained with.
    precision: what the forward pass computes in: float32, float16 from the normalised image to the last layer's input, or int8 in its
        convolutions. What the graph takes and answers is the same for all, and maps are made in float32.
    temperature: what the trained network's logits were divided by, so that the scores mean more; the graph's logits are those after it.
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
        """The maps' names, in the order of `maps`."""
        return tuple(output.name for output in self.maps)

    @property
    def graph_maps(self) -> tuple[str, ...]:
        """Names of the maps that the graph computes."""
        return tuple(output.name for output in self.maps if output.in_graph)

    def map_output(self, name: str) -> MapOutput:
        """The map of that name. Raises: KeyError: there is none."""
        return {output.name: output for output in self.maps}[name]

    def layer(self, name: str) -> Layer:
        """The layer of that name. Raises: KeyError: there is none."""
        return {layer.name: layer for layer in self.layers}[name]

    def to_json(self) -> str:
        """What `from_metadata` reads."""
        return self.model_dump_json()

    @classmethod
    def from_metadata(cls, metadata: dict[str, str], where: str) -> Description:
        """Read the description from an ONNX file's metadata.

        Raises:
            ModelFileError: there is none, or it is not one this version can read; the message begins with `where`.
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
