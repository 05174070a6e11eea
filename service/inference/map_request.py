"""Whether the maps that a request asks for are to be had of the model it asks."""

from __future__ import annotations

from collections.abc import Sequence

from tlcli.contract.errors import RequestError
from tlcli.contract.maps.method_names import require_method
from tlcli.contract.maps.scorecam import check_max_channels
from tlcli.contract.model.onnx_model import Model
from tlcli.service.execution.batching import Wanted


def fit(
    model: Model, name: str, *, targets: Sequence[int], methods: Sequence[str], softmax: bool, max_channels: int, max_maps: int
) -> Wanted:
    """What is wanted of a run, if the model has it.

    Args:
        model: that is asked; name: as the repository calls it.
        targets: classes to explain, by id or rank; at least one.
        methods: the maps, by name; none: scores alone.
        softmax: explain probabilities, not logits.
        max_channels: of a Score-CAM; 0 for the method's own number.
        max_maps: how many maps may be asked for of an image.

    Raises:
        RequestError: a map or a class that the model does not have, too many of them, or channels where no map looks through any.
    """
    names = tuple(require_method(method, model.description.methods, f"model {name!r}") for method in methods)
    if len(targets) * max(1, len(names)) > max_maps:
        raise RequestError(
            f"{len(targets)} classes are to be explained in {len(names)} maps each; of an image, at most {max_maps} a request:"
            " send several requests"
        )
    model.check_targets(targets)
    if max_channels < 0:
        raise RequestError(f"max_channels {max_channels}: expected 1 or more, or 0 for the method's own number")
    check_max_channels(max_channels or None, names)
    return Wanted(tuple(targets), names, softmax, max_channels or None)
