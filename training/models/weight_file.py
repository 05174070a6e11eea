"""Weight files as they are found in the wild, to a plain mapping of tensors. No code in them is run."""

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
"""Where training scripts put the weights in their checkpoints, averaged ones first."""

_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")
"""What data parallelism, `torch.compile`, training frameworks and this project's own runs put before each name."""

_SOMETIMES = ("net.", "network.", "encoder.", "student.", "base_model.", "_model.")
"""Other wrappers, which are also what some networks call a part of their own: `stripped` takes them off."""

_COUNTERS = ("n_averaged",)
"""Tensors that `torch.optim.swa_utils` keeps beside the weights."""

_NUMPY: dict[str, Any] = {"scalar": np.float64().__reduce__()[0], "_reconstruct": np.zeros(0).__reduce__()[0]}
"""Constructors of NumPy's scalars and arrays; its package `_core` was called `core` before NumPy 2."""

_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.ndarray,
    *(kind for name, kind in vars(np.dtypes).items() if name.endswith("DType") and name != "ObjectDType"),
    *((function, f"numpy.{core}.multiarray.{name}") for name, function in _NUMPY.items() for core in ("_core", "core")),
]
"""Classes beyond PyTorch's own list that may be in a checkpoint: training scripts keep their arguments and best score in it."""

_OF_LOSSES = re.compile(r"(?:\w*criterion|\w*loss(?:_fn|_func|_function)?|\w*metrics?|\w*_acc(?:uracy)?)\.")
"""Key prefixes that no network for images has."""

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")

_LOAD_ERRORS = (
    pickle.UnpicklingError, struct.error, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError
)  # fmt: skip
"""What `torch.load` raises for files that are cut short, made by hand, or hold more than tensors."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The weights in a file: safetensors, or what `torch.save` wrote, in either of its formats.

    Returns:
        Names, without wrappers' prefixes, to tensors on the CPU.

    Raises:
        NotFoundError: no such file.
        WeightsError: the file is damaged, of another kind, needs code to be run, or holds no tensors.
    """
    if (path / CHECKPOINT).is_file():
        raise NotFoundError(f"{path}: a run: its weights are in {path / CHECKPOINT}")
    if path.is_dir():
        raise NotFoundError(f"{path}: a folder: --weights takes a checkpoint file, `pretrained` or `none`")
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file: --weights takes a checkpoint file, `pretrained` or `none`")
    with path.open("rb") as opened:
        start = opened.read(9)
    if start[:2] == b"PK" or start[:1] == b"\x80":
        content = _load_pickled(path)
    elif start[8:9] == b"{":  # a safetensors file begins with the length of its JSON header, 8 bytes
        content = _load_safetensors(path)
    else:
        raise WeightsError(
            f"{path}: neither a safetensors file nor one written by torch.save (it begins {start!r}): give another --weights"
        )
    tensors = {name: tensor for name, tensor in _unwrapped(_tensors_in(content)).items() if name not in _COUNTERS}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors under names ({_summary(content)}): a state_dict was expected")
    return tensors


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: damaged, or no safetensors file: {error}") from error


def _load_pickled(path: Path) -> object:
    zipped = zipfile.is_zipfile(path)
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about the file is judged here
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)  # only the newer format can be mapped
    except _LOAD_ERRORS as error:
        if refused := _REFUSED.search(str(error)):
            raise WeightsError(
                f"{path}: loading it would run code of {refused[1]}, which is refused: save the tensors alone,"
                " torch.save(model.state_dict(), ...), or as safetensors"
            ) from error
        raise WeightsError(
            f"{path}: cannot be read: it is damaged, or not what torch.save(model.state_dict(), ...) writes: give another --weights"
        ) from error


def _tensors_in(content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for key in _NESTED:
        if isinstance(content.get(key), Mapping) and (inside := _tensors_in(content[key])):
            return inside
    return {name: value.detach() for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes that most of them share; what stands beside a `backbone.` is another network's part."""
    for prefix in _WRAPPERS:
        having = [name for name in tensors if name.startswith(prefix)]
        if 2 * len(having) > len(tensors):
            beside = {} if prefix == "backbone." else {name: value for name, value in tensors.items() if not name.startswith(prefix)}
            return _unwrapped(beside | {name.removeprefix(prefix): tensors[name] for name in having})
    return tensors


def stripped(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Take off one more wrapper, and what stands beside it (a loss, metrics).

    For a file that does not fit as it is: a strict load decides whether the result is meant.

    Returns:
        None where no wrapper's prefix is shared by most names.
    """
    for prefix in (*_WRAPPERS, *_SOMETIMES):
        having = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if 2 * len(having) > len(tensors):
            return _unwrapped(having)
    return None


def without_losses(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave out the tensors of losses and metrics, which training frameworks save with the network's."""
    return {name: tensor for name, tensor in tensors.items() if not _OF_LOSSES.match(name)}


def _summary(content: Any) -> str:
    return f"a mapping of {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else f"a {type(content).__name__}"
