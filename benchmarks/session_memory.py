"""Bytes of anonymous memory that a session of an exported model holds after three runs for scores alone. Linux.

    python benchmarks/session_memory.py MODEL.onnx [--size 224]

Runs in a process of its own with nothing but ONNX Runtime in it: memory that a larger process has freed may or may not be counted.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1]))

from tlcli.contract.model.description import IMAGES, LOGITS, SCORES, WANTED
from tlcli.contract.process.cores import usable_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--size", type=int, default=224)
    arguments = parser.parse_args()
    before = anonymous_bytes()
    session = open_session(arguments.model)
    anonymous_bytes()  # what loading left over goes back now: later it lies among what the runs take
    feed = {IMAGES: np.zeros((1, arguments.size, arguments.size, 3), dtype=np.uint8)}
    for entry in session.get_overridable_initializers():
        if entry.name == WANTED:
            feed[WANTED] = np.zeros((1, entry.shape[1]), dtype=bool)
    for _ in range(3):
        session.run([SCORES, LOGITS], feed)
    print(anonymous_bytes() - before)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a session with the server's options."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process, after freed memory has been returned to the system."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


if __name__ == "__main__":
    main()
