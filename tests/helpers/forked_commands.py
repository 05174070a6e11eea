"""The command line in forks of a process that has imported PyTorch already: a command then takes its own time, not that of the imports.

Each command is a process of its own, with its own working directory and environment, and can be killed. The forks share the caches of the
tests' exports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

Tlcli = Callable[..., "subprocess.CompletedProcess[str]"]
"""Function that runs a command in a process of its own, and returns its exit status and what it printed."""

SERVER = """
import contextlib, json, os, pathlib, sys
import tlcli.training.fine_tuning, tlcli.cli.commands.export, tlcli.cli.commands.finetune, tlcli.exports.exporter, tlcli.__main__
from tests.helpers.exports.flat_graphs import cached_flat_graphs
from tests.helpers.exports.torchlib import cached_torchlib

def run(arguments, folder, environment, streams):
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ.update(environment)
    sys.argv = ["tlcli", *arguments]
    code = 1
    try:
        tlcli.__main__.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

with cached_torchlib(), cached_flat_graphs(pathlib.Path(sys.argv[1])):
    for line in sys.stdin:
        child = os.fork()
        if not child:
            run(*json.loads(line))
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
"""


class ForkedCommands:
    """Commands of `tlcli`, one after the other."""

    def __init__(self, server: subprocess.Popen[str], folder: Path, output: Path) -> None:
        self._server = server
        self._folder = folder
        self._output = output

    def start(
        self,
        arguments: Sequence[str],
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        streams: Sequence[Path] = (),
    ) -> int:
        """Start a command, and return the number of its process. `end` is to be called before the next one is started.

        `streams` are the files of its standard output and standard error, which otherwise go to `output`.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        sent = [list(arguments), str(folder or self._folder), dict(environment or {}), [str(path) for path in streams]]
        self._server.stdin.write(json.dumps(sent) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def end(self) -> int:
        """Wait for the command, and return its exit status: less than 0 if a signal ended it."""
        assert self._server.stdout is not None
        return os.waitstatus_to_exitcode(int(self._server.stdout.readline()))

    def run(self, *arguments: str) -> None:
        """Run a command that is to succeed."""
        self.start(arguments)
        assert self.end() == 0, self.output()

    def completed(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run a command, and return its exit status and what it printed."""
        words = [str(argument) for argument in arguments]
        streams = (self._folder / ".stdout", self._folder / ".stderr")
        self.start(words, streams=streams)
        status = self.end()
        return subprocess.CompletedProcess(words, status, *(path.read_text(encoding="utf-8") for path in streams))

    def output(self) -> str:
        """Return what all commands have printed so far, to standard output and standard error."""
        return self._output.read_text(encoding="utf-8")


@contextmanager
def forked_commands(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[ForkedCommands]:
    """Start the process. Commands run in `folder`, where the caches are kept, too."""
    output = folder / ".output"
    with (
        output.open("w") as written,
        subprocess.Popen(
            [sys.executable, "-c", SERVER, str(folder / ".flat-graphs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
            env={**os.environ, **(environment or {})},
            cwd=Path(__file__).parents[2],
        ) as server,
    ):
        yield ForkedCommands(server, folder, output)
