"""Two ways to run a server: as a process of its own, or in a thread beside other work."""

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
"""To close after the grace period."""


def serve(settings: ServerSettings, on_listening: Callable[[int], None] | None = None) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; to be called in the main thread.

    A signal lets requests in flight finish within `settings.grace_s`; a second one does not wait for them.
    Where the program has not set up logging, lines from INFO on go to standard error.

    Args:
        settings: what to serve, and where.
        on_listening: called with the port when it is open; the models are being loaded then.

    Raises:
        SettingsError: the address cannot be listened at, or certificates or tokens cannot be used.
        DeviceError: the device was asked for and is not there.
        NotFoundError: no such folder, or no model in it.
        ModelFileError: none of the models can be served.
    """
    configure_logging(settings.log_format)
    raise_limit()

    async def main() -> None:
        server = Server(settings)
        end = _LastResort(settings)

        def stop() -> None:
            end.soon()
            server.request_stop()

        for number in _signals():
            with suppress(NotImplementedError):  # Windows' event loop: there, Ctrl-C cancels `run`, which stops as well
                asyncio.get_running_loop().add_signal_handler(number, stop)
        await server.run(on_listening)

    return_freed_memory()
    try:
        asyncio.run(main())
    finally:
        for handler in logging.getLogger().handlers:
            handler.flush()  # before what the program writes by itself


def _signals() -> list[int]:
    """Those that end the server with grace. SIGHUP, which a terminal that closes sends, is left alone where it is ignored (nohup)."""
    hangup: int | None = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return [signal.SIGTERM, signal.SIGINT]
    return [signal.SIGTERM, signal.SIGINT, hangup]


class _LastResort:
    """Ends the process when its time to stop is over, whatever its threads are doing: Python would wait for them."""

    def __init__(self, settings: ServerSettings) -> None:
        self._limits_s = [settings.pre_stop_s + settings.grace_s + _CLOSING_S, _CLOSING_S]

    def soon(self) -> None:
        """Begin to count; asked a second time, without the time that requests have."""
        limit_s = self._limits_s.pop(0) if len(self._limits_s) > 1 else self._limits_s[0]
        timer = threading.Timer(limit_s, _end)
        timer.daemon = True
        timer.start()


def _end() -> None:
    logger.warning("threads are still at work: ending without them")
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def in_background(settings: ServerSettings) -> Iterator[int]:
    """A server in a thread of this process, for notebooks and tests: serving within the block, stopped after it.

    Yields:
        The port.

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
