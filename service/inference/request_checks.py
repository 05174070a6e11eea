"""Checks of a request: that the model offers its maps and classes, and that it stays within its time limit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tlcli.contract.errors import RequestError, TimeLimitError
from tlcli.contract.maps.method_names import require_method
from tlcli.contract.maps.scorecam import check_max_channels
from tlcli.contract.model.class_choice import class_targets
from tlcli.contract.model.onnx_model import Model
from tlcli.service.execution.batching import MapRequest


def check_map_request(
    model: Model, name: str, *, targets: Sequence[int], methods: Sequence[str], softmax: bool, max_channels: int, max_maps: int
) -> MapRequest:
    """Check that the model can compute the requested maps.

    Args:
        model: the model that is asked.
        name: its name in the repository, for messages.
        targets: classes to explain, by id or rank; at least one.
        methods: names of the maps; empty for scores only.
        softmax: explain probabilities instead of logits.
        max_channels: number of channels of a Score-CAM; 0 for the method's default.
        max_maps: number of maps per image that a request may have.

    Raises:
        RequestError: the model does not offer a map or has no such class, there are too many maps, or `max_channels` is set without a
            Score-CAM.
    """
    names = tuple(require_method(method, model.description.methods, f"model {name!r}") for method in methods)
    if len(targets) * max(1, len(names)) > max_maps:
        raise RequestError(
            f"{len(targets)} classes with {len(names)} maps each were requested: at most {max_maps} maps per image are allowed (max_maps):"
            " send several requests"
        )
    model.check_targets(targets)
    if max_channels < 0:
        raise RequestError(f"max_channels {max_channels}: expected 1 or more, or 0 for the method's default")
    check_max_channels(max_channels or None, names)
    return MapRequest(tuple(targets), names, softmax, max_channels or None)


def parse_classes(text: str, labels: tuple[str, ...]) -> tuple[int, ...]:
    """Parse the query parameter `classes`, a list of classes to explain.

    Args:
        text: labels, ids, or -r for rank r, separated by commas; or one label, which may contain commas.
        labels: labels of the model, in the order of its classes.

    Returns:
        Ids, and negative ranks.

    Raises:
        RequestError: there is no such class, or several classes have the label.
    """
    return class_targets([text] if text in labels else text.split(","), labels, "query parameter 'classes':")


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """Cancel the work inside when the time is over. A step that runs in a thread ends there, its result is dropped, and no step follows.

    Args:
        seconds: the limit; 0 for none.

    Raises:
        TimeLimitError: the time is over.
    """
    limit = asyncio.timeout(seconds or None)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeLimitError(
            f"the image took more than the server's limit of {seconds:g} s (max_image_s): request less, such as a Score-CAM with fewer"
            " channels, or retry when the server is less busy"
        ) from error
