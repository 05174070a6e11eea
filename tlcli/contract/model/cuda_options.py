"""Options of ONNX Runtime's CUDA execution provider."""

from __future__ import annotations

from dataclasses import dataclass

CUDA_PROVIDER = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Cuda:
    """Settings of the CUDA execution provider.

    tf32: compute float32 products in TF32 (10-bit fraction, accumulated in float32), as PyTorch's convolutions do. This is two to four
        times as fast. Without it, outputs equal those of a CPU up to rounding; with it, maps of inner layers differ more.
    channels_last: run convolutions in channels-last layout, which tensor cores prefer; `warm_up` measures whether this is faster.
    """

    tf32: bool = False
    channels_last: bool = False

    def options(self) -> dict[str, str]:
        """Return the provider options, keyed by ONNX Runtime's option names."""
        return {
            # Choose algorithms by heuristic. An exhaustive search would run again for each batch size, while requests wait.
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": str(int(self.tf32)),
            "prefer_nhwc": str(int(self.channels_last)),
        }


USUAL_CUDA = Cuda()
