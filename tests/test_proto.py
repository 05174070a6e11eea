"""The generated code is what proto/ says."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    subprocess.run(["make", "--silent", "proto", f"PROTO_OUT={tmp_path}"], cwd=ROOT, check=True, capture_output=True)
    written = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(written) == 6
    for path in written:
        committed = ROOT / path.relative_to(tmp_path)
        assert committed.read_bytes() == path.read_bytes(), f"{committed} is not what `make proto` writes: run it"
