"""A model's description: all that serving needs beside the graph, kept inside the ONNX file as JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contract.errors import ModelFileError
from contract.preprocessing import Preprocessing

METADATA_KEY = "tlcli.description"
"""Where the JSON stands in the ONNX file's `metadata_props`."""

IMAGES, TARGETS, WANTED = "images", "targets", "wanted"
SCORES, LOGITS, CLASSES, FEATURES = "scores", "logits", "classes", "features"


class MapOutput(BaseModel):
    """A map that the graph holds.

    method: its name, which is the graph's output too (see `contract.methods`).
    layer: the module whose activations it explains.
    height, width: of the map, which is the layer's own size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    layer: str
    height: int
    width: int


class Parity(BaseModel):
    """How far the graph's answers lay from PyTorch's when it was exported.

    pictures: how many real pictures were compared, from the set that `source` names.
    logits: the largest difference; absolute up to logits of 100, above that as a share of the largest logit, times 100.
    maps: a method each, the largest difference relative to the map's largest value.
    top1_agreement: the share of pictures with the same first class, in [0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pictures: int
    source: str
    logits: float
    maps: dict[str, float]
    top1_agreement: float


class Provenance(BaseModel):
    """Where a model comes from: enough to make it again.

    versions: package name to version, as exported.
    run: the run folder's name; dataset: its spec; dataset_fingerprint: SHA-256 over the pictures' contents.
    metrics: final figures of the run (`val_top1`, ...), shares in [0, 1].
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


class Description(BaseModel):
    """Versioned: a reader refuses a `format_version` it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    maps: tuple[MapOutput, ...]
    feature_channels: int
    provenance: Provenance

    @property
    def methods(self) -> tuple[str, ...]:
        """The maps' methods, in the order of `maps`."""
        return tuple(output.method for output in self.maps)

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
