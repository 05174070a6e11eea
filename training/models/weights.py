"""A timm backbone with the weights that were asked for: official ones, a file's, or random ones."""

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
from tlcli.training.models.network import create_backbone, require_backbone, unused_head_parts
from tlcli.training.models.torchvision_keys import epsilon_of, is_torchvisions, needs_epsilon, to_timm
from tlcli.training.models.weight_file import read_tensors, stripped, without_losses
from tlcli.training.runtime.progress import ProgressFactory, silent
from tlcli.training.settings.config import FinetuneConfig

_OTHER_CLASSIFIERS = ("classifier.6", "head.fc", "fc", "classifier", "head")
"""Where the last layer is in layouts that timm converts (torchvision's VGG) or in other versions of a network."""

_WAYS_OUT = "name the backbone that the file was made for (with --model-kwargs, if it needs any), or take --weights pretrained"
_SHOWN = 3


def load_backbone(config: FinetuneConfig, progress: ProgressFactory = silent) -> tuple[nn.Module, str]:
    """Build `config.backbone` with `config.weights`.

    A file is loaded strictly: every tensor of the network is in it, and nothing else, save a classifier of any
    number of classes or none, and the hidden layers of the network's own head where `config.head` leaves them out.
    Layouts that timm knows are converted (its own, torchvision's, and others architecture by architecture), and so are torchvision's
    MobileNets and EfficientNets. What does not fit as it is, is tried without the prefixes of training frameworks, losses and metrics.

    Args:
        config: its `backbone`, `model_kwargs`, `weights`, `head`, and for random weights `seed` count.
        progress: told of a download.

    Returns:
        The timm model, with the classifier of the weights if they hold one, and the weights' fingerprint:
        SHA-256 in hex over the tensors' names, types, shapes and bytes.

    Raises:
        SettingsError: see `tlcli.training.models.network.create_backbone`.
        HubError: official weights that cannot be had, see `tlcli.training.models.hub`.
        NotFoundError: no such file.
        WeightsError: a file that cannot be read or does not fit, or a backbone without official weights.
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
    """SHA-256 in hex over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _with_file(config: FinetuneConfig, path: Path) -> tuple[nn.Module, str]:
    readings = _readings(read_tensors(path), config, path)
    for tensors in readings[:-1]:
        with suppress(WeightsError):
            return _with_tensors(config, path, tensors)
    try:
        return _with_tensors(config, path, readings[-1])
    except WeightsError:
        if len(readings) == 1:
            raise
    return _with_tensors(config, path, readings[0])  # whose message is about the file as it is


def _readings(tensors: dict[str, Tensor], config: FinetuneConfig, path: Path) -> list[dict[str, Tensor]]:
    """What the file may mean, the likeliest first: as it is, and with less and less of what was wrapped around the network."""
    found = [tensors]
    if len(rest := without_losses(tensors)) < len(tensors):
        found.append(rest)
    while (inner := stripped(found[-1])) is not None:
        found.append(inner)
    return [_renamed(reading, config, path) for reading in found]


def _renamed(tensors: dict[str, Tensor], config: FinetuneConfig, path: Path) -> dict[str, Tensor]:
    """The tensors under the names that timm loads: torchvision's names translated, a head of dropout and one linear layer unwrapped."""
    if any(name.startswith("features.0.0.") for name in tensors):
        backbone = create_backbone(config.backbone, config.model_kwargs, num_classes=_classes_of_torchvision(tensors))
        if is_torchvisions(tensors, backbone) and (renamed := to_timm(tensors, backbone)) is not None:
            if needs_epsilon(backbone, config.backbone):
                epsilon = f"{epsilon_of(backbone, config.backbone):g}"
                raise WeightsError(
                    f"{path} is torchvision's {config.backbone}, whose batch norms have the epsilon {epsilon}, and timm's another:"
                    f" add --model-kwargs bn_eps={epsilon}"
                )
            return renamed
    return _unwrapped_classifier(tensors, config.backbone)


def _classes_of_torchvision(tensors: dict[str, Tensor]) -> int:
    matrices = [tensor for name, tensor in tensors.items() if name.startswith("classifier.") and tensor.ndim == 2]
    return int(matrices[-1].shape[0]) if matrices else 0


