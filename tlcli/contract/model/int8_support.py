"""Whether this processor adds up int8 products without saturating.

ONNX Runtime multiplies uint8 activations with int8 weights. On x86 without VNNI it uses an instruction whose sums of two products stop at
16 bits, so that answers come out wrong without a word; there it must be told to take a slower way (`session.x64quantprecision`).
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
    """On x86 without VNNI; and where that cannot be found out."""
    return may_saturate(platform.machine(), Path("/proc/cpuinfo"))


def may_saturate(machine: str, cpuinfo: Path) -> bool:
    """The same of a processor by its kind (`platform.machine`) and Linux's list of what it can do."""
    if machine not in _X86:
        return False
    try:
        return _VNNI.search(cpuinfo.read_text(encoding="utf-8", errors="replace")) is None
    except OSError:
        return True
