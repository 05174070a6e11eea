"""GPU memory usage, read from the NVIDIA Management Library (NVML), which is part of the driver."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class Nvml(Protocol):
    """Protocol for the functions used from the module `pynvml` (package nvidia-ml-py), with NVML's names."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802, D102
    def nvmlShutdown(self) -> None: ...  # noqa: N802, D102
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802, D102
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802, D102
    def nvmlDeviceGetUUID(self, handle: Any) -> str: ...  # noqa: N802, D102
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: N802, D102


@dataclass(frozen=True)
class GpuMemory:
    """Memory usage of one GPU.

    gpu: NVML's index of the GPU.
    uuid: identifier of the GPU that stays the same on every machine.
    used_bytes: memory used by all processes or reserved by the driver.
    """

    gpu: str
    uuid: str
    used_bytes: int
    total_bytes: int


class Gpus:
    """GPUs visible to this process; in a container, the GPUs assigned to it."""

    def __init__(self, nvml: Nvml) -> None:
        """Initialize NVML and look up the GPUs.

        Raises:
            nvml.NVMLError: no driver is installed, or the driver does not respond.
        """
        self._nvml = nvml
        nvml.nvmlInit()
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            self._known = [(str(index), nvml.nvmlDeviceGetUUID(handle), handle) for index, handle in enumerate(handles)]
        except nvml.NVMLError:
            self.close()
            raise

    def memory(self) -> Iterator[GpuMemory]:
        """Yield the memory usage of each GPU. Callable from any thread.

        GPUs that do not report their memory, such as GPUs partitioned by MIG, are skipped.
        """
        for gpu, uuid, handle in self._known:
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            except self._nvml.NVMLError as error:
                logger.debug("GPU %s does not report its memory: %s", gpu, error)
                continue
            yield GpuMemory(gpu, uuid, int(memory.used), int(memory.total))

    def close(self) -> None:
        """Shut down NVML and release the GPU handles."""
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()


def open_gpus(nvml: Nvml | None = None) -> Gpus | None:
    """Open the GPUs. If NVML cannot be used, log a DEBUG message and return None.

    Args:
        nvml: NVML bindings; by default nvidia-ml-py, if it is installed.
    """
    if nvml is None:
        try:
            import pynvml
        except ImportError:
            logger.debug("no metrics of GPU memory: nvidia-ml-py is not installed (pip install 'tlcli[gpu]')")
            return None
        nvml = pynvml
    try:
        return Gpus(nvml)
    except nvml.NVMLError as error:
        logger.debug("no metrics of GPU memory: NVML: %s", error)
        return None
