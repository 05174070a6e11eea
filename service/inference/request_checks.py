"""Request checks: verify that the model offers the requested maps and classes, and enforce the time limit."""

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
        model: the model to check against.
        name: model name in the repository, shown in messages.
        targets: classes to explain, by id or rank; at least one.
        methods: names of the maps; empty for scores only.
        softmax: explain probabilities instead of logits.
        max_channels: number of channels for a Score-CAM; 0 for the method's default.
        max_maps: maximum number of maps per image in a request.

    Returns:
        The checked map request.

    Raises:
        RequestError: the model lacks a requested map or class, the request has too many maps, or `max_channels` is negative or set without
            a Score-CAM.
    """
    names = tuple(require_method(method, model.description.methods, f"model {name!r}") for method in methods)
    if len(targets) * max(1, len(names)) > max_maps:
        raise RequestError(
            f"{len(targets)} classes with {len(names)} maps each were requested: at most {max_maps} maps per image are allowed (max_maps):"
            " send several requests"
        )
    model.check_targets(targets)
    model.check_softmax(softmax and bool(names))
    if max_channels < 0:
        raise RequestError(f"max_channels {max_channels}: expected 1 or more, or 0 for the method's default")
    check_max_channels(max_channels or None, names)
    return MapRequest(tuple(targets), names, softmax, max_channels or None)


def parse_classes(text: str, labels: tuple[str, ...]) -> tuple[int, ...]:
    """Parse the query parameter `classes`, which lists the classes to explain.

    Args:
        text: comma-separated labels, ids, or -r for rank r. Alternatively a single label, which may contain commas.
        labels: labels of the model in class order.

    Returns:
        Class ids and negative ranks.

    Raises:
        RequestError: a class does not exist, or several classes share a label.
    """
    return class_targets([text] if text in labels else text.split(","), labels, "query parameter 'classes':")


@asynccontextmanager
async def time_limit(seconds: float) -> AsyncIterator[None]:
    """Cancel the work in the context when the time limit is reached.

    A step in progress in a thread still finishes there, but its result is dropped and no further step starts.

    Args:
        seconds: time limit in seconds; 0 for no limit.

    Raises:
        TimeLimitError: the time limit was reached.
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
