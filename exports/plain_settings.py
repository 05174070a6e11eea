"""Checks of the settings for a plain graph, before it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tlcli.contract.errors import ExportError, ModelFileError, SettingsError
from tlcli.contract.maps.method_names import METHODS
from tlcli.contract.model.description import Description, Plain
from tlcli.contract.model.onnx_metadata import read_metadata
from tlcli.contract.model.repository_layout import MODEL_FILE, versions
from tlcli.exports.onnx_writer import plain_maps
from tlcli.exports.trace.explainer import Explainer
from tlcli.exports.trace.map_methods import NEEDS_ABLATION


def new_plain(
    methods: Sequence[str] | None, classes: Literal["input", "top"] | None, batch: int | None = None, explained: int | None = None
) -> Plain:
    """Return the form of a plain graph.

    Args:
        methods: names of the map methods; None for all; empty for a graph without maps, which has no explained classes to choose.
        classes: see `Plain`; None for `input`, or `top` without maps.
        batch: number of images per run; None for any number.
        explained: number of explained classes per image; None for any number, or one if `batch` is given.

    Raises:
        SettingsError: the settings contradict each other.
    """
    if methods == () and (classes is not None or explained is not None):
        raise SettingsError("--classes and --static-classes do not apply to a plain graph without maps: leave them out")
    if classes == "top" and explained is not None:
        raise SettingsError(
            "--static-classes cannot be combined with --classes top, which explains one class per image: use only one of them"
        )
    if classes == "top" or methods == ():
        return Plain(classes="top", batch=batch)
    return Plain(batch=batch, explained=explained or (1 if batch is not None else None))


def require_plain(explainer: Explainer, methods: Sequence[str] | None, plain: Plain, reduced: bool) -> None:
    """Check that a plain graph can have this form and compute these maps.

    Args:
        explainer: network with its maps.
        methods: names of the requested methods; None requests all that a plain graph computes.
        plain: form of the graph.
        reduced: True for reduced precision.

    Raises:
        ExportError: a method runs outside of the graph or needs a loop, or the settings contradict each other.
    """
    outside = [method for method in methods or () if not METHODS[method].in_graph]
    if outside:
        raise ExportError(
            f"--plain {','.join(outside)}: not available, because it is computed outside the graph, from outputs that a plain graph lacks:"
            f" choose from {', '.join(method for method in METHODS if METHODS[method].in_graph)}"
        )
    if missing := {*(methods or ())} - {output.method for output in plain_maps(explainer)}:
        if others := missing - NEEDS_ABLATION:
            raise ExportError(
                f"--plain {','.join(sorted(others))}: plain graphs do not compute this method: leave it out, or export without --plain"
            )
        raise ExportError(
            f"--plain {','.join(sorted(missing))}: not available, because it needs a loop unless the layer is the last one and the head is"
            " one linear layer on its spatial mean: leave it out, or export without --plain"
        )
    if explainer.dynamic_size and plain.batch is not None:
        raise ExportError("--static-batch and --dynamic-size cannot be combined: use only one of them")
    if reduced and plain.classes == "top":
        raise ExportError(
            "--precision cannot be combined with --classes top, because maps are validated for the same class in both files: use"
            " --classes input"
        )


def require_same_form(folder: Path, plain: Plain | None) -> None:
    """Check that the versions of a model have the same inputs, because Triton reads one configuration for all of them.

    Args:
        folder: folder of the model.
        plain: form of the version to add; None for a graph with optional inputs.

    Raises:
        ExportError: the latest version has a different form.
    """
    existing = versions(folder)
    if not existing:
        return
    path = folder / str(existing[-1]) / MODEL_FILE
    try:
        latest = Description.from_metadata(read_metadata(path), str(path)).plain
    except ModelFileError:
        return
    if latest != plain:
        raise ExportError(f"{path} has {_inputs(latest)}, but the new version would have {_inputs(plain)}: choose another --name")


def _inputs(plain: Plain | None) -> str:
    if plain is None:
        return "optional inputs"
    sizes = [f"{count} {name}" for count, name in ((plain.batch, "images"), (plain.explained, "classes")) if count is not None]
    fixed = f" and a fixed shape of {' and '.join(sizes)}" if sizes else ""
    return f"a plain graph with --classes {plain.classes}{fixed}"
