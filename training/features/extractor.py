"""The frozen side of a network, run by what is fastest here: ONNX Runtime on a CPU where it can, PyTorch elsewhere."""

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

Run = Callable[[Tensor], npt.NDArray[np.float32]]
"""Images, uint8 `[n, H, W, 3]`, to `embed(features(.))`, float32 `[n, d]`."""

WORTH = 256
"""From so many images on: to write the graph takes as long as some twenty of them in ResNet-50."""

TOLERANCE = 1e-4
"""How far ONNX Runtime's answers may be from PyTorch's, of the largest value; usual are some 1e-6."""

_TRIED = 4


def frozen_side(network: Network, images: int) -> Run:
    """The way to compute the features of so many images; the same each time it is asked about them.

    Args:
        network: in eval mode.
        images: of the whole part, also where those of some are there already: the last bits depend on what computes them.
    """
    module = _FrozenSide(network).eval()
    if network.device.type == "cpu" and images >= WORTH:
        run = _in_onnx_runtime(module)
        if run is not None and _agree(run, _in_pytorch(module), network):
            return run
    return _in_pytorch(module)


class _FrozenSide(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        network = self.network
        return network.embed(network.features(network.normalise(images)))


def _in_pytorch(module: _FrozenSide) -> Run:
    device = module.network.device

    def run(images: Tensor) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            embeddings: npt.NDArray[np.float32] = module(images.to(device)).float().cpu().numpy()
        return embeddings

    return run


def _in_onnx_runtime(module: _FrozenSide) -> Run | None:
    """None where it has no ONNX form, or none that the runtime takes: PyTorch runs it then, which is slower and no less right."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = min(torch.get_num_threads(), usable_cores())
    options.add_session_config_entry("session.force_spinning_stop", "1")  # those who read images want the cores too
    try:
        session = onnxruntime.InferenceSession(_graph(module), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001  # of PyTorch or ONNX Runtime, whose exceptions share no base class
        return None
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def _graph(module: _FrozenSide) -> bytes:
    """Traced by the older exporter: one second for ResNet-50, where the newer takes five; sizes are fixed and nothing is explained here."""
    size = module.network.config.preprocessing
    example = torch.zeros(2, size.height, size.width, 3, dtype=torch.uint8)
    written = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (example,),
            written,  # type: ignore[arg-type]  # this exporter takes a file too
            dynamo=False,
            input_names=["images"],
            output_names=["embedding"],
            dynamic_axes={"images": {0: "N"}},
        )
    return written.getvalue()


def _agree(run: Run, reference: Run, network: Network) -> bool:
    """On noise, not on the images: which engine is taken must not depend on where a computation was cut short."""
    size, draw = network.config.preprocessing, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (_TRIED, size.height, size.width, 3), dtype=torch.uint8, generator=draw)
    expected = reference(images)
    return bool(np.abs(run(images) - expected).max() <= TOLERANCE * np.abs(expected).max())
