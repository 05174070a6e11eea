"""Image classifiers: a timm backbone split into features, embedding and classifier, or a whole timm model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import timm
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

import tlcli.training.models.zoo  # noqa: F401 - registers them
from tlcli.contract.errors import SettingsError, first_line
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.models.backbone_names import close_backbone_names
from tlcli.training.models.pretrained_head import OwnHead, find_own_head, renew_classifier
from tlcli.training.settings.config import Scalar

_HEAD_LAYERS = ("pre_logits", "conv_head", "norm_head", "head")
"""timm's names for layers between the features and the classifier; this project's own backbones list theirs in `head_layers`."""

_RESERVED = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "num_classes", "in_chans", "features_only"}
)
"""Arguments of `timm.create_model` that are set by other settings."""


class CutError(SettingsError):
    """Network that cannot be split into features and a head: it can be run, but neither fine-tuned nor explained."""


class NetworkConfig(BaseModel):
    """Everything needed to build a network, except its weights.

    pretrained: timm's argument of that name. Some of timm's networks use other constants with it, such as the epsilon of the batch
        norms in `fbnetc_100`. None in runs of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    backbone: str
    model_kwargs: dict[str, Scalar] = Field(default_factory=dict)
    head: str
    num_classes: int = Field(ge=2)
    preprocessing: Preprocessing
    pretrained: bool | None = None


