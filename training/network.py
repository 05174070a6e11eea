"""A timm backbone with a head of ours, cut where the maps need it: features, embedding, classifier."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import numpy.typing as npt
import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import training.own_backbones  # noqa: F401 - registers them
from contract.errors import SettingsError, first_line
from contract.preprocessing import Preprocessing
from training.config import Scalar

_HEAD_PARTS = ("pre_logits", "conv_head", "norm_head", "head")
"""What timm calls the layers that some networks have between the features and the classifier; ours name theirs in `head_parts`."""

_OURS = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "num_classes", "in_chans", "features_only"})
"""Arguments of `timm.create_model` that other settings decide."""


class NetworkConfig(BaseModel):
    """All that is needed to build the network again, weights aside."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    backbone: str
    model_kwargs: dict[str, Scalar] = Field(default_factory=dict)
    head: str
    num_classes: int = Field(ge=2)
    preprocessing: Preprocessing


class Network(nn.Module):
    """`classify(embed(features(x)))`.

    features: float `[N, 3, H, W]`, normalised, to `[N, c, h, w]`: the backbone, and what the maps explain.
    embed: to `[N, d]`: pooling, flattening, or the hidden layers of the network's own head; has no
        parameters of ours, and is frozen with the backbone in feature extraction.
    classify: to logits `[N, C]`: the head, always trained.
    """

    def __init__(self, config: NetworkConfig, backbone: nn.Module) -> None:
        """Give a backbone its head.

        Args:
            config: what to build.
            backbone: a timm model of `config.backbone`, of any number of classes; its classifier is replaced.

        Raises:
            SettingsError: the backbone cannot take the input's size, has no spatial features, or no classifier
                that `original` could mean.
        """
        super().__init__()
        self.config = config
        self.backbone = backbone
        size = config.preprocessing
        self._own_head = _takes_own_head(backbone, config)
        self.head: nn.Module | None = None  # the backbone's own, where it has one that serves
        if not self._own_head:
            unused = unused_head_parts(backbone, config.head)
            backbone.reset_classifier(0)  # type: ignore[operator]
            for name in unused:
                setattr(backbone, name, nn.Identity())
        channels, height, width = _feature_shape(backbone, config)
        if not self._own_head:
            if config.head == "linear":
                self.head = nn.Linear(channels, config.num_classes)
                nn.init.normal_(self.head.weight, std=0.01)
                nn.init.zeros_(self.head.bias)
            else:
                units = int(config.head.removeprefix("mlp:"))
                self.head = nn.Sequential(
                    nn.Linear(channels * height * width, units), nn.ReLU(), nn.Dropout(0.5), nn.Linear(units, config.num_classes)
                )
        self.register_buffer("mean", 255 * torch.tensor(size.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(size.std).view(1, 3, 1, 1), persistent=False)

    @property
    def classifier(self) -> nn.Module:
        """The trained head: a layer or two of ours, or the last layer of the backbone's own head."""
        return self.head if self.head is not None else cast("nn.Module", self.backbone.get_classifier())  # type: ignore[operator]

    @property
    def last_layer(self) -> nn.Linear | nn.Conv2d:
        """The layer that makes the logits: linear, or a convolution of kernel 1x1."""
        classifier = self.classifier
        return cast("nn.Linear | nn.Conv2d", classifier[-1] if isinstance(classifier, nn.Sequential) else classifier)

    def penultimate(self, features: Tensor) -> Tensor:
        """`[N, c, h, w]` to `[N, d]`, what `last_layer` takes: `classify(embed(features))` without it."""
        embedding, classifier = self.embed(features), self.classifier
        return cast("Tensor", classifier[:-1](embedding)) if isinstance(classifier, nn.Sequential) else embedding

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 `[N, H, W, 3]` in RGB to float `[N, 3, H, W]`: `(x / 255 - mean) / std`."""
        mean, std = cast("Tensor", self.mean), cast("Tensor", self.std)
        return (images.permute(0, 3, 1, 2).to(mean.dtype) - mean) / std

    def features(self, inputs: Tensor) -> Tensor:
        """`[N, 3, H, W]`, normalised, to `[N, c, h, w]`."""
        return cast("Tensor", self.backbone.forward_features(inputs))  # type: ignore[operator]

    def embed(self, features: Tensor) -> Tensor:
        """`[N, c, h, w]` to `[N, d]`."""
        if self._own_head:
            return cast("Tensor", self.backbone.forward_head(features, pre_logits=True))  # type: ignore[operator]
        return features.mean((-2, -1)) if self.config.head == "linear" else features.flatten(1)

    def classify(self, embedding: Tensor) -> Tensor:
        """`[N, d]` to logits `[N, C]`."""
        return apply_classifier(self.classifier, embedding)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 3, H, W]`, normalised, to logits `[N, C]`."""
        return self.classify(self.embed(self.features(inputs)))

    @torch.inference_mode()
    def predict(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 `[N, H, W, 3]` to logits `[N, C]`, in the mode and on the device the network is in."""
        device = cast("Tensor", self.mean).device
        return self(self.normalise(torch.from_numpy(images).to(device)))  # type: ignore[no-any-return]


def apply_classifier(classifier: nn.Module, embedding: Tensor) -> Tensor:
    """`[N, d]` to logits `[N, C]` by a `Network.classifier`, which may be a convolution of kernel 1x1, as in DPN and DLA."""
    if isinstance(classifier, nn.Conv2d):
        return classifier(embedding[..., None, None]).flatten(1)  # type: ignore[no-any-return]
    return cast("Tensor", classifier(embedding))


def build(config: NetworkConfig) -> Network:
    """The network with random weights, in eval mode.

    Raises:
        SettingsError: timm has no such model, it does not take the arguments, or see `Network`.
    """
    return Network(config, create_backbone(config.backbone, config.model_kwargs)).eval()


def create_backbone(name: str, model_kwargs: dict[str, Scalar], **more: Any) -> nn.Module:
    """`timm.create_model`, its errors translated.

    Args:
        name: as timm knows it, with or without a tag of official weights.
        model_kwargs: a user's.
        more: ours.

    Raises:
        SettingsError: see `build`.
    """
    require_backbone(name)
    if taken := sorted(_OURS & model_kwargs.keys()):
        raise SettingsError(
            f"--model-kwargs {', '.join(taken)}: not a model argument to set here: weights, classes and input are decided elsewhere"
        )
    try:
        backbone: nn.Module = timm.create_model(name, **more, **cast("dict[str, Any]", model_kwargs))
    except TypeError as error:  # timm passes what it does not know to the model's constructor
        if not model_kwargs:
            raise
        raise SettingsError(f"{name} does not take these model arguments ({', '.join(model_kwargs)}): {error}") from error
    return backbone


def require_backbone(name: str) -> None:
    """Raises: SettingsError: timm has no such model, or no weights of such a tag; the message lists what is near."""
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('.')[0].rstrip('0123456789')}*")[:6]
        hint = f"; near it: {', '.join(close)}" if close else ""
        raise SettingsError(f"unknown backbone {name!r}: `tlcli backbones` lists those there are{hint}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture = name.split(".")[0]
        tags = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True)) or "none"
        raise SettingsError(f"unknown backbone {name!r}: {architecture} has no weights of that tag; it has: {tags}") from error


def unused_head_parts(backbone: nn.Module, head: str) -> list[str]:
    """The layers of the network's own head (VGG's fc6 and fc7) that `head` leaves out, as names of its children."""
    if _wants_own_head(backbone, head):
        return []
    parts = getattr(backbone, "head_parts", _HEAD_PARTS)
    present = [name for name, _ in backbone.named_children() if name in parts]
    used: set[str] = set()
    handles = [getattr(backbone, name).register_forward_hook(lambda *_, name=name: used.add(name)) for name in present]
    try:
        _try_features(backbone, cast("dict[str, Any]", backbone.pretrained_cfg)["input_size"])
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in present if name not in used]


def _wants_own_head(backbone: nn.Module, head: str) -> bool:
    """`linear` is the network's own head too, where that has no hidden layers: what its classifier takes is as wide as the features."""
    return head == "original" or (
        head == "linear" and getattr(backbone, "head_hidden_size", backbone.num_features) == backbone.num_features
    )


def _takes_own_head(backbone: nn.Module, config: NetworkConfig) -> bool:
    """Whether the network's own head serves; its classifier is then one for `num_classes`."""
    if not _wants_own_head(backbone, config.head):
        return False
    backbone.reset_classifier(config.num_classes)  # type: ignore[operator]
    if isinstance(backbone.get_classifier(), (nn.Linear, nn.Conv2d)):  # type: ignore[operator]
        return True
    if config.head == "original":
        raise SettingsError(
            f"{config.backbone}: its own head does not end with a linear layer, so it cannot be kept: fine-tune with --head linear"
        )
    return False


def _feature_shape(backbone: nn.Module, config: NetworkConfig) -> tuple[int, int, int]:
    size = config.preprocessing
    try:
        features = _try_features(backbone, (3, size.height, size.width))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        made_for = "x".join(map(str, cast("dict[str, Any]", backbone.pretrained_cfg)["input_size"][1:]))
        reason = first_line(error)
        raise SettingsError(
            f"{config.backbone} cannot take pictures of {size.height}x{size.width} pixels ({reason}): it was made for {made_for};"
            " choose another --image-size"
        ) from error
    if features.ndim != 4 or str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        raise SettingsError(
            f"{config.backbone} has no spatial features (its features are {list(features.shape)}, [N, c, h, w] was expected):"
            " choose a convolutional backbone"
        )
    _, channels, height, width = features.shape
    return channels, height, width


def _try_features(backbone: nn.Module, shape: tuple[int, int, int]) -> Tensor:
    """The features of one blank input, in eval; the backbone's mode is left as it was."""
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            return cast("Tensor", backbone.forward_features(torch.zeros(1, *shape)))  # type: ignore[operator]
    finally:
        backbone.train(training)
