"""A timm network's own head: which of its layers makes the logits, and what that layer is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from tlcli.contract.errors import first_line

_SAME = 1e-6
"""Relative. The two ways to the same values run the same operators; a fresh batch norm (epsilon 1e-5) changes values by 5e-6."""

_WITHOUT_EFFECT = (nn.Identity, nn.Dropout, nn.Flatten)
"""Layers that may stand behind the last one."""


@dataclass(frozen=True)
class OwnHead:
    """The last layer of a head, and the way to its input. Both are paths in the backbone.

    classifier: the last layer.
    before: the layers between the pooled features and the last one where they are a module with it (batch norm, dropout).
    """

    classifier: str
    before: tuple[str, ...] = ()

    def embed(self, backbone: nn.Module, features: Tensor) -> Tensor:
        """`[N, c, h, w]` to what the last layer is given, `[N, d]`."""
        embedding = cast("Tensor", backbone.forward_head(features, pre_logits=True))  # type: ignore[operator]
        for path in self.before:
            embedding = cast("Tensor", backbone.get_submodule(path)(embedding))
        return embedding


def renew_classifier(backbone: nn.Module, num_classes: int) -> None:
    """timm's `reset_classifier`, which in some networks replaces a batch norm of the head too: here that keeps its weights.

    Args:
        backbone: a timm model.
        num_classes: 0 for none.
    """
    last = _last_layer(backbone)
    kept = {} if last is None else {name: one for name, one in backbone.state_dict().items() if not name.startswith(f"{last}.")}
    backbone.reset_classifier(num_classes)  # type: ignore[operator]
    renewed = backbone.state_dict()
    backbone.load_state_dict({name: one for name, one in kept.items() if name in renewed and one is not renewed[name]}, strict=False)


def find_own_head(backbone: nn.Module, size: tuple[int, int]) -> tuple[OwnHead | None, str]:
    """Find the last layer, and hold what leads to it against the backbone's own forward pass on a random image.

    Args:
        backbone: a timm model with a classifier.
        size: height and width of the image.

    Returns:
        The head, or None and what is unusual about it, as the end of a sentence that begins with "its own head".
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
        given, returned, logits = _observe(backbone, path, inputs)
        if given is None or returned is None or not _same(logits, returned.flatten(1)):
            return None, "computes its scores from more than its last layer"
        with torch.no_grad():
            features = backbone.forward_features(inputs)  # type: ignore[operator]
            for head in candidates:
                if _leads_to(head, backbone, features, given.flatten(1)):
                    return head, ""
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, IndexError) as error:
        return None, f"cannot be run apart from its backbone ({first_line(error)})"
    finally:
        backbone.train(training)
    return None, "takes more than the spatial features"


def _classifiers(backbone: nn.Module) -> int:
    """Return the number of the backbone's classifiers: two after a distillation, one a scale in some networks."""
    classifier: Any = backbone.get_classifier()  # type: ignore[operator]
    return len(classifier) if isinstance(classifier, (tuple, list, nn.ModuleList)) else 1


def _last_layer(backbone: nn.Module) -> str | None:
    """The path of the linear layer, or convolution of kernel 1x1, that `get_classifier` names or a module of it ends with."""
    try:
        classifier: Any = backbone.get_classifier()  # type: ignore[operator]
    except AttributeError:  # of a network without a classifier, in some of timm's
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
    """Run the backbone; return the input and the output of its last layer, and its own output."""
    seen: list[tuple[Any, Any]] = []
    handle = backbone.get_submodule(path).register_forward_hook(lambda _, came, went: seen.append((came[0].clone(), went.clone())))
    try:
        with torch.no_grad():
            logits = backbone(inputs)
    finally:
        handle.remove()
    given, returned = seen[0] if len(seen) == 1 else (None, None)
    return given, returned, logits


def _leads_to(head: OwnHead, backbone: nn.Module, features: Tensor, given: Tensor) -> bool:
    try:
        return _same(head.embed(backbone, features.clone()), given)
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, IndexError):
        return False


def _same(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and one.shape == other.shape and bool((one - other).abs().max() <= _SAME * other.abs().max())
