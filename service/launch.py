"""Entry points that run a server in its own process or in a thread of another program."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

from tlcli.contract.process.malloc import return_freed_memory
from tlcli.service.server import Server
from tlcli.service.settings.server_settings import ServerSettings
from tlcli.service.system.file_limit import raise_limit
from tlcli.service.telemetry.logs import configure_logging

logger = logging.getLogger(__name__)

_CLOSING_S = 1.5
"""Time limit in seconds for closing after the grace period."""


def serve(settings: ServerSettings, on_listening: Callable[[int], None] | None = None) -> None:
    """Run a server until SIGTERM, SIGINT or SIGHUP. Must be called from the main thread.

    After a signal, in-flight requests have `settings.grace_s` seconds to finish. A second signal stops the server without waiting for them.
    Unless the program has configured logging, messages of level INFO and above go to standard error.

    Args:
        settings: settings of the server.
        on_listening: callback that receives the port once it is open. The models load afterwards.

    Raises:
        SettingsError: the address, the certificates or the tokens cannot be used.
        DeviceError: the device is not available.
        NotFoundError: the model repository does not exist or holds no model.
        ModelFileError: no model can be served.
    """
    configure_logging(settings.log_format)
    raise_limit()

    async def main() -> None:
        server = Server(settings)
        watchdog = _ShutdownWatchdog(settings)

        def stop() -> None:
            watchdog.start()
            server.request_stop()

        for number in _signals():
            with suppress(NotImplementedError):  # on Windows: Ctrl-C cancels `run`, which also stops the server
                asyncio.get_running_loop().add_signal_handler(number, stop)
        await server.run(on_listening)

    return_freed_memory()
    try:
        asyncio.run(main())
    finally:
        for handler in logging.getLogger().handlers:
            handler.flush()  # write the log before any further output of the program


def _signals() -> list[int]:
    """Return the signals that start a graceful shutdown.

    SIGHUP, which a closing terminal sends, is left out if the process ignores it (nohup).
    """
    hangup: int | None = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return [signal.SIGTERM, signal.SIGINT]
    return [signal.SIGTERM, signal.SIGINT, hangup]


class _ShutdownWatchdog:
    """Timer that ends the process if shutdown takes too long. Python would otherwise wait for threads that are still running."""

    def __init__(self, settings: ServerSettings) -> None:
        self._limits_s = [settings.pre_stop_s + settings.grace_s + _CLOSING_S, _CLOSING_S]

    def start(self) -> None:
        """Start the timer. A second call, made after a second signal, allows no time for in-flight requests."""
        limit_s = self._limits_s.pop(0) if len(self._limits_s) > 1 else self._limits_s[0]
        timer = threading.Timer(limit_s, _end)
        timer.daemon = True
        timer.start()


def _end() -> None:
    logger.warning("threads are still running: exiting without waiting for them")
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def in_background(settings: ServerSettings) -> Iterator[int]:
    """Run a server in a thread of this process for the duration of the block, for use in notebooks and tests.

    Yields:
        Port for gRPC, once the models are loaded.

    Raises:
        SettingsError, DeviceError, NotFoundError, ModelFileError: see `serve`.
    """
    started: Future[tuple[Server, asyncio.AbstractEventLoop, int]] = Future()

    async def main() -> None:
        server = Server(settings)
        await server.run(on_serving=lambda port: started.set_result((server, asyncio.get_running_loop(), port)))

    def body() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=body, name="tlcli server", daemon=True)
    thread.start()
    server, loop, port = started.result()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(server.request_stop)
        thread.join()
