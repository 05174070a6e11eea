"""Processors that need the slower int8 kernel, by architecture and CPU flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlcli.contract.model.int8_support import may_saturate


@pytest.mark.parametrize(
    ("machine", "flags", "saturates"),
    [
        ("x86_64", "fpu sse4_1 avx avx2 fma", True),
        ("x86_64", "fpu avx2 avx512f avx512bw avx512vl", True),
        ("x86_64", "fpu avx2 avx512f avx512_vnni avx512_bf16", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni_int16_is_another", True),
        ("aarch64", "fp asimd", False),
    ],
)
def test_x86_without_vnni(machine: str, flags: str, saturates: bool, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: avx_vnni by name only\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    assert may_saturate(machine, cpuinfo) == saturates


def test_what_cannot_be_found_out_counts_as_such(tmp_path: Path) -> None:
    assert may_saturate("AMD64", tmp_path / "none")
    assert not may_saturate("arm64", tmp_path / "none")
