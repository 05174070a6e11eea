"""What runs the frozen side of a network: PyTorch, or on a CPU ONNX Runtime, which is faster."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from contract.cores import usable_cores
from contract.errors import ExportError, first_line
from training.network import Network

EngineName = Literal["pytorch", "onnxruntime"]
Engine = Callable[[Tensor], Tensor]
"""uint8 `[N, H, W, 3]` to `embed(features(.))`, float32 `[N, d]`, both on the CPU."""

TOLERANCE = 1e-4
"""How far ONNX Runtime's features may be from PyTorch's, relative to the largest."""

_INPUT, _OUTPUT = "images", "embeddings"
_OPSET = 20


def engine_version(name: EngineName) -> str:
    """What its answers depend on beside PyTorch."""
    if name == "pytorch":
        return ""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}, onnxscript {metadata.version('onnxscript')}"


class FrozenSide(nn.Module):
    """A network up to its embedding, pictures in."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """uint8 `[N, H, W, 3]`, on the network's device, to float32 `[N, d]`."""
        network = self.network
        return network.embed(network.features(network.normalise(images))).float()


def pytorch_engine(network: Network) -> Engine:
    """The network itself, in the mode and on the device it is in."""
    frozen, device = FrozenSide(network), next(network.parameters()).device

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return cast("Tensor", frozen(images.to(device))).cpu()

    return run


def onnx_runtime_engine(network: Network, images: Tensor) -> Engine:
    """The network in a session of ONNX Runtime, on the CPU.

    Args:
        network: in eval mode, on the CPU; it is not changed, and may change afterwards.
        images: a few, uint8 `[N, H, W, 3]`, to compare it with PyTorch.

    Raises:
        ExportError: it has no ONNX form, ONNX Runtime does not take it, or answers otherwise than PyTorch.
    """
    expected = pytorch_engine(network)(images)
    try:
        engine = _open(network)
        apart = (engine(images) - expected).abs().max()
    except Exception as error:  # of the exporter, onnx and ONNX Runtime, whose exceptions share no base class
        raise ExportError(_cause(error)) from error
    difference = float(apart / expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
    if not difference <= TOLERANCE:
        raise ExportError(f"its features differ by {difference:.2g} of the largest, at most {TOLERANCE:g} is allowed")
    return engine


def _open(network: Network) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = usable_cores()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between runs the cores are for those who read pictures
    with tempfile.TemporaryDirectory(prefix="tlcli-") as folder:
        path = Path(folder) / "frozen.onnx"
        _write(network, path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (embeddings,) = session.run([_OUTPUT], {_INPUT: images.numpy()})
        return torch.from_numpy(embeddings)

    return run


def _write(network: Network, path: Path) -> None:
    size = network.config.preprocessing
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            FrozenSide(network).eval(),
            (torch.zeros(3, size.height, size.width, 3, dtype=torch.uint8),),
            dynamo=True,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            dynamic_shapes=({0: torch.export.Dim.AUTO},),
            opset_version=_OPSET,
            verbose=False,
        )
        assert program is not None
        program.save(str(path))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps and logs what it tries; a failure still arrives as an exception."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
