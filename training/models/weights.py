"""Loading of timm backbones with official weights, weights from a file, or random weights."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import Tensor, nn

from tlcli.contract.errors import WeightsError
from tlcli.training.models.hub import official_weights
from tlcli.training.models.network import create_backbone, require_backbone, unused_head_layers
from tlcli.training.models.torchvision_keys import epsilon_of, is_torchvisions, needs_epsilon, to_timm
from tlcli.training.models.weight_file import read_tensors, stripped, without_losses
from tlcli.training.runtime.progress import ProgressFactory, silent
from tlcli.training.settings.config import FinetuneConfig

_OTHER_CLASSIFIERS = ("classifier.6", "head.fc", "fc", "classifier", "head")
"""Names of the last layer in layouts that timm converts (such as torchvision's VGG) and in other versions of a network."""

_REMEDY = "use the backbone that the file was made for (with its --model-kwargs, if any), or --weights pretrained"
_SHOWN = 3


def load_backbone(config: FinetuneConfig, progress: ProgressFactory = silent) -> tuple[nn.Module, str]:
    """Build `config.backbone` and load `config.weights`.

    A file is loaded strictly: it must contain every tensor of the network and no others, with two exceptions. It may have a classifier
    with any number of classes or none, and it may lack the hidden layers of the network's own head if `config.head` does not use them.
    Layouts known to timm are converted (its own, torchvision's, and others for each architecture), as are torchvision's MobileNets and
    EfficientNets. If a file does not fit, loading is retried without framework prefixes, losses and metrics.

    Args:
        config: settings, of which `backbone`, `model_kwargs`, `weights` and `head` are used, and `seed` for random weights.
        progress: progress bar for a download.

    Returns:
        The timm model, with the classifier of the weights if there is one, and the fingerprint of the weights: SHA-256 in hex over the
        names, types, shapes and bytes of the tensors.

    Raises:
        SettingsError: the backbone cannot be built; see `tlcli.training.models.network.create_backbone`.
        HubError: the official weights cannot be downloaded; see `tlcli.training.models.hub`.
        NotFoundError: the file does not exist.
        WeightsError: the file cannot be read or does not fit, or the backbone has no official weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.weights == "none":
            backbone = create_backbone(config.backbone, config.model_kwargs)
            return backbone, fingerprint(backbone.state_dict())
        if config.weights == "pretrained":
            require_backbone(config.backbone)
            path = official_weights(config.backbone, progress)
        else:
            path = Path(config.weights).expanduser()
        return _with_file(config, path)


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 in hex over the names, types, shapes and bytes of the tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _with_file(config: FinetuneConfig, path: Path) -> tuple[nn.Module, str]:
    candidates = _candidates(read_tensors(path), config, path)
    for tensors in candidates[:-1]:
        with suppress(WeightsError):
            return _with_tensors(config, path, tensors)
    try:
        return _with_tensors(config, path, candidates[-1])
    except WeightsError:
        if len(candidates) == 1:
            raise
    return _with_tensors(config, path, candidates[0])  # fails again, with a message about the unmodified file


def _candidates(tensors: dict[str, Tensor], config: FinetuneConfig, path: Path) -> list[dict[str, Tensor]]:
    """Return the possible interpretations of a file, most likely first: unmodified, then with more and more wrappers removed."""
    candidates = [tensors]
    if len(rest := without_losses(tensors)) < len(tensors):
        candidates.append(rest)
    while (inner := stripped(candidates[-1])) is not None:
        candidates.append(inner)
    return [_renamed(candidate, config, path) for candidate in candidates]


def _renamed(tensors: dict[str, Tensor], config: FinetuneConfig, path: Path) -> dict[str, Tensor]:
    """Rename the tensors for timm: translate torchvision names, and unwrap a classifier made of dropout and one linear layer.

    Raises:
        WeightsError: the file is torchvision's, and its batch norm epsilon differs from timm's.
    """
    if any(name.startswith("features.0.0.") for name in tensors):
        backbone = create_backbone(config.backbone, config.model_kwargs, num_classes=_classes_of_torchvision(tensors))
        if is_torchvisions(tensors, backbone) and (renamed := to_timm(tensors, backbone)) is not None:
            if needs_epsilon(backbone, config.backbone):
                epsilon = f"{epsilon_of(backbone, config.backbone):g}"
                raise WeightsError(
                    f"{path} is torchvision's {config.backbone}, whose batch norms have epsilon {epsilon}, unlike timm's:"
                    f" add --model-kwargs bn_eps={epsilon}"
                )
            return renamed
    return _unwrapped_classifier(tensors, config.backbone)


def _classes_of_torchvision(tensors: dict[str, Tensor]) -> int:
    matrices = [tensor for name, tensor in tensors.items() if name.startswith("classifier.") and tensor.ndim == 2]
    return int(matrices[-1].shape[0]) if matrices else 0


def _unwrapped_classifier(tensors: dict[str, Tensor], backbone: str) -> dict[str, Tensor]:
    """Rename `fc.1.weight` to `fc.weight`, since training scripts often replace the classifier with dropout and a linear layer."""
    for classifier in _classifiers(backbone):
        names = [name for name in tensors if name.startswith(f"{classifier}.")]
        layers = {name.rpartition(".")[0] for name in names}
        if len(layers) == 1 and re.fullmatch(rf"{re.escape(classifier)}\.\d+", layer := layers.pop()):
            return {re.sub(rf"^{re.escape(layer)}\.", f"{classifier}.", name): tensor for name, tensor in tensors.items()}
    return tensors


def _with_tensors(config: FinetuneConfig, path: Path, tensors: dict[str, Tensor]) -> tuple[nn.Module, str]:
    classes = _classes_in(tensors, config.backbone)
    try:
        backbone = _load(config, tensors, classes)
        return backbone, fingerprint(backbone.state_dict())
    except RuntimeError as error:
        misfit = _Misfit.parse(error)
        spare = _spare_head(config, classes, misfit)
        if spare is None:
            raise WeightsError(f"{path} does not fit {config.backbone}: {misfit.describe()}: {_REMEDY}") from error
        backbone = _load(config, {**tensors, **spare}, classes)
        return backbone, fingerprint({name: tensor for name, tensor in backbone.state_dict().items() if name not in spare})
    except (KeyError, ValueError, AttributeError, IndexError, AssertionError) as error:
        # Raised by timm's conversions if tensors are missing.
        raise WeightsError(f"{path} does not fit {config.backbone}: {type(error).__name__}: {error}: {_REMEDY}") from error


def _load(config: FinetuneConfig, tensors: dict[str, Tensor], classes: int) -> nn.Module:
    """Load tensors with timm, which converts the layouts known for each architecture.

    The network is built with the number of classes in the file. With any other number, timm would load the tensors that fit and ignore
    missing ones.
    """
    # Without `first_conv`, timm leaves the check of the input channels to strict loading.
    overlay = {"state_dict": tensors, "num_classes": classes, "custom_load": False, "first_conv": None}
    backbone = create_backbone(config.backbone, config.model_kwargs, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes)
    cast("dict[str, Any]", backbone.pretrained_cfg).pop("state_dict")  # timm keeps a copy of the weights
    return backbone


def _classes_in(tensors: dict[str, Tensor], name: str) -> int:
    """Return the number of classes of the classifier in a file; 0 if there is no classifier."""
    for candidate in (*_classifiers(name), *_OTHER_CLASSIFIERS):
        weight = tensors.get(f"{candidate}.weight")
        if weight is not None and weight.ndim in (2, 4):
            return int(weight.shape[0])
    return 0


def _classifiers(name: str) -> list[str]:
    """Return timm's name or names for the classifier layers of a network."""
    entry = timm.get_pretrained_cfg(name.split(".")[0]) if timm.is_model(name) else None
    classifier = entry.classifier if entry is not None else None
    return [classifier] if isinstance(classifier, str) else list(classifier or ())


def _spare_head(config: FinetuneConfig, classes: int, misfit: _Misfit) -> dict[str, Tensor] | None:
    """Return random tensors for missing hidden layers that `config.head` does not use; None if the mismatch has any other cause."""
    if misfit.unexpected or misfit.reshaped or not misfit.missing:
        return None
    backbone = create_backbone(config.backbone, config.model_kwargs, num_classes=classes)
    unused = tuple(f"{layer}." for layer in unused_head_layers(backbone, config.head))
    if not all(name.startswith(unused) for name in misfit.missing):
        return None
    state = backbone.state_dict()
    return {name: state[name] for name in misfit.missing}


@dataclass(frozen=True)
class _Misfit:
    """Mismatches reported by `Module.load_state_dict(strict=True)`.

    missing, unexpected: names of tensors. reshaped: name, actual shape and expected shape. other: first line of the error message.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, str, str], ...]
    other: str

    @classmethod
    def parse(cls, error: RuntimeError) -> _Misfit:
        """Parse PyTorch's error message, which has no structured form. Its wording has not changed since the first release."""
        text = str(error)

        def names(kind: str) -> tuple[str, ...]:
            match = re.search(rf"{kind} key\(s\) in state_dict: (.*?)\. *(?:\n|$)", text)
            return tuple(re.findall(r'"([^"]+)"', match[1])) if match else ()

        shape = r"torch\.Size\((\[[\d, ]*\])\)"
        reshaped = re.findall(rf"size mismatch for (\S+): copying a param with shape {shape} from checkpoint, .*? is {shape}", text)
        return cls(names("Missing"), names("Unexpected"), tuple(reshaped), (text.strip().splitlines() or [""])[0])

    def describe(self) -> str:
        """Describe the mismatches in one line, with the count and a few examples of each kind."""
        kinds = [
            (
                self.reshaped,
                "with another shape",
                [f"{name}: expected {expected}, got {actual}" for name, actual, expected in self.reshaped],
            ),
            (self.missing, "missing", list(self.missing)),
            (self.unexpected, "unexpected", list(self.unexpected)),
        ]
        mismatches = [f"{len(tensors)} tensors {kind} ({_abridged(examples)})" for tensors, kind, examples in kinds if tensors]
        return "; ".join(mismatches) or self.other


def _abridged(examples: list[str]) -> str:
    rest = len(examples) - _SHOWN
    return "; ".join(examples[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")
