"""Images over HTTP: the same answer, with bounds on time and size and one-line errors."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tlcli
from tests.helpers.training.web_server import serving
from tlcli.contract.errors import ImageError, NotFoundError
from tlcli.image_source import download


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers that a browser would meet rarely."""

    def do_GET(self) -> None:
        if self.path == "/to-file":
            self._head(302, Location="file:///etc/hostname")
        elif self.path == "/loop":
            self._head(302, Location="/loop")
        elif self.path == "/forbidden":
            self._head(403)
        elif self.path == "/short":
            self._head(200, **{"Content-Length": "100"})
            self.wfile.write(b"ab")
        elif self.path == "/large":
            self._head(200)
            self.wfile.write(bytes(5000))
        elif self.path == "/announced":
            self._head(200, **{"Content-Length": "99999999"})
        else:
            self._head(200)
            for _ in range(50):
                self.wfile.write(b"x")
                time.sleep(0.05)

    def _head(self, code: int, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:
        pass


@pytest.fixture(scope="module")
def odd() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave early
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_has_the_answer_of_the_file(models: Path, images: Path) -> None:
    model = tlcli.load(models, device="cpu")
    with serving(images) as server:
        answer = model.predict(server.address + "b.jpg", cam="gradcam")
        with pytest.raises(NotFoundError, match=r"none\.png: the server answers 404"):
            model.predict(server.address + "none.png")
    assert answer.source == server.address + "b.jpg"
    np.testing.assert_array_equal(answer.scores, model.predict(images / "b.jpg").scores)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/to-file", "Redirection to url 'file:///etc/hostname' is not allowed|unknown url type"),
        ("/loop", "redirect"),
        ("/forbidden", "the server answers 403 Forbidden"),
        ("/short", "the connection closed after 2 of 100 bytes|IncompleteRead"),
        ("/large", "more than 1,000 bytes"),
        ("/announced", "99,999,999 bytes: expected at most 1,000"),
        ("/slow", "the download took more than 0.3 s"),
    ],
)
def test_a_download_that_fails_says_why_in_one_line(odd: str, path: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(ImageError, match=message) as failed:
        download(odd + path, 1000, timeout_s=0.3)
    assert time.monotonic() - began < 5
    assert str(failed.value).startswith(odd + path)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.png", "http://[::1/a.png", "http://", "http://no such host/a.png"])
def test_an_address_that_cannot_be_reached_is_an_image_error(url: str) -> None:
    with pytest.raises(ImageError, match="cannot be downloaded"):
        download(url, 1000, timeout_s=5)
