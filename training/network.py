"""A timm backbone with a head of ours, cut where the maps need it: features, embedding, classifier."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from contract.errors import SettingsError
from contract.preprocessing import Preprocessing
from training.config import Scalar


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
        """`backbone`: a timm model of `config.backbone`, of any number of classes; its classifier is replaced."""
        super().__init__()
        self.config = config
        self.backbone = backbone
        size = config.preprocessing
        hidden = cast(int, backbone.head_hidden_size) if hasattr(backbone, "head_hidden_size") else cast(int, backbone.num_features)
        self._own_head = config.head == "original" or (config.head == "linear" and hidden == backbone.num_features)
        self.head: nn.Module | None = None  # the backbone's own, where it has one that serves
        if self._own_head:
            backbone.reset_classifier(config.num_classes)  # type: ignore[operator]
            if not isinstance(self.classifier, (nn.Linear, nn.Conv2d)):
                raise SettingsError(f"{config.backbone} has no classifier that can be replaced: use --head mlp:256")
        else:
            backbone.reset_classifier(0)  # type: ignore[operator]
            _drop_unused_head(backbone)
            with torch.inference_mode():
                training = self.backbone.training
                self.backbone.eval()
                channels, height, width = _spatial(self.features(torch.zeros(1, 3, size.height, size.width)), config.backbone).shape[1:]
                self.backbone.train(training)
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
        return self.head if self.head is not None else cast(nn.Module, self.backbone.get_classifier())  # type: ignore[operator]

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 `[N, H, W, 3]` in RGB to float `[N, 3, H, W]`: `(x / 255 - mean) / std`."""
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        return (images.permute(0, 3, 1, 2).to(mean.dtype) - mean) / std

    def features(self, inputs: Tensor) -> Tensor:
        """`[N, 3, H, W]`, normalised, to `[N, c, h, w]`."""
        return cast(Tensor, self.backbone.forward_features(inputs))  # type: ignore[operator]

    def embed(self, features: Tensor) -> Tensor:
        """`[N, c, h, w]` to `[N, d]`."""
        if self._own_head:
            return cast(Tensor, self.backbone.forward_head(features, pre_logits=True))  # type: ignore[operator]
        return features.mean((-2, -1)) if self.config.head == "linear" else features.flatten(1)

    def classify(self, embedding: Tensor) -> Tensor:
        """`[N, d]` to logits `[N, C]`."""
        if isinstance(self.classifier, nn.Conv2d):  # of kernel 1x1, as in DPN
            return cast(Tensor, self.classifier(embedding[..., None, None])).flatten(1)
        return cast(Tensor, self.classifier(embedding))

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 3, H, W]`, normalised, to logits `[N, C]`."""
        return self.classify(self.embed(self.features(inputs)))

    @torch.inference_mode()
    def predict(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 `[N, H, W, 3]` to logits `[N, C]`, in the mode and on the device the network is in."""
        device = cast(Tensor, self.mean).device
        return self(self.normalise(torch.from_numpy(images).to(device)))  # type: ignore[no-any-return]


def build(config: NetworkConfig) -> Network:
    """The network with random weights, in eval mode.

    Raises:
        SettingsError: timm has no such model, it does not take the arguments, or it has no spatial features.
    """
    return Network(config, create_backbone(config.backbone, config.model_kwargs)).eval()


def create_backbone(name: str, model_kwargs: dict[str, Scalar], **more: object) -> nn.Module:
    """`timm.create_model`, its errors translated.

    Raises:
        SettingsError: see `build`.
    """
    if not timm.is_model(name):
        close = [found for found in timm.list_models(f"*{name.split('.')[0].rstrip('0123456789')}*")][:6]
        hint = f"; near it: {', '.join(close)}" if close else ""
        raise SettingsError(f"unknown backbone {name!r}: `tlcli backbones` lists those there are{hint}")
    try:
        return cast(nn.Module, timm.create_model(name, **more, **model_kwargs))
    except TypeError as error:  # timm passes what it does not know to the model's constructor
        raise SettingsError(f"{name} does not take these model arguments ({', '.join(model_kwargs)}): {error}") from error


def _spatial(features: Tensor, name: str) -> Tensor:
    if features.ndim != 4:
        raise SettingsError(
            f"{name} has no spatial features (its features are {list(features.shape)}, [N, c, h, w] was expected): choose a convolutional backbone"
        )
    return features


def _drop_unused_head(backbone: nn.Module) -> None:
    """Remove the hidden layers of the network's own head (VGG's fc6 and fc7), which `linear` and `mlp` leave out."""
    for name in ("pre_logits", "conv_head", "head", "norm_head"):
        if name in dict(backbone.named_children()) and not _used_in_features(backbone, name):
            setattr(backbone, name, nn.Identity())


def _used_in_features(backbone: nn.Module, name: str) -> bool:
    used = False

    def note(*_: object) -> None:
        nonlocal used
        used = True

    handle = getattr(backbone, name).register_forward_hook(note)
    training = backbone.training
    try:
        with torch.inference_mode():
            size = cast(tuple[int, int, int], backbone.pretrained_cfg["input_size"])  # type: ignore[index]
            backbone.eval().forward_features(torch.zeros(1, *size))  # type: ignore[operator]
    finally:
        handle.remove()
        backbone.train(training)
    return used
