"""Detection of processors on which sums of int8 products saturate.

ONNX Runtime multiplies uint8 activations with int8 weights. On x86 without VNNI it uses an instruction whose sums of two products saturate
at 16 bits, so that outputs are silently wrong. There it must be set to a slower kernel (`session.x64quantprecision`).
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
    """Return True on x86 without VNNI, and if VNNI support cannot be determined."""
    return may_saturate(platform.machine(), Path("/proc/cpuinfo"))


def may_saturate(machine: str, cpuinfo: Path) -> bool:
    """Return True if sums of int8 products may saturate on a processor.

    Args:
        machine: its architecture, from `platform.machine`.
        cpuinfo: Linux's list of its features, such as `/proc/cpuinfo`.
    """
    if machine not in _X86:
        return False
    try:
        return _VNNI.search(cpuinfo.read_text(encoding="utf-8", errors="replace")) is None
    except OSError:
        return True
