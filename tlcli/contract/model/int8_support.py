"""Detection of processors on which sums of int8 products saturate.

ONNX Runtime multiplies uint8 activations by int8 weights. On x86 without VNNI, it uses an instruction whose sums of two products saturate
at 16 bits, so outputs are silently wrong. On these processors, it must use a slower kernel (`session.x64quantprecision`).
"""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path

_X86 = ("x86_64", "AMD64", "i386", "i686", "x86")
_VNNI = re.compile(r"^flags\s*:.*\b(avx512_vnni|avx_vnni)\b", re.MULTILINE)


@functools.cache
def int8_sums_saturate() -> bool:
    """Return True if sums of int8 products may saturate on this machine: on x86 without VNNI, or with unknown VNNI support."""
    return may_saturate(platform.machine(), Path("/proc/cpuinfo"))


def may_saturate(machine: str, cpuinfo: Path) -> bool:
    """Return True if sums of int8 products may saturate on the described processor.

    Args:
        machine: processor architecture, as returned by `platform.machine`.
        cpuinfo: file in the format of Linux's `/proc/cpuinfo` that lists the processor's features.
    """
    if machine not in _X86:
        return False
    try:
        return _VNNI.search(cpuinfo.read_text(encoding="utf-8", errors="replace")) is None
    except OSError:
        return True