def _unwrapped_classifier(tensors: dict[str, Tensor], backbone: str) -> dict[str, Tensor]:
    """`fc.1.weight` to `fc.weight`: dropout and a linear layer in the place of the classifier, as training scripts put them there."""
    for classifier in _classifiers(backbone):
        inside = [name for name in tensors if name.startswith(f"{classifier}.")]
        layers = {name.rpartition(".")[0] for name in inside}
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
            raise WeightsError(f"{path} does not fit {config.backbone}: {misfit.describe()}: {_WAYS_OUT}") from error
        backbone = _load(config, {**tensors, **spare}, classes)
        return backbone, fingerprint({name: tensor for name, tensor in backbone.state_dict().items() if name not in spare})
    except (KeyError, ValueError, AttributeError, IndexError, AssertionError) as error:
        # What timm's conversions raise when they look for tensors that are not there.
        raise WeightsError(f"{path} does not fit {config.backbone}: {type(error).__name__}: {error}: {_WAYS_OUT}") from error


def _load(config: FinetuneConfig, tensors: dict[str, Tensor], classes: int) -> nn.Module:
    """Through timm, whose conversion of layouts belongs to each architecture.

    The network gets as many classes as the file has: with another number timm would load what fits and say nothing
    of tensors that are missing.
    """
    # Without `first_conv` timm leaves it to strict loading to judge the first layer's number of channels.
    overlay = {"state_dict": tensors, "num_classes": classes, "custom_load": False, "first_conv": None}
    backbone = create_backbone(config.backbone, config.model_kwargs, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes)
    cast("dict[str, Any]", backbone.pretrained_cfg).pop("state_dict")  # timm keeps a copy of it all
    return backbone


def _classes_in(tensors: dict[str, Tensor], name: str) -> int:
    """The number of classes of the file's classifier; 0 if it has none."""
    for candidate in (*_classifiers(name), *_OTHER_CLASSIFIERS):
        weight = tensors.get(f"{candidate}.weight")
        if weight is not None and weight.ndim in (2, 4):
            return int(weight.shape[0])
    return 0


def _classifiers(name: str) -> list[str]:
    """What timm calls the network's last layer, or layers."""
    entry = timm.get_pretrained_cfg(name.split(".")[0]) if timm.is_model(name) else None
    own = entry.classifier if entry is not None else None
    return [own] if isinstance(own, str) else list(own or ())


def _spare_head(config: FinetuneConfig, classes: int, misfit: _Misfit) -> dict[str, Tensor] | None:
    """Tensors for the head's hidden layers that a file may lack because `config.head` leaves them out, or None."""
    if misfit.unexpected or misfit.reshaped or not misfit.missing:
        return None
    backbone = create_backbone(config.backbone, config.model_kwargs, num_classes=classes)
    unused = tuple(f"{part}." for part in unused_head_parts(backbone, config.head))
    if not all(name.startswith(unused) for name in misfit.missing):
        return None
    state = backbone.state_dict()
    return {name: state[name] for name in misfit.missing}


@dataclass(frozen=True)
class _Misfit:
    """What `Module.load_state_dict(strict=True)` complained of.

    missing, unexpected: tensors' names. reshaped: name, found and expected shape. other: the complaint, if it is none of these.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, str, str], ...]
    other: str

    @classmethod
    def parse(cls, error: RuntimeError) -> _Misfit:
        """PyTorch says it in a sentence only, the same one since its first release."""
        text = str(error)

        def names(kind: str) -> tuple[str, ...]:
            found = re.search(rf"{kind} key\(s\) in state_dict: (.*?)\. *(?:\n|$)", text)
            return tuple(re.findall(r'"([^"]+)"', found[1])) if found else ()

        shape = r"torch\.Size\((\[[\d, ]*\])\)"
        reshaped = re.findall(rf"size mismatch for (\S+): copying a param with shape {shape} from checkpoint, .*? is {shape}", text)
        return cls(names("Missing"), names("Unexpected"), tuple(reshaped), (text.strip().splitlines() or [""])[0])

    def describe(self) -> str:
        """One line: each kind with its number and a few examples."""
        kinds = [
            (self.reshaped, "of another shape", [f"{name}: expected {expected}, found {found}" for name, found, expected in self.reshaped]),
            (self.missing, "missing", list(self.missing)),
            (self.unexpected, "unexpected", list(self.unexpected)),
        ]
        parts = [f"{len(which)} tensors {kind} ({_few(examples)})" for which, kind, examples in kinds if which]
        return "; ".join(parts) or self.other


def _few(examples: list[str]) -> str:
    rest = len(examples) - _SHOWN
    return "; ".join(examples[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")
