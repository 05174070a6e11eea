"""Own head of a timm network: its last layer, and the layers between the features and that layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tlcli.contract.errors import first_line

_SAME = 1e-6
"""Relative tolerance for equal outputs. Both paths run the same operators, whereas a newly initialized batch norm (epsilon 1e-5) on only
one of them changes values by 5e-6."""

_WITHOUT_EFFECT = (nn.Identity, nn.Dropout, nn.Flatten)
"""Modules without weights that may follow the last layer."""


@dataclass(frozen=True)
class OwnHead:
    """Last layer of a backbone's own head, and the layers before it.

    classifier: path of the last layer in the backbone.
    before: paths of the layers between the pooled features and the last layer that share a module with it, such as batch norm and dropout.
    """

    classifier: str
    before: tuple[str, ...] = ()

    def embed(self, backbone: nn.Module, features: Tensor) -> Tensor:
        """Compute the input of the last layer, `[N, d]`, for features."""
        embedding = cast("Tensor", backbone.forward_head(features, pre_logits=True))  # type: ignore[operator]
        for path in self.before:
            embedding = cast("Tensor", backbone.get_submodule(path)(embedding))
        return embedding


def renew_classifier(backbone: nn.Module, num_classes: int) -> None:
    """Replace the classifier and keep the weights of all other layers.

    In some networks, timm's `reset_classifier` also replaces a batch norm of the head. Its weights are restored here. A second classifier,
    such as VOLO's for tokens, is replaced with the first.

    Args:
        backbone: timm model.
        num_classes: number of classes; 0 removes the classifier.
    """
    last = _last_layer(backbone)
    kept = {} if last is None else {name: value for name, value in backbone.state_dict().items() if not name.startswith(f"{last}.")}
    backbone.reset_classifier(num_classes)  # type: ignore[operator]
    renewed = backbone.state_dict()
    same = {name: value for name, value in kept.items() if name in renewed and value.shape == renewed[name].shape}
    backbone.load_state_dict(same, strict=False)


def find_own_head(backbone: nn.Module, size: tuple[int, int]) -> tuple[OwnHead | None, str]:
    """Find the last layer and the layers that compute its input, and verify them against the backbone's forward pass on a random image.

    Args:
        backbone: timm model with a classifier.
        size: height and width of the image.

    Returns:
        The head and an empty string, or None and the reason as the rest of a sentence that begins with "its own head".
    """
    path = _last_layer(backbone)
    if path is None:
        several = _classifiers(backbone)
        return None, f"has {several} classifiers, whose scores it combines" if several > 1 else "does not end with one linear layer"
    candidates = (OwnHead(path), OwnHead(path, _siblings_before(backbone, path)))
    training = backbone.training
    backbone.eval()
    try:
        inputs = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        embedding, output, logits = _observe(backbone, path, inputs)
        if embedding is None or output is None or not _same(logits, output.flatten(1)):
            return None, "computes its scores from more than its last layer"
        with torch.no_grad():
            features = backbone.forward_features(inputs)  # type: ignore[operator]
            for head in candidates:
                if _leads_to(head, backbone, features, embedding.flatten(1)):
                    return head, ""
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, IndexError) as error:
        return None, f"cannot be run separately from its backbone ({first_line(error)})"
    finally:
        backbone.train(training)
    return None, "takes more input than the features"


def _classifiers(backbone: nn.Module) -> int:
    """Return the number of classifiers in the backbone. Distilled networks have two, and some networks have one per scale."""
    classifier: Any = backbone.get_classifier()  # type: ignore[operator]
    return len(classifier) if isinstance(classifier, (tuple, list, nn.ModuleList)) else 1


def _last_layer(backbone: nn.Module) -> str | None:
    """Return the path of the linear layer or convolution returned by `get_classifier`, or at the end of the module it returns.

    None if there is no such layer.
    """
    try:
        classifier: Any = backbone.get_classifier()  # type: ignore[operator]
    except AttributeError:  # raised by some of timm's networks without a classifier
        return None
    if isinstance(classifier, nn.Module) and not isinstance(classifier, (nn.Linear, nn.Conv2d)):
        classifier = next((child for child in reversed([*classifier.children()]) if not isinstance(child, _WITHOUT_EFFECT)), None)
    if not isinstance(classifier, (nn.Linear, nn.Conv2d)):
        return None
    return next((name for name, module in backbone.named_modules() if module is classifier), None)


def _siblings_before(backbone: nn.Module, path: str) -> tuple[str, ...]:
    parent, _, name = path.rpartition(".")
    names = [child for child, _ in backbone.get_submodule(parent).named_children()] if parent else []
    return tuple(f"{parent}.{child}" for child in names[: names.index(name)]) if names else ()


def _observe(backbone: nn.Module, path: str, inputs: Tensor) -> tuple[Tensor | None, Tensor | None, Any]:
    """Run the backbone and return the input and output of its last layer, and the output of the backbone.

    The first two are None unless the last layer is called exactly once.
    """
    calls: list[tuple[Any, Any]] = []
    handle = backbone.get_submodule(path).register_forward_hook(lambda _, args, output: calls.append((args[0].clone(), output.clone())))
    try:
        with torch.no_grad():
            logits = backbone(inputs)
    finally:
        handle.remove()
    embedding, output = calls[0] if len(calls) == 1 else (None, None)
    return embedding, output, logits


def _leads_to(head: OwnHead, backbone: nn.Module, features: Tensor, embedding: Tensor) -> bool:
    try:
        return _same(head.embed(backbone, features.clone()), embedding)
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, IndexError):
        return False


def _same(value: Any, expected: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.shape != expected.shape:
        return False
    return bool((value - expected).abs().max() <= _SAME * expected.abs().max())
