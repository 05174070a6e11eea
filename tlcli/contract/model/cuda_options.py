"""How ONNX Runtime is told to run a graph on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

CUDA_PROVIDER = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Cuda:
    """Settings of the CUDA execution provider.

    tf32: products of float32 numbers are taken in TF32 (10 bits of fraction, summed in float32), as PyTorch's convolutions are: two to
        four times as fast. Without, answers are a CPU's but for rounding; with it, maps of inner layers are not.
    channels_last: convolutions of a channels-last layout, which tensor cores want; `warm_up` measures whether it pays.
    """

    tf32: bool = False
    channels_last: bool = False

    def options(self) -> dict[str, str]:
        """Of the provider, by ONNX Runtime's names for them."""
        return {
            # Chosen by rule, not by trying all: those that are tried are tried anew for each batch size, while requests wait.
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": str(int(self.tf32)),
            "prefer_nhwc": str(int(self.channels_last)),
        }


USUAL_CUDA = Cuda()
