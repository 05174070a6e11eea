"""Downloads end with a complete file, or with a clear error within seconds."""

from __future__ import annotations

import hashlib
import io
import socket
import stat
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tlcli.training.data.download
from tests.helpers.training.web_server import serving
from tlcli.contract.errors import HubError
from tlcli.training.data.download import CONNECT_SECONDS, download, unpack_zip
from tlcli.training.runtime.progress import Advance, silent

ADVICE = "Put it there by hand"


@contextmanager
def speaking(words: bytes, then: Callable[[socket.socket], object] = lambda connection: connection.close()) -> Iterator[str]:
    """Run a server that sends `words` on each connection; yield its address."""
    server = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def respond() -> None:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        connections.append(connection)
        if words:
            connection.recv(1000)
            connection.sendall(words)
        then(connection)

    thread = threading.Thread(target=respond, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/data.zip"
    finally:
        server.close()
        for connection in connections:
            connection.close()


def refusal(url: str | list[str], target: Path, md5: str | None = None) -> str:
    with pytest.raises(HubError) as error:
        download([url] if isinstance(url, str) else url, target, ADVICE, silent, md5)
    assert not target.exists()
    assert not target.parent.exists() or list(target.parent.iterdir()) == []
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(ADVICE)
    return str(error.value)


def test_a_file_is_downloaded_with_progress_in_megabytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "data.bin").write_bytes(content)
    reported: list[tuple[str, int, int]] = []

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Advance]:
        counts: list[int] = []
        yield counts.append
        reported.append((description, total, sum(counts)))

    with serving(tmp_path / "web") as server:
        target = tmp_path / "deep" / "data.bin"
        download([server.address + "data.bin"], target, ADVICE, progress, hashlib.md5(content).hexdigest())
    assert target.read_bytes() == content
    assert reported == [("Downloading data.bin (MB)", 3, 3)]


def test_the_next_address_is_tried(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "data.bin").write_bytes(b"content")
    with serving(tmp_path / "web") as server:
        download([server.address + "absent", server.address + "data.bin"], tmp_path / "data.bin", ADVICE, silent)
    assert (tmp_path / "data.bin").read_bytes() == b"content"


def test_refused_connections_unknown_hosts_and_missing_files_are_reported_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/data.zip"
    (tmp_path / "web").mkdir()
    started = time.monotonic()
    with serving(tmp_path / "web") as server:
        message = refusal([nobody, "http://no-such-host.invalid/data.zip", server.address + "data.zip"], tmp_path / "to" / "data.zip")
    assert time.monotonic() - started < 5
    assert message.startswith("data.zip could not be downloaded: ")
    assert f"{nobody}: cannot be reached ([Errno 111] Connection refused)" in message
    assert "http://no-such-host.invalid/data.zip: cannot be reached (" in message
    assert f"{server.address}data.zip: HTTP 404 File not found" in message


def test_a_silent_server_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CONNECT_SECONDS <= 13, "a user waits 15 s at most"
    monkeypatch.setattr(tlcli.training.data.download, "CONNECT_SECONDS", 0.3)
    with speaking(b"", then=lambda connection: time.sleep(2)) as url:
        started = time.monotonic()
        assert f"{url}: no response within 0 s" in refusal(url, tmp_path / "to" / "data.zip")
        assert time.monotonic() - started < 1.5


def test_a_hanging_resolver_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Socket timeouts do not apply to name resolution."""
    hanging = threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        hanging.wait(5)
        raise socket.gaierror("gave up")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(tlcli.training.data.download, "CONNECT_SECONDS", 0.3)
    started = time.monotonic()
    assert "no response within" in refusal("http://example.org/data.zip", tmp_path / "to" / "data.zip")
    assert time.monotonic() - started < 1.5
    hanging.set()


def test_a_stalled_download_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tlcli.training.data.download, "STALL_SECONDS", 0.3)
    with speaking(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10, then=lambda connection: time.sleep(2)) as url:
        started = time.monotonic()
        assert f"{url}: timed out" in refusal(url, tmp_path / "to" / "data.zip")
        assert time.monotonic() - started < 1.5


def test_a_download_that_ends_early_is_not_kept(tmp_path: Path) -> None:
    with speaking(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10) as url:
        assert "the connection ended after 10 of 1,000 bytes" in refusal(url, tmp_path / "to" / "data.zip")


def test_wrong_content_is_not_kept(tmp_path: Path) -> None:
    with speaking(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nxyz") as url:
        message = refusal(url, tmp_path / "to" / "data.zip", md5="0" * 32)
    assert f"wrong content (expected MD5 {'0' * 32}, got {hashlib.md5(b'xyz').hexdigest()})" in message


def test_a_response_that_is_not_http_is_rejected(tmp_path: Path) -> None:
    with speaking(b"SSH-2.0-OpenSSH_9.6\r\n") as url:
        assert "SSH-2.0" in refusal(url, tmp_path / "to" / "data.zip")


def packed(**members: bytes) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def test_unpack_zip(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(packed(**{"PetImages/Cat/0.jpg": b"cat", "readme.txt": b"hello"}).getvalue())
    unpack_zip(tmp_path / "a.zip", tmp_path / "to", silent)
    assert (tmp_path / "to" / "PetImages" / "Cat" / "0.jpg").read_bytes() == b"cat"


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "\\evil", "C:/evil", "C:\\evil"])
def test_members_with_paths_outside_of_the_folder_are_rejected(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.zip").write_bytes(packed(**{"fine": b"", name: b"evil"}).getvalue())
    (tmp_path / "to").mkdir()
    with pytest.raises(HubError, match=r"unsafe path of the member .*, outside of the folder: nothing was unpacked"):
        unpack_zip(tmp_path / "a.zip", tmp_path / "to", silent)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "to"]


def test_links_in_an_archive_are_rejected(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
    with pytest.raises(HubError, match=r"unsafe path of the member 'link'"):
        unpack_zip(tmp_path / "a.zip", tmp_path / "to", silent)


def test_a_damaged_zip_is_rejected(tmp_path: Path) -> None:
    whole = packed(**{"a.jpg": b"content of the image"}).getvalue()
    for damaged in (b"<html>", whole[:40], whole.replace(b"content", b"CONTENT")):
        (tmp_path / "a.zip").write_bytes(damaged)
        with pytest.raises(HubError, match=r"a\.zip: the download is not a complete zip archive \(.+\): try again"):
            unpack_zip(tmp_path / "a.zip", tmp_path / "to", silent)
