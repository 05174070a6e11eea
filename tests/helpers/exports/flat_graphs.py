"""Cache of exported graphs for the tests of a session: tracing the same network with the same maps takes seconds, and gives the same graph.

The key is everything that the exporter sees: the pickled explainer, with its weights, settings and classes. The files are shared by the
processes of pytest-xdist.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import pytest
import torch

from tests.helpers.exports import small_networks
from tlcli.exports import exporter, onnx_writer
from tlcli.exports.trace.explainer import Explainer

MOST_BYTES = 64 << 20
"""Weights of the largest network that is kept, which bounds the space on the disk."""


def key_of(explainer: Explainer) -> str | None:
    """Return the SHA-256 of an explainer; None if it holds what cannot be pickled, such as a hook."""
    written = io.BytesIO()
    try:
        torch.save(explainer, written)
    except Exception:  # noqa: BLE001  # pickle raises many kinds: such a network is exported each time
        return None
    return hashlib.sha256(written.getvalue()).hexdigest()


@contextmanager
def cached_flat_graphs(folder: Path) -> Iterator[None]:
    """Keep the result of each successful `flat_graph` in a folder."""
    folder.mkdir(exist_ok=True)
    export = onnx_writer.flat_graph

    @functools.wraps(export)
    def flat_graph(explainer: Explainer) -> onnx.ModelProto:
        bytes_ = sum(parameter.nbytes for parameter in explainer.parameters())
        key = key_of(explainer) if bytes_ <= MOST_BYTES else None
        if key is None:
            return export(explainer)
        path = folder / f"{key}.onnx"
        if not path.exists():
            temporary = path.with_suffix(f".{os.getpid()}")
            onnx.save(export(explainer), str(temporary))
            temporary.rename(path)
        return onnx.load(str(path))

    with pytest.MonkeyPatch.context() as patch:
        for module in (onnx_writer, exporter, small_networks):
            patch.setattr(module, "flat_graph", flat_graph)
        yield
