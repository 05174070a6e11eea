"""The process that decodes images ends quietly when the server does."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys

import pytest

from tests.helpers.contract.hostile_images import encoded, photo
from tlcli.contract.images.decode_worker import send
from tlcli.contract.images.decoding import ImageLimits
from tlcli.contract.images.preprocessing import Preprocessing


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
def test_a_server_that_has_ended_causes_no_traceback() -> None:
    data = encoded(photo(), "PNG")
    job = {
        "bytes": len(data),
        "seconds": 10.0,
        "preprocessing": Preprocessing(height=32, width=32).model_dump(),
        "limits": dataclasses.asdict(ImageLimits()),
        "keep_image": False,
    }
    program = "from tlcli.contract.images.decode_worker import main; main()"
    worker = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdout.close()
    send(worker.stdin, job, data)
    _, errors = worker.communicate(timeout=60)
    assert errors == b""
    assert worker.returncode == -signal.SIGPIPE
