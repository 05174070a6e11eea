"""Cache of the table of ONNX functions, which PyTorch's exporter builds anew for every export: a fifth of the time of a small one."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch.onnx._internal.exporter._constants import TORCHLIB_OPSET
from torch.onnx._internal.exporter._registration import ONNXRegistry


@contextmanager
def cached_torchlib() -> Iterator[None]:
    """Build the table once, and give each export a copy."""
    build = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(opset_version: int = TORCHLIB_OPSET) -> ONNXRegistry:
        built = build(opset_version)
        registry = copy.copy(built)
        registry.functions = {name: list(functions) for name, functions in built.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
        yield
