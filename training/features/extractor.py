"""Feature extraction with the faster engine: ONNX Runtime on a CPU if it supports the network, PyTorch otherwise."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tlcli.contract.process.cores import usable_cores
from tlcli.training.models.network import Network

Extractor = Callable[[Tensor], npt.NDArray[np.float32]]
"""Function that maps images, uint8 `[n, H, W, 3]`, to embeddings `embed(features(x))`, float32 `[n, d]`."""

MIN_IMAGES_FOR_ONNX = 256
"""Minimum number of images to use ONNX Runtime for. Exporting ResNet-50 takes as long as running it on about twenty images."""

TOLERANCE = 1e-4
"""Maximum accepted difference between ONNX Runtime and PyTorch, relative to the largest value. Typical differences are about 1e-6."""

_COMPARED = 4
"""Number of noise images used to compare the two engines."""


def build_extractor(network: Network, images: int) -> Extractor:
    """Build a feature extractor with the faster engine. The choice of the engine is reproducible.

    Args:
        network: network in eval mode.
        images: number of images in the entire part, including those whose features are already stored, because the last bits of the
            features depend on the engine.
    """
    module = _FrozenLayers(network).eval()
    if network.device.type == "cpu" and images >= MIN_IMAGES_FOR_ONNX:
        extract = _in_onnx_runtime(module)
        if extract is not None and _agree(extract, _in_pytorch(module), network):
            return extract
    return _in_pytorch(module)


class _FrozenLayers(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        return network.embed(network.features(network.normalise(images)))


def _in_pytorch(module: _FrozenLayers) -> Extractor:
    device = module.network.device

    def extract(images: Tensor) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            embeddings: npt.NDArray[np.float32] = module(images.to(device)).float().cpu().numpy()
        return embeddings

    return extract


def _in_onnx_runtime(module: _FrozenLayers) -> Extractor | None:
    """Build an extractor that uses ONNX Runtime. Return None if the network cannot be exported or loaded.

    In that case, PyTorch computes the same features more slowly.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = min(torch.get_num_threads(), usable_cores())
    options.add_session_config_entry("session.force_spinning_stop", "1")  # the worker processes that read images also need the cores
    try:
        session = onnxruntime.InferenceSession(_graph(module), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001  # the exceptions of PyTorch and ONNX Runtime share no base class
        return None
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def _graph(module: _FrozenLayers) -> bytes:
    """Export the frozen layers to ONNX with PyTorch's older exporter, which is based on tracing.

    Exporting ResNet-50 takes one second, compared to five with the newer exporter. Tracing is sufficient because sizes are fixed and no
    maps are needed.
    """
    size = module.network.config.preprocessing
    example = torch.zeros(2, size.height, size.width, 3, dtype=torch.uint8)
    written = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            written,  # type: ignore[arg-type]  # this exporter accepts a file object too
            dynamo=False,
            input_names=["images"],
            output_names=["embedding"],
            dynamic_axes={"images": {0: "N"}},
        )
    return written.getvalue()


def _agree(extract: Extractor, reference: Extractor, network: Network) -> bool:
    """Return True if both engines compute the same features for noise images, within `TOLERANCE`.

    Noise is used instead of images from the part, so that the result does not depend on where a computation was interrupted.
    """
    size, generator = network.config.preprocessing, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_COMPARED, size.height, size.width, 3), dtype=torch.uint8, generator=generator)
    expected = reference(images)
    return bool(np.abs(extract(images) - expected).max() <= TOLERANCE * np.abs(expected).max())
