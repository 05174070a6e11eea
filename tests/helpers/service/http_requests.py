"""HTTP client on the standard library, and a server in this process."""

from __future__ import annotations

import http.client
import json
import logging
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tlcli.service import ServerSettings, in_background

ADDRESS = re.compile(r"HTTP at https?://[^ ]*:(\d+), with documentation at /docs")


@dataclass(frozen=True)
class Answered:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_constant=lambda name: [][0])  # NaN is no JSON

    @property
    def refusal(self) -> tuple[int, str]:
        """Return the status and the line of an error response, which holds nothing else."""
        assert self.headers["Content-Type"] == "application/json"
        (told,) = self.json.items()
        assert told[0] == "error"
        assert "\n" not in told[1]
        return self.status, told[1]


class Asking:
    """Client with one persistent connection."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        host = "127.0.0.1"
        self.connection = (
            http.client.HTTPConnection(host, port, 60) if tls is None else http.client.HTTPSConnection(host, port, timeout=60, context=tls)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.connection.close()

    def get(self, path: str, **headers: str) -> Answered:
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, body: Any = b"", **headers: str) -> Answered:
        """Send a POST request. body: bytes, or a value to send as JSON."""
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), **headers)

    def ask(self, method: str, path: str, body: Any, **headers: str) -> Answered:
        self.connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        return self.answer()

    def answer(self) -> Answered:
        response = self.connection.getresponse()
        return Answered(response.status, response.headers, response.read())


class _Ports(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[int] = []

    def emit(self, record: logging.LogRecord) -> None:
        if found := ADDRESS.match(record.getMessage()):
            self.found.append(int(found[1]))


@contextmanager
def http_in_background(settings: ServerSettings) -> Iterator[int]:
    """Run a server with `http_port` 0, and yield its HTTP port, which is read from the log."""
    assert settings.http_port == 0
    logger, ports = logging.getLogger("tlcli.service.server"), _Ports()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(ports)
    try:
        with in_background(settings):
            yield ports.found[0]
    finally:
        logger.removeHandler(ports)
        logger.setLevel(level)
