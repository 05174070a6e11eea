"""Reader for weight files of various training frameworks. Code in the files is never executed."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from tlcli.contract.errors import NotFoundError, WeightsError
from tlcli.training.settings.run_file_names import CHECKPOINT

_NESTED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "state_dict", "model_state_dict", "model_state", "model",
    "student", "net", "network", "module", "params", "weights", "backbone",
)  # fmt: skip
"""Keys under which training scripts store the weights in a checkpoint, starting with averaged weights."""

_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")
"""Name prefixes added by data parallelism, `torch.compile`, training frameworks and this project's own runs."""

_AMBIGUOUS_WRAPPERS = ("net.", "network.", "encoder.", "student.", "base_model.", "_model.")
"""Other wrapper prefixes that are also submodule names in some networks. Only `stripped` removes them."""

_COUNTERS = ("n_averaged",)
"""Tensors that `torch.optim.swa_utils` stores alongside the weights."""

_NUMPY: dict[str, Any] = {"scalar": np.float64().__reduce__()[0], "_reconstruct": np.zeros(0).__reduce__()[0]}
"""Constructors of NumPy scalars and arrays. Their package `_core` was named `core` before NumPy 2."""

_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *(kind for name, kind in vars(np.dtypes).items() if name.endswith("DType") and name != "ObjectDType"),
    *((function, f"numpy.{core}.multiarray.{name}") for name, function in _NUMPY.items() for core in ("_core", "core")),
]
"""Safe classes allowed in a checkpoint in addition to PyTorch's own list, since training scripts store their arguments and best score."""

_LOSS_PREFIX = re.compile(r"(?:\w*criterion|\w*loss(?:_fn|_func|_function)?|\w*metrics?|\w*_acc(?:uracy)?)\.")
"""Name prefixes of losses and metrics. No image network uses them for its layers."""

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")

_LOAD_ERRORS = (
    pickle.UnpicklingError, struct.error, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError
)  # fmt: skip
"""Exceptions that `torch.load` raises for files that are truncated, hand-made, or contain more than tensors."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the weights from a safetensors file, or from a file written by `torch.save` in either of its formats.

    Returns:
        Tensors on the CPU by name, without wrapper prefixes.

    Raises:
        NotFoundError: the file does not exist.
        WeightsError: the file is damaged, has another format, would require code execution, or contains no tensors.
    """
    if (path / CHECKPOINT).is_file():
        raise NotFoundError(f"{path} is a run folder: use --weights {path / CHECKPOINT}")
    if path.is_dir():
        raise NotFoundError(f"{path} is a folder: --weights expects a checkpoint file, `pretrained` or `none`")
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file: --weights expects a checkpoint file, `pretrained` or `none`")
    with path.open("rb") as opened:
        start = opened.read(9)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        content = _load_pickled(path)
    elif start[8:9] == b"{":  # a safetensors file begins with the length of its JSON header, in 8 bytes
        content = _load_safetensors(path)
    else:
        raise WeightsError(
            f"{path}: neither a safetensors file nor one written by torch.save (it starts with {start!r}): use another --weights file"
        )
    tensors = {name: tensor for name, tensor in _unwrapped(_tensors_in(content)).items() if name not in _COUNTERS}
    if not tensors:
        raise WeightsError(f"{path}: holds no named tensors ({_summary(content)}): expected a state_dict")
    return tensors


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: damaged, or not a safetensors file: {error}: use another --weights file") from error


def _load_pickled(path: Path) -> object:
    zipped = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unusual files are reported here instead
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)  # only the newer format can be memory-mapped
    except _LOAD_ERRORS as error:
        if refused := _REFUSED.search(str(error)):
            raise WeightsError(
                f"{path}: loading it would execute {refused[1]}, which is not allowed: save only the tensors, with"
                " torch.save(model.state_dict(), ...) or as safetensors"
            ) from error
        raise WeightsError(
            f"{path}: cannot be read: it is damaged, or was not written by torch.save(model.state_dict(), ...): use another --weights file"
        ) from error


def _tensors_in(content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for key in _NESTED:
        if isinstance(content.get(key), Mapping) and (nested := _tensors_in(content[key])):
            return nested
    return {name: value.detach() for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the wrapper prefixes that most names share. Tensors outside of `backbone.` belong to another network and are dropped."""
    for prefix in _WRAPPERS:
        prefixed = [name for name in tensors if name.startswith(prefix)]
        if 2 * len(prefixed) > len(tensors):
            others = {} if prefix == "backbone." else {name: value for name, value in tensors.items() if not name.startswith(prefix)}
            return _unwrapped(others | {name.removeprefix(prefix): tensors[name] for name in prefixed})
    return tensors


def stripped(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Remove one more wrapper prefix, and drop tensors without it, such as losses and metrics.

    This is used for a file that does not fit unmodified. A strict load then verifies the result.

    Returns:
        The remaining tensors, or None if no wrapper prefix is shared by most names.
    """
    for prefix in (*_WRAPPERS, *_AMBIGUOUS_WRAPPERS):
        prefixed = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if 2 * len(prefixed) > len(tensors):
            return _unwrapped(prefixed)
    return None


def without_losses(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the tensors of losses and metrics, which training frameworks save together with the network."""
    return {name: tensor for name, tensor in tensors.items() if not _LOSS_PREFIX.match(name)}


def _summary(content: Any) -> str:
    return f"a mapping of {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
