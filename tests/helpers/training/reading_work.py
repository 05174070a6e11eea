"""Training process for tests of its end: it claims a run, reads images with workers, and starts other processes.

    python -m tests.helpers.training.reading_work RUN fork|spawn|forkserver WORKER_BEHAVIOUR

prints the process ids of its workers and of the other processes as JSON, and reads images until it is killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.data.dataloader import image_batches
from tlcli.training.data.dataset import CheckResult, Part
from tlcli.training.runtime.progress import Advance

FIRST = 16
"""Number of images read before a worker shows its behaviour."""


class Drawn:
    """Source of grey images. behaviour: action of a worker at a later image: `slow`, or the name of a signal or an error."""

    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour

    def load(self, name: str) -> Image.Image:
        if int(name) >= FIRST:
            match self.behaviour:
                case "slow":
                    time.sleep(0.05)
                case "SIGKILL" | "SIGBUS":
                    os.kill(os.getpid(), signal.Signals[self.behaviour])
                    time.sleep(5)
                case "MemoryError":
                    raise MemoryError
        return Image.new("RGB", (8, 8), (int(name) % 256,) * 3)

    def check(self, names: Sequence[str], advance: Advance) -> dict[str, CheckResult]:
        raise NotImplementedError


def drawn(behaviour: str, count: int = 400) -> Part:
    names = tuple(map(str, range(count)))
    return Part(np.zeros(count, dtype=np.int64), names, names, Drawn(behaviour))


def read(behaviour: str, workers: int = 2) -> None:
    for _ in image_batches(drawn(behaviour), Preprocessing(height=8, width=8), batch_size=4, workers=workers):
        pass


def main() -> None:
    from tlcli.training.runs.run_folder import RunFolder

    run, method, behaviour = sys.argv[1:]
    multiprocessing.set_start_method(method)
    with RunFolder(Path(run)).claimed():
        loaded = image_batches(drawn(behaviour), Preprocessing(height=8, width=8), batch_size=4, workers=2)
        next(loaded)
        workers = [child.pid for child in multiprocessing.active_children()]
        others = [subprocess.Popen(["sleep", "30"], close_fds=False).pid]
        if not (forked := os.fork()):
            time.sleep(30)
            os._exit(0)
        print(json.dumps({"workers": workers, "others": [*others, forked]}), flush=True)
        for _ in loaded:
            pass
        time.sleep(30)


if __name__ == "__main__":
    main()
