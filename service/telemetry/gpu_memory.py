"""How full the GPUs are, as NVIDIA's management library (NVML) tells, which comes with the driver."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class Nvml(Protocol):
    """What is taken of the module `pynvml` (the package nvidia-ml-py); its functions have the names of NVML's own."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802, D102
    def nvmlShutdown(self) -> None: ...  # noqa: N802, D102
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802, D102
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802, D102
    def nvmlDeviceGetUUID(self, handle: Any) -> str: ...  # noqa: N802, D102
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: N802, D102


@dataclass(frozen=True)
class GpuMemory:
    """gpu: NVML's number of it; uuid: what it is called wherever it is; used_bytes: by all processes, what the driver keeps included."""

    gpu: str
    uuid: str
    used_bytes: int
    total_bytes: int


class Gpus:
    """Those that the driver shows to this process: in a container, those that it was given."""

    def __init__(self, nvml: Nvml) -> None:
        """
        Raises:
            nvml.NVMLError: no driver, or none that tells.
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
        """Of each GPU; one that does not tell, such as one that is divided (MIG), is left out. From any thread."""
        for gpu, uuid, handle in self._known:
            try:
                found = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            except self._nvml.NVMLError as error:
                logger.debug("GPU %s does not tell its memory: %s", gpu, error)
                continue
            yield GpuMemory(gpu, uuid, int(found.used), int(found.total))

    def close(self) -> None:
        """Ask no more."""
        with suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()


def open_gpus(nvml: Nvml | None = None) -> Gpus | None:
    """The GPUs, or None where they cannot be asked, which the log tells at DEBUG.

    Args:
        nvml: whom to ask; by default nvidia-ml-py, if it is installed.
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
