"""Image classifiers: a timm backbone split into features, embedding and classifier, or a complete timm model."""

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
from tlcli.training.models.feature_layout import FeatureLayout, possible_layouts
from tlcli.training.models.pretrained_head import OwnHead, find_own_head, renew_classifier
from tlcli.training.settings.model_arguments import Argument

_HEAD_LAYERS = ("pre_logits", "conv_head", "norm_head", "head")
"""timm's names for layers between the features and the classifier. This project's own backbones list them in `head_layers`."""

_RESERVED = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "num_classes", "in_chans", "features_only"}
)
"""Arguments of `timm.create_model` that are controlled by other settings."""


class CutError(SettingsError):
    """Raised for a network that cannot be split into features and a head. It can be run and explained as a whole, but not fine-tuned."""


class NetworkConfig(BaseModel):
    """Configuration that fully describes a network except for its weights.

    pretrained: `pretrained` argument of `timm.create_model`. It changes constants in some timm networks, such as the batch norm epsilon
        of `fbnetc_100`. None in runs of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    backbone: str
    model_kwargs: dict[str, Argument] = Field(default_factory=dict)
    head: str
    num_classes: int = Field(ge=2)
    preprocessing: Preprocessing
    pretrained: bool | None = None


class ImageNetwork(nn.Module):
    """Base class of image classifiers: a timm model with its input normalization.

    config: configuration of the network. backbone: timm model.
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
        """Device that the network is on."""
        return cast("Tensor", self.mean).device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the network's inputs."""
        return cast("Tensor", self.mean).dtype

    def normalise(self, images: Tensor) -> Tensor:
        """Normalize RGB images, uint8 `[N, H, W, 3]`, to float `[N, 3, H, W]`: `(x / 255 - mean) / std`."""
        mean, std = cast("Tensor", self.mean), cast("Tensor", self.std)
        return (images.permute(0, 3, 1, 2).to(mean.dtype) - mean) / std

    @torch.inference_mode()
    def predict(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Compute logits `[N, C]` for images, uint8 `[N, H, W, 3]`, on the network's device and in its current mode."""
        device = cast("Tensor", self.mean).device
        return self(self.normalise(torch.from_numpy(images).to(device)))  # type: ignore[no-any-return]

    def divide_logits(self, temperature: float) -> None:
        """Modify the network so that its logits are divided by `temperature`."""
        raise NotImplementedError


class WholeNetwork(ImageNetwork):
    """timm model of any architecture with its own classifier, run as a whole."""

    def __init__(self, config: NetworkConfig, backbone: nn.Module) -> None:
        """Wrap a timm model and check it by running it on a blank image.

        Args:
            config: configuration of the model, with the head `original`.
            backbone: timm model with its own classifier.

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
        """Compute logits `[N, C]` for normalized inputs `[N, 3, H, W]`."""
        logits = cast("Tensor", self.backbone(inputs))
        return logits if self.temperature == 1 else logits / self.temperature

    def divide_logits(self, temperature: float) -> None:
        """Divide the logits by `temperature` in every later forward pass."""
        self.temperature *= temperature


class Network(ImageNetwork):
    """Backbone with a head. The forward pass has three steps: `classify(embed(features(x)))`.

    features: backbone, which maps normalized float inputs `[N, 3, H, W]` to features: `[N, c, h, w]`, `[N, h, w, c]`, or tokens
        `[N, t, c]`. `layout` is where they hold a map `[N, c, h, w]`, which class activation maps explain.
    embed: pooling, flattening, or the hidden layers of the network's own head, with output `[N, d]`. It adds no parameters and is frozen
        together with the backbone in feature extraction.
    classify: head, which computes logits `[N, C]` and is always trained.

    The attribute `feature_channels` is the number of channels c of the features.
    """

    def __init__(self, config: NetworkConfig, backbone: nn.Module, keep_classifier: bool = False) -> None:
        """Add a head to a backbone.

        Args:
            config: configuration of the network.
            backbone: timm model `config.backbone` with any number of classes; its classifier is replaced.
            keep_classifier: True to keep the backbone's own last layer and its weights; requires the head `original`.

        Raises:
            SettingsError: the backbone does not accept the input size.
            CutError: the backbone has no spatial features, or its classifier cannot be used as head `original`.
        """
        super().__init__(config, backbone)
        self.layout, self.feature_channels = _feature_layout(backbone, config)
        unused = unused_head_layers(backbone, config.head)
        self.head: nn.Module | None = None  # None if the backbone's own head is used
        self._own_head = _own_head(backbone, config, keep_classifier)
        if self._own_head is None:
            renew_classifier(backbone, 0)
            for name in unused:
                setattr(backbone, name, nn.Identity())
            if config.head == "linear":
                self.head = nn.Linear(self.feature_channels, config.num_classes)
                nn.init.normal_(self.head.weight, std=0.01)
                nn.init.zeros_(self.head.bias)
            else:
                units = int(config.head.removeprefix("mlp:"))
                self.head = nn.Sequential(
                    nn.Linear(self._embedding_size(), units), nn.ReLU(), nn.Dropout(0.5), nn.Linear(units, config.num_classes)
                )

    @property
    def has_own_head(self) -> bool:
        """True if the network uses the backbone's own head, so that its forward pass is identical to timm's."""
        return self._own_head is not None

    @property
    def classifier(self) -> nn.Module:
        """Head to train: the new linear or MLP head, or the last layer of the backbone's own head."""
        return self.head if self._own_head is None else self.backbone.get_submodule(self._own_head.classifier)  # type: ignore[return-value]

    @property
    def last_layer(self) -> nn.Linear | nn.Conv2d:
        """Layer that computes the logits, either a linear layer or a 1x1 convolution."""
        classifier = self.classifier
        return cast("nn.Linear | nn.Conv2d", classifier[-1] if isinstance(classifier, nn.Sequential) else classifier)

    def penultimate(self, features: Tensor) -> Tensor:
        """Compute the input of `last_layer`, `[N, d]`, for features."""
        embedding, classifier = self.embed(features), self.classifier
        return cast("Tensor", classifier[:-1](embedding)) if isinstance(classifier, nn.Sequential) else embedding

    def features(self, inputs: Tensor) -> Tensor:
        """Compute features for normalized inputs `[N, 3, H, W]`."""
        return cast("Tensor", self.backbone.forward_features(inputs))  # type: ignore[operator]

    def embed(self, features: Tensor) -> Tensor:
        """Compute embeddings `[N, d]` for features.

        The hidden layer of a new head takes the features at all positions of a convolutional network, and the mean over the positions of
        all others.
        """
        if self._own_head is not None:
            return self._own_head.embed(self.backbone, features)
        if self.config.head != "linear" and self.layout.kind == "channels_first":
            return features.flatten(1)
        return self.layout.to_map(features).mean((-2, -1))

    def _embedding_size(self) -> int:
        positions = self.layout.height * self.layout.width if self.layout.kind == "channels_first" else 1
        return self.feature_channels * positions

    def classify(self, embedding: Tensor) -> Tensor:
        """Compute logits `[N, C]` for embeddings `[N, d]`."""
        return apply_classifier(self.classifier, embedding)

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute logits `[N, C]` for normalized inputs `[N, 3, H, W]`."""
        return self.classify(self.embed(self.features(inputs)))

    @torch.no_grad()
    def divide_logits(self, temperature: float) -> None:
        """Divide the weights and bias of the last layer by `temperature`, so that inference has no extra cost."""
        last = self.last_layer
        last.weight.div_(temperature)
        if last.bias is not None:
            last.bias.div_(temperature)


def apply_classifier(classifier: nn.Module, embedding: Tensor) -> Tensor:
    """Compute logits `[N, C]` for embeddings `[N, d]` with a `Network.classifier`, which is a 1x1 convolution in DPN and DLA."""
    if isinstance(classifier, nn.Conv2d):
        return classifier(embedding[..., None, None]).flatten(1)  # type: ignore[no-any-return]
    return cast("Tensor", classifier(embedding))


def build(config: NetworkConfig) -> Network:
    """Build a network with random weights, in eval mode.

    Raises:
        SettingsError: timm has no model of this name, or the model does not accept the arguments; see also `Network`.
    """
    backbone = create_backbone(config.backbone, config.model_kwargs)
    if config.pretrained:
        backbone = _as_if_pretrained(config, backbone)
    return Network(config, backbone).eval()


def _as_if_pretrained(config: NetworkConfig, backbone: nn.Module) -> nn.Module:
    """Rebuild a backbone with `pretrained=True`, but with the weights of `backbone`, so that timm sets its pretrained constants."""
    overlay = {
        "state_dict": backbone.state_dict(), "num_classes": getattr(backbone, "num_classes", 0), "custom_load": False, "first_conv": None
    }  # fmt: skip
    built = create_backbone(config.backbone, config.model_kwargs, pretrained=True, pretrained_cfg_overlay=overlay)
    cast("dict[str, Any]", built.pretrained_cfg).pop("state_dict")
    return built


def create_backbone(name: str, model_kwargs: dict[str, Argument], **more: Any) -> nn.Module:
    """Create a backbone with `timm.create_model` and translate its errors.

    Args:
        name: timm name of the model, with or without a weights tag.
        model_kwargs: model arguments given by the user.
        more: additional arguments for `timm.create_model`.

    Raises:
        SettingsError: timm has no model of this name, or the model does not accept the arguments.
    """
    require_backbone(name)
    if reserved := sorted(_RESERVED & model_kwargs.keys()):
        raise SettingsError(
            f"--model-kwargs {', '.join(reserved)}: cannot be set here; weights, classes and input have settings of their own"
        )
    try:
        backbone: nn.Module = timm.create_model(name, **more, **cast("dict[str, Any]", model_kwargs))
    except Exception as error:  # timm passes the arguments to the model's constructor, which rejects them in ways of its own
        if not model_kwargs or isinstance(error, OSError) or (more.get("pretrained") and _accepts(name, model_kwargs)):
            raise
        raise SettingsError(f"{name} does not accept these model arguments ({', '.join(model_kwargs)}): {first_line(error)}") from error
    return backbone


def _accepts(name: str, model_kwargs: dict[str, Argument]) -> bool:
    """Return True if the model can be built with these arguments, so that an error with weights is one of the weights."""
    try:
        timm.create_model(name, **cast("dict[str, Any]", model_kwargs))
    except Exception:  # noqa: BLE001  # whatever a model's constructor raises
        return False
    return True


def require_backbone(name: str) -> None:
    """Check that timm has a model of this name.

    Raises:
        SettingsError: timm has no model of this name, or no weights with this tag; the message lists similar names or available tags.
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
    """Return the names of the backbone's own head layers that `head` does not use, such as fc6 and fc7 of VGG."""
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
    """Return True if the network should use its own head: for `original`, and for `linear` if the own head has no hidden layers.

    The own head has no hidden layers if the input of its classifier is as wide as the features.
    """
    return head == "original" or (
        head == "linear" and getattr(backbone, "head_hidden_size", backbone.num_features) == backbone.num_features
    )


def _own_head(backbone: nn.Module, config: NetworkConfig, keep_classifier: bool) -> OwnHead | None:
    """Return the network's own head with a classifier for `num_classes`, or None if a new head is needed.

    Raises:
        CutError: the head `original` was requested, but the network's own head cannot be separated.
    """
    if not _wants_own_head(backbone, config.head):
        return None
    if not keep_classifier:
        renew_classifier(backbone, config.num_classes)
    size = config.preprocessing
    head, reason = find_own_head(backbone, (size.height, size.width))
    if head is None and config.head == "original":
        raise CutError(
            f"{config.backbone}: its own head {reason}, so it cannot be trained: fine-tune with --head linear, or export the published"
            f" model: `tlcli export --backbone {config.backbone}`"
        )
    return head


def _feature_layout(backbone: nn.Module, config: NetworkConfig) -> tuple[FeatureLayout, int]:
    """Return the layout of the backbone's features, and their number of channels.

    Raises:
        CutError: the features hold no map.
    """
    features: Any = try_at_size(backbone, config, backbone.forward_features)  # type: ignore[arg-type]
    layout = _declared_layout(backbone, config, tuple(features.shape)) if isinstance(features, Tensor) else None
    if layout is None:
        raise CutError(
            f"{config.backbone} has no spatial features (expected [N, c, h, w], [N, h, w, c] or tokens [N, t, c], but its features are"
            f" {_described(features)}): choose another backbone (`tlcli backbones` lists them), or export the published model:"
            f" `tlcli export --backbone {config.backbone}`"
        )
    return layout, layout.channels(features)


def _declared_layout(backbone: nn.Module, config: NetworkConfig, shape: tuple[int, ...]) -> FeatureLayout | None:
    """Return the layout that timm declares for features of this shape; None if they cannot hold a map."""
    if len(shape) == 4:
        last = str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")
        return FeatureLayout("channels_last", *shape[1:3]) if last else FeatureLayout("channels_first", *shape[2:])
    size = config.preprocessing
    prefix = int(getattr(backbone, "num_prefix_tokens", 0))
    return next(possible_layouts(shape, size.height, size.width, prefix), None) if len(shape) == 3 else None


def try_at_size(backbone: nn.Module, config: NetworkConfig, function: Callable[[Tensor], Any], inputs: Tensor | None = None) -> Any:
    """Call a function of the backbone in eval mode on inputs of the configured size, and return its result.

    Args:
        backbone: timm model; its mode is restored afterwards.
        config: configuration of the network.
        function: backbone or one of its methods.
        inputs: inputs `[N, 3, H, W]`; None for a blank image.

    Raises:
        SettingsError: the backbone does not accept the input size.
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