class ImageNetwork(nn.Module):
    """timm model with its normalization: uint8 images to logits.

    config: configuration of the network. backbone: the timm model.
    """

    def __init__(self, config: NetworkConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        size = config.preprocessing
        self.register_buffer("mean", 255 * torch.tensor(size.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(size.std).view(1, 3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return cast("Tensor", self.mean).device

    def normalise(self, images: Tensor) -> Tensor:
        """Normalize RGB images, uint8 `[N, H, W, 3]`, to float `[N, 3, H, W]`: `(x / 255 - mean) / std`."""
        mean, std = cast("Tensor", self.mean), cast("Tensor", self.std)
        return (images.permute(0, 3, 1, 2).to(mean.dtype) - mean) / std

    @torch.inference_mode()
    def predict(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Compute logits `[N, C]` of images, uint8 `[N, H, W, 3]`, on the network's device and in its current mode."""
        device = cast("Tensor", self.mean).device
        return self(self.normalise(torch.from_numpy(images).to(device)))  # type: ignore[no-any-return]

    def divide_logits(self, temperature: float) -> None:
        """Change the network so that it returns its logits divided by `temperature`."""
        raise NotImplementedError


class WholeNetwork(ImageNetwork):
    """timm model of any architecture, run as a whole: logits without maps."""

    def __init__(self, config: NetworkConfig, backbone: nn.Module) -> None:
        """Wrap a model and check it on a blank image.

        Args:
            config: configuration of the model; its head is `original`.
            backbone: a timm model with its own classifier.

        Raises:
            SettingsError: the model does not accept images of the configured size.
            CutError: the model does not return logits `[N, C]`.
        """
        super().__init__(config, backbone)
        self.temperature = 1.0
        logits = try_at_size(backbone, config, backbone)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != (1, config.num_classes):
            raise CutError(
                f"{config.backbone} is not a classifier: expected logits [N, {config.num_classes}], but it returns {_described(logits)};"
                " choose another backbone"
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits `[N, C]` of normalized inputs `[N, 3, H, W]`."""
        logits = cast("Tensor", self.backbone(inputs))
        return logits if self.temperature == 1 else logits / self.temperature

    def divide_logits(self, temperature: float) -> None:
        """Divide all future logits by `temperature`."""
        self.temperature *= temperature


class Network(ImageNetwork):
    """Backbone with a head, split into three steps: `classify(embed(features(x)))`.

    features: the backbone, from normalized float `[N, 3, H, W]` to `[N, c, h, w]`; its output is what the maps explain.
    embed: pooling, flattening, or the hidden layers of the network's own head, to `[N, d]`; it adds no parameters, and is frozen
        with the backbone in feature extraction.
    classify: the head, to logits `[N, C]`; always trained.
    """

    def __init__(self, config: NetworkConfig, backbone: nn.Module, keep_classifier: bool = False) -> None:
        """Add a head to a backbone.

        Args:
            config: configuration of the network.
            backbone: a timm model of `config.backbone`, with any number of classes; its classifier is replaced.
            keep_classifier: keep the backbone's own last layer and its weights; needs the head `original`.

        Raises:
            SettingsError: the backbone does not accept the input size.
            CutError: the backbone has no spatial features, or no classifier that can serve as head `original`.
        """
        super().__init__(config, backbone)
        channels, height, width = _feature_shape(backbone, config)
        unused = unused_head_layers(backbone, config.head)
        self.head: nn.Module | None = None  # None if the backbone's own head is used
        self._own_head = _own_head(backbone, config, keep_classifier)
        if self._own_head is None:
            renew_classifier(backbone, 0)
            for name in unused:
                setattr(backbone, name, nn.Identity())
            if config.head == "linear":
                self.head = nn.Linear(channels, config.num_classes)
                nn.init.normal_(self.head.weight, std=0.01)
                nn.init.zeros_(self.head.bias)
            else:
                units = int(config.head.removeprefix("mlp:"))
                self.head = nn.Sequential(
                    nn.Linear(channels * height * width, units), nn.ReLU(), nn.Dropout(0.5), nn.Linear(units, config.num_classes)
                )

    @property
    def has_own_head(self) -> bool:
        """True if the head is the backbone's own, so that timm's forward pass equals this network's."""
        return self._own_head is not None

    @property
    def classifier(self) -> nn.Module:
        """Trained head: the new linear or MLP head, or the last layer of the backbone's own head."""
        return self.head if self._own_head is None else self.backbone.get_submodule(self._own_head.classifier)  # type: ignore[return-value]

    @property
    def last_layer(self) -> nn.Linear | nn.Conv2d:
        """Layer that computes the logits: linear, or a 1x1 convolution."""
        classifier = self.classifier
        return cast("nn.Linear | nn.Conv2d", classifier[-1] if isinstance(classifier, nn.Sequential) else classifier)

    def penultimate(self, features: Tensor) -> Tensor:
        """Compute the input of `last_layer`, `[N, d]`, from features `[N, c, h, w]`."""
        embedding, classifier = self.embed(features), self.classifier
        return cast("Tensor", classifier[:-1](embedding)) if isinstance(classifier, nn.Sequential) else embedding

    def features(self, inputs: Tensor) -> Tensor:
        """Compute features `[N, c, h, w]` of normalized inputs `[N, 3, H, W]`."""
        return cast("Tensor", self.backbone.forward_features(inputs))  # type: ignore[operator]

    def embed(self, features: Tensor) -> Tensor:
        """Compute the embedding `[N, d]` of features `[N, c, h, w]`."""
        if self._own_head is not None:
            return self._own_head.embed(self.backbone, features)
        return features.mean((-2, -1)) if self.config.head == "linear" else features.flatten(1)

    def classify(self, embedding: Tensor) -> Tensor:
        """Compute logits `[N, C]` of an embedding `[N, d]`."""
        return apply_classifier(self.classifier, embedding)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits `[N, C]` of normalized inputs `[N, 3, H, W]`."""
        return self.classify(self.embed(self.features(inputs)))

    @torch.no_grad()
    def divide_logits(self, temperature: float) -> None:
        """Divide the last layer's weights by `temperature`, which costs nothing at inference."""
        last = self.last_layer
        last.weight.div_(temperature)
        if last.bias is not None:
            last.bias.div_(temperature)


def apply_classifier(classifier: nn.Module, embedding: Tensor) -> Tensor:
    """Compute logits `[N, C]` of an embedding `[N, d]` with a `Network.classifier`, a 1x1 convolution in DPN and DLA."""
    if isinstance(classifier, nn.Conv2d):
        return classifier(embedding[..., None, None]).flatten(1)  # type: ignore[no-any-return]
    return cast("Tensor", classifier(embedding))


def build(config: NetworkConfig) -> Network:
    """Build a network with random weights, in eval mode.

    Raises:
        SettingsError: timm has no such model, or the model does not accept the arguments; see also `Network`.
    """
    backbone = create_backbone(config.backbone, config.model_kwargs)
    if config.pretrained:
        backbone = _as_if_pretrained(config, backbone)
    return Network(config, backbone).eval()


def _as_if_pretrained(config: NetworkConfig, backbone: nn.Module) -> nn.Module:
    """Return the network that timm builds with `pretrained=True`, with the weights of `backbone`, which was built without it."""
    overlay = {
        "state_dict": backbone.state_dict(), "num_classes": getattr(backbone, "num_classes", 0), "custom_load": False, "first_conv": None
    }  # fmt: skip
    built = create_backbone(config.backbone, config.model_kwargs, pretrained=True, pretrained_cfg_overlay=overlay)
    cast("dict[str, Any]", built.pretrained_cfg).pop("state_dict")
    return built


def create_backbone(name: str, model_kwargs: dict[str, Scalar], **more: Any) -> nn.Module:
    """Call `timm.create_model` and translate its errors.

    Args:
        name: timm's name of the model, with or without a tag of official weights.
        model_kwargs: the user's arguments of the model.
        more: further arguments of `timm.create_model`.

    Raises:
        SettingsError: timm has no such model, or the model does not accept the arguments.
    """
    require_backbone(name)
    if reserved := sorted(_RESERVED & model_kwargs.keys()):
        raise SettingsError(
            f"--model-kwargs {', '.join(reserved)}: cannot be set here; weights, classes and input have settings of their own"
        )
    try:
        backbone: nn.Module = timm.create_model(name, **more, **cast("dict[str, Any]", model_kwargs))
    except TypeError as error:  # timm passes unknown arguments to the model's constructor
        if not model_kwargs:
            raise
        raise SettingsError(f"{name} does not accept these model arguments ({', '.join(model_kwargs)}): {error}") from error
    return backbone


def require_backbone(name: str) -> None:
    """Check that timm has a model of this name.

    Raises:
        SettingsError: timm has no such model, or no weights with that tag; the message lists similar names.
    """
    if not timm.is_model(name):
        close = close_backbone_names(name)
        hint = f"; similar names: {', '.join(close)}" if close else ""
        raise SettingsError(f"unknown backbone {name!r}: run `tlcli backbones` for a list{hint}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        architecture = name.split(".")[0]
        tags = ", ".join(timm.list_models(f"{architecture}.*", pretrained=True)) or "none"
        raise SettingsError(f"unknown backbone {name!r}: {architecture} has no weights with that tag; available: {tags}") from error


def unused_head_layers(backbone: nn.Module, head: str) -> list[str]:
    """Return the names of the backbone's children that belong to its own head (VGG's fc6 and fc7) and are not part of `head`."""
    if _wants_own_head(backbone, head):
        return []
    layers = getattr(backbone, "head_layers", _HEAD_LAYERS)
    present = [name for name, _ in backbone.named_children() if name in layers]
    used: set[str] = set()
    handles = [getattr(backbone, name).register_forward_hook(lambda *_, name=name: used.add(name)) for name in present]
    try:
        _try(backbone, backbone.forward_features, torch.zeros(1, *cast("dict[str, Any]", backbone.pretrained_cfg)["input_size"]))  # type: ignore[arg-type]
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in present if name not in used]


def _wants_own_head(backbone: nn.Module, head: str) -> bool:
    """Return True for `original`, and for `linear` if the network's own head has no hidden layers.

    It has none if its classifier's input is as wide as the features.
    """
    return head == "original" or (
        head == "linear" and getattr(backbone, "head_hidden_size", backbone.num_features) == backbone.num_features
    )


def _own_head(backbone: nn.Module, config: NetworkConfig, keep_classifier: bool) -> OwnHead | None:
    """Return the network's own head, with a classifier for `num_classes`, or None if a new head is needed."""
    if not _wants_own_head(backbone, config.head):
        return None
    if not keep_classifier:
        renew_classifier(backbone, config.num_classes)
    size = config.preprocessing
    head, reason = find_own_head(backbone, (size.height, size.width))
    if head is None and config.head == "original":
        raise CutError(
            f"{config.backbone}: its own head {reason}, so it can be neither trained nor explained: fine-tune with --head linear, or export"
            f" the published model without maps: `tlcli export --backbone {config.backbone} --cam none`"
        )
    return head


def _feature_shape(backbone: nn.Module, config: NetworkConfig) -> tuple[int, int, int]:
    features: Any = try_at_size(backbone, config, backbone.forward_features)  # type: ignore[arg-type]
    if not isinstance(features, Tensor) or features.ndim != 4 or str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        raise CutError(
            f"{config.backbone} has no spatial features (expected [N, c, h, w], but its features are {_described(features)}):"
            " choose a convolutional backbone (`tlcli backbones` lists them), or export the published model without maps:"
            f" `tlcli export --backbone {config.backbone} --cam none`"
        )
    _, channels, height, width = features.shape
    return channels, height, width


def try_at_size(backbone: nn.Module, config: NetworkConfig, function: Callable[[Tensor], Any], inputs: Tensor | None = None) -> Any:
    """Call a function of the backbone on inputs of the configured size, in eval mode, and return its result.

    Args:
        backbone: a timm model; its mode is restored afterwards.
        config: configuration of the network.
        function: the backbone, or one of its methods.
        inputs: `[N, 3, H, W]`; None for a blank image.

    Raises:
        SettingsError: the backbone does not accept the size.
    """
    size = config.preprocessing
    try:
        return _try(backbone, function, torch.zeros(1, 3, size.height, size.width) if inputs is None else inputs)
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        made_for = "x".join(map(str, cast("dict[str, Any]", backbone.pretrained_cfg)["input_size"][1:]))
        reason = first_line(error)
        raise SettingsError(
            f"{config.backbone} does not accept images of {size.height}x{size.width} pixels ({reason}): it was made for {made_for};"
            " choose another --image-size"
        ) from error


def _try(backbone: nn.Module, function: Callable[[Tensor], Any], inputs: Tensor) -> Any:
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            return function(inputs)
    finally:
        backbone.train(training)


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return str(list(output.shape))
    if isinstance(output, (tuple, list)):
        return f"{len(output)} outputs: {', '.join(map(_described, output))}"
    return f"a {type(output).__name__}"
