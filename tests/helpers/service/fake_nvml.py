"""Fake of the module `pynvml`, with the functions that `tlcli.service.telemetry.gpu_memory` calls."""

from __future__ import annotations

from types import SimpleNamespace

GIB = 1024**3


class FakeNvml:
    """NVML of a machine with GPUs.

    gpus: used and total bytes by index; None for a GPU without permission.
    opened: calls of init minus calls of shutdown.
    """

    class NVMLError(Exception):
        """Error of NVML."""

    def __init__(self, *gpus: tuple[int, int] | None, driver: bool = True) -> None:
        self.gpus = list(gpus)
        self.driver = driver
        self.opened = 0

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.driver:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._check()
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._check()
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self._check()
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle:08d}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:  # noqa: N802
        self._check()
        told = self.gpus[handle]
        if told is None:
            raise self.NVMLError("Insufficient Permissions")
        used, total = told
        return SimpleNamespace(used=used, total=total, free=total - used)

    def _check(self) -> None:
        if not self.opened:
            raise self.NVMLError("Uninitialized")
