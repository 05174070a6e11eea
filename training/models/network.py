"""A timm backbone with a head of ours, cut where the maps need it: features, embedding, classifier; or as timm runs it."""

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

_HEAD_PARTS = ("pre_logits", "conv_head", "norm_head", "head")
"""What timm calls the layers that some networks have between the features and the classifier; ours name theirs in `head_parts`."""

_OURS = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "num_classes", "in_chans", "features_only"})
"""Arguments of `timm.create_model` that other settings decide."""


class CutError(SettingsError):
    """A network that cannot be cut into features and a head: it can be neither fine-tuned nor explained, but run as it is."""


class NetworkConfig(BaseModel):
    """All that is needed to build the network again, weights aside.

    pretrained: timm's argument of that name. Some of timm's networks have other constants with it (`fbnetc_100`: the epsilon of its
        batch norms). None in runs that were written before this was recorded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    backbone: str
    model_kwargs: dict[str, Scalar] = Field(default_factory=dict)
    head: str
    num_classes: int = Field(ge=2)
    preprocessing: Preprocessing
    pretrained: bool | None = None


class ImageNetwork(nn.Module):
    """A timm model with its normalisation: uint8 images to logits.

    config: what was built. backbone: the timm model.
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
        """Where the network is."""
        return cast("Tensor", self.mean).device

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 `[N, H, W, 3]` in RGB to float `[N, 3, H, W]`: `(x / 255 - mean) / std`."""
        mean, std = cast("Tensor", self.mean), cast("Tensor", self.std)
        return (images.permute(0, 3, 1, 2).to(mean.dtype) - mean) / std

    @torch.inference_mode()
    def predict(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 `[N, H, W, 3]` to logits `[N, C]`, in the mode and on the device the network is in."""
        device = cast("Tensor", self.mean).device
        return self(self.normalise(torch.from_numpy(images).to(device)))  # type: ignore[no-any-return]

    def divide_logits(self, temperature: float) -> None:
        """Change the network so that it returns its logits over `temperature`."""
        raise NotImplementedError


class WholeNetwork(ImageNetwork):
    """A timm model as timm runs it, not cut: logits without maps, of any architecture and head."""

    def __init__(self, config: NetworkConfig, backbone: nn.Module) -> None:
        """Run the model once.

        Args:
            config: of the model; its head is `original`.
            backbone: a timm model with its own classifier.

        Raises:
            SettingsError: it does not take images of the input's size, or does not return logits `[N, C]`.
        """
        super().__init__(config, backbone)
        self.temperature = 1.0
        logits = try_at_size(backbone, config, backbone)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != (1, config.num_classes):
            raise CutError(
                f"{config.backbone} does not return logits [N, {config.num_classes}] but {_described(logits)}: it is no classifier;"
                " choose another backbone"
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 3, H, W]`, normalised, to logits `[N, C]`."""
        logits = cast("Tensor", self.backbone(inputs))
        return logits if self.temperature == 1 else logits / self.temperature

    def divide_logits(self, temperature: float) -> None:
        """See `ImageNetwork`."""
        self.temperature *= temperature


class Network(ImageNetwork):
    """`classify(embed(features(x)))`.

    features: float `[N, 3, H, W]`, normalised, to `[N, c, h, w]`: the backbone, and what the maps explain.
    embed: to `[N, d]`: pooling, flattening, or the hidden layers of the network's own head; has no
        parameters of ours, and is frozen with the backbone in feature extraction.
    classify: to logits `[N, C]`: the head, always trained.
    """

    def __init__(self, config: NetworkConfig, backbone: nn.Module, keep_classifier: bool = False) -> None:
        """Give a backbone its head.

        Args:
            config: what to build.
            backbone: a timm model of `config.backbone`, of any number of classes; its classifier is replaced.
            keep_classifier: with the head `original`, keep the backbone's own last layer and its weights.

        Raises:
            SettingsError: the backbone cannot take the input's size.
            CutError: it has no spatial features, or no classifier that `original` could mean.
        """
        super().__init__(config, backbone)
        channels, height, width = _feature_shape(backbone, config)
        unused = unused_head_parts(backbone, config.head)
        self.head: nn.Module | None = None  # the backbone's own, where it has one that serves
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
        """True where the head is the backbone's own, so that timm's forward pass is this network's."""
        return self._own_head is not None

    @property
    def classifier(self) -> nn.Module:
        """The trained head: a layer or two of ours, or the last layer of the backbone's own head."""
        return self.head if self._own_head is None else self.backbone.get_submodule(self._own_head.classifier)  # type: ignore[return-value]

    @property
    def last_layer(self) -> nn.Linear | nn.Conv2d:
        """The layer that makes the logits: linear, or a convolution of kernel 1x1."""
        classifier = self.classifier
        return cast("nn.Linear | nn.Conv2d", classifier[-1] if isinstance(classifier, nn.Sequential) else classifier)

    def penultimate(self, features: Tensor) -> Tensor:
        """`[N, c, h, w]` to `[N, d]`, what `last_layer` takes: `classify(embed(features))` without it."""
        embedding, classifier = self.embed(features), self.classifier
        return cast("Tensor", classifier[:-1](embedding)) if isinstance(classifier, nn.Sequential) else embedding

    def features(self, inputs: Tensor) -> Tensor:
        """`[N, 3, H, W]`, normalised, to `[N, c, h, w]`."""
        return cast("Tensor", self.backbone.forward_features(inputs))  # type: ignore[operator]

    def embed(self, features: Tensor) -> Tensor:
        """`[N, c, h, w]` to `[N, d]`."""
        if self._own_head is not None:
            return self._own_head.embed(self.backbone, features)
        return features.mean((-2, -1)) if self.config.head == "linear" else features.flatten(1)

    def classify(self, embedding: Tensor) -> Tensor:
        """`[N, d]` to logits `[N, C]`."""
        return apply_classifier(self.classifier, embedding)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 3, H, W]`, normalised, to logits `[N, C]`."""
        return self.classify(self.embed(self.features(inputs)))

    @torch.no_grad()
    def divide_logits(self, temperature: float) -> None:
        """See `ImageNetwork`: the last layer's weights are divided, so that it costs nothing."""
        last = self.last_layer
        last.weight.div_(temperature)
        if last.bias is not None:
            last.bias.div_(temperature)


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
    backbone = create_backbone(config.backbone, config.model_kwargs)
    if config.pretrained:
        backbone = _as_if_pretrained(config, backbone)
    return Network(config, backbone).eval()


