"""Classification options shared by both clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

from tlcli.contract.model.class_choice import class_targets
from tlcli.service.types.query import MapFormat, Query, map_query


class ClassifyOptions(TypedDict, total=False):
    """Keyword options of `classify` and its variants.

    model: name of the model; may be empty if the server holds only one.
    version: number or label of the version; empty for the latest.
    top_k: number of top-ranked classes to return; 0 for five, or fewer if the model has fewer classes. With several labels per image,
        the assigned labels are returned in any case, and 0 returns only these.
    cam: map method to compute, for example `gradcam`; None for no map.
    classes: classes to explain, as labels, ids or ranks, where -r selects the class of rank r. Empty: the top-ranked class, or with several
        labels per image every assigned label. A label costs
        one additional call to the server, which fetches the model's labels.
    map_format: `raw` values, a `heat_map` of the input's size, or an `overlay` on the image.
    softmax: explain the class's softmax probability instead of its logit.
    max_channels: number of channels that `scorecam` or `faster_scorecam` scores. 0: all channels for `scorecam`, ten for
        `faster_scorecam`.
    """

    model: str
    version: str
    top_k: int
    cam: str | None
    classes: Sequence[int | str]
    map_format: MapFormat
    softmax: bool
    max_channels: int


def names_labels(options: ClassifyOptions) -> bool:
    """Return True if any class is given by its label, in which case `build_query` needs the model's labels."""
    return any(isinstance(name, str) for name in _classes(options))


def build_query(options: ClassifyOptions, labels: Callable[[], Sequence[str]], request_id: str = "") -> Query:
    """Build a query from classification options, without an image.

    Args:
        options: options that the caller passed.
        labels: function that returns the model's labels. It is called only if `names_labels` returns True.
        request_id: id to return with the response.

    Raises:
        RequestError: the map format is unknown, the model does not have a class, or an option needs a map method but `cam` is not set.
        TypeError: an option is unknown.
    """
    for name in options.keys() - ClassifyOptions.__annotations__.keys():  # Python does not check keyword arguments of a TypedDict
        raise TypeError(f"unknown option {name!r}: expected one of {', '.join(ClassifyOptions.__annotations__)}")
    classes = _classes(options)
    targets = class_targets(classes, labels(), "classes") if names_labels(options) else tuple(int(number) for number in classes)
    maps = map_query(
        options.get("cam"),
        targets,
        options.get("map_format", "raw"),
        options.get("softmax", False),
        options.get("max_channels", 0),
    )
    return Query(
        model=options.get("model", ""),
        version=options.get("version", ""),
        top_k=options.get("top_k", 0),
        map=maps,
        request_id=request_id,
    )


def _classes(options: ClassifyOptions) -> Sequence[int | str]:
    classes = options.get("classes", ())
    return (classes,) if isinstance(classes, str) else classes
