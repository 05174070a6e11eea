"""Server in a process of its own, as `tlcli serve` runs it."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = """
import pathlib, sys
import tlcli.service
from tlcli.contract.errors import TlcliError
try:
    tlcli.service.serve(tlcli.service.ServerSettings(models=pathlib.Path(sys.argv[1]), **eval(sys.argv[2])))
except TlcliError as error:
    print(f"Error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
"""


class ServerProcess:
    """Server in a process. log: lines of standard error so far."""

    def __init__(self, models: Path, **settings: Any) -> None:
        command = [sys.executable, "-c", PROGRAM, str(models), repr({"port": 0, **settings})]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if "listening on" in line:
                self._listening.set()
        self._listening.set()

    @property
    def port(self) -> int:
        """Wait for the line of the log with the port, and return the port."""
        assert self._listening.wait(60), self.log
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)$", "".join(self.log), re.MULTILINE)
        assert found, self.log
        return int(found[1])

    def wait(self, timeout_s: float = 60) -> int:
        """Wait for the end of the process and of its log, and return the exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code


@contextmanager
def server_process(models: Path, **settings: Any) -> Iterator[ServerProcess]:
    server = ServerProcess(models, **settings)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.wait()