def _as_if_pretrained(config: NetworkConfig, backbone: nn.Module) -> nn.Module:
    """Return the network that timm builds with `pretrained=True`, with the weights of `backbone`, which was built without."""
    overlay = {
        "state_dict": backbone.state_dict(), "num_classes": getattr(backbone, "num_classes", 0), "custom_load": False, "first_conv": None
    }  # fmt: skip
    built = create_backbone(config.backbone, config.model_kwargs, pretrained=True, pretrained_cfg_overlay=overlay)
    cast("dict[str, Any]", built.pretrained_cfg).pop("state_dict")
    return built


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
        close = close_backbone_names(name)
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
        _try(backbone, backbone.forward_features, torch.zeros(1, *cast("dict[str, Any]", backbone.pretrained_cfg)["input_size"]))  # type: ignore[arg-type]
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in present if name not in used]


def _wants_own_head(backbone: nn.Module, head: str) -> bool:
    """`linear` is the network's own head too, where that has no hidden layers: what its classifier takes is as wide as the features."""
    return head == "original" or (
        head == "linear" and getattr(backbone, "head_hidden_size", backbone.num_features) == backbone.num_features
    )


def _own_head(backbone: nn.Module, config: NetworkConfig, keep_classifier: bool) -> OwnHead | None:
    """The network's own head, where it serves; its classifier is then one for `num_classes`."""
    if not _wants_own_head(backbone, config.head):
        return None
    if not keep_classifier:
        renew_classifier(backbone, config.num_classes)
    size = config.preprocessing
    head, reason = find_own_head(backbone, (size.height, size.width))
    if head is None and config.head == "original":
        raise CutError(
            f"{config.backbone}: its own head {reason}, so it can be neither trained nor explained: fine-tune with --head linear, or export"
            f" it as it was published, without maps: `tlcli export --backbone {config.backbone} --cam none`"
        )
    return head


def _feature_shape(backbone: nn.Module, config: NetworkConfig) -> tuple[int, int, int]:
    features: Any = try_at_size(backbone, config, backbone.forward_features)  # type: ignore[arg-type]
    if not isinstance(features, Tensor) or features.ndim != 4 or str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC"):
        raise CutError(
            f"{config.backbone} has no spatial features (its features are {_described(features)}, [N, c, h, w] was expected):"
            " choose a convolutional backbone (`tlcli backbones` lists them), or export it as it was published, without maps:"
            f" `tlcli export --backbone {config.backbone} --cam none`"
        )
    _, channels, height, width = features.shape
    return channels, height, width


def try_at_size(backbone: nn.Module, config: NetworkConfig, function: Callable[[Tensor], Any], inputs: Tensor | None = None) -> Any:
    """Return what `function` of the backbone returns for inputs of the configured size, in eval mode.

    Args:
        backbone: its mode is left as it was.
        config: of the network.
        function: a method of the backbone, or the backbone.
        inputs: `[N, 3, H, W]`; None for a blank one.

    Raises:
        SettingsError: it does not take the size.
    """
    size = config.preprocessing
    try:
        return _try(backbone, function, torch.zeros(1, 3, size.height, size.width) if inputs is None else inputs)
    except (RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        made_for = "x".join(map(str, cast("dict[str, Any]", backbone.pretrained_cfg)["input_size"][1:]))
        reason = first_line(error)
        raise SettingsError(
            f"{config.backbone} cannot take images of {size.height}x{size.width} pixels ({reason}): it was made for {made_for};"
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
