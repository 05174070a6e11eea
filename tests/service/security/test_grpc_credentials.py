"""Tests of TLS: accepted and rejected clients, error messages, and certificates that change at run time."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption

from tests.helpers.service.made_certificates import Made, make
from tests.helpers.service.sample_images import RED, encode, scene
from tlcli.cli.commands.classify import command
from tlcli.contract.errors import ServerError, SettingsError
from tlcli.service import Client, ServerSettings, in_background

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
AUTHORITY, STRANGER = make("authority", is_authority=True), make("stranger", is_authority=True)
SERVER = make("first", AUTHORITY)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    path.write_bytes("# für alle\n".encode() + AUTHORITY.certificate_pem)
    return path


@pytest.fixture
def port(one_model: Path, tmp_path: Path) -> Iterator[int]:
    with in_background(ServerSettings(models=one_model, port=0, **SERVER.save(tmp_path, "server"))) as port:
        yield port


@pytest.fixture
def mutual(one_model: Path, tmp_path: Path, ca: Path) -> Iterator[int]:
    """Yield the port of a server that requires client certificates."""
    with in_background(ServerSettings(models=one_model, port=0, tls_client_ca=ca, **SERVER.save(tmp_path, "server"))) as port:
        yield port


def said(port: int, **client: Any) -> str:
    """Return the error message of a client that is rejected."""
    with Client(port=port, **client) as asking, pytest.raises(ServerError) as caught:
        asking.classify(IMAGE)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    return str(caught.value).removeprefix(f"127.0.0.1:{port}: ")


def shown(port: int, ca: Path) -> str:
    """Return the subject of the certificate that the server presents."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
        found: Any = secured.getpeercert()
    return str(dict(part[0] for part in found["subject"])["commonName"])


def test_clients_that_know_the_authority_are_answered(port: int, ca: Path) -> None:
    with Client(port=port, tls_ca=ca) as client:
        client.wait_until_ready()
        assert client.classify(IMAGE).predictions
        assert [answer.result().model for answer in client.classify_stream([IMAGE] * 3)] == ["toy"] * 3


def test_a_client_that_trusts_another_authority(port: int, tmp_path: Path) -> None:
    path = tmp_path / "stranger.pem"
    path.write_bytes(STRANGER.certificate_pem)
    expected = "the server's certificate is rejected: unable to get local issuer certificate: set the authority that signed it with tls_ca"
    assert said(port, tls_ca=path).startswith(expected)
    assert said(port, tls=True).startswith(expected)


def test_a_client_without_tls(port: int) -> None:
    assert said(port).startswith("the server uses TLS: set its authority with tls_ca (--tls-ca)")
    with Client(port=port) as client:
        assert not client.is_ready()
        with pytest.raises(ServerError, match="the server uses TLS"):
            client.wait_until_ready(timeout_s=0.2)


def test_a_server_without_tls(one_model: Path, ca: Path) -> None:
    with in_background(ServerSettings(models=one_model, port=0)) as port:
        assert said(port, tls_ca=ca).startswith("the server does not use TLS: connect without tls_ca")


def test_no_server_at_all(ca: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert said(port, tls_ca=ca).startswith(f"no server responds at 127.0.0.1:{port}: start one")


def test_the_port_of_http_is_named_as_such(http_port: int) -> None:
    assert said(http_port) == f"127.0.0.1:{http_port} speaks HTTP, but this client speaks gRPC: use the gRPC port (--port, 8001 by default)"


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (make("expired", AUTHORITY, days=-1), "the server's certificate is rejected: certificate has expired: renew it on the server"),
        (
            make("elsewhere", AUTHORITY, host="server.example"),
            "the server's certificate is rejected: IP address mismatch, certificate is not valid for '127.0.0.1': connect to a host",
        ),
        (make("its own"), "the server's certificate is rejected: self-signed certificate: set the authority"),
    ],
)
def test_a_server_whose_certificate_is_not_good(made: Made, expected: str, one_model: Path, tmp_path: Path, ca: Path) -> None:
    with in_background(ServerSettings(models=one_model, port=0, **made.save(tmp_path, "server"))) as port:
        assert said(port, tls_ca=ca).startswith(expected)


def test_a_certificate_for_another_name_is_good_at_that_name(one_model: Path, tmp_path: Path, ca: Path) -> None:
    files = make("named", AUTHORITY, host="localhost").save(tmp_path, "server")
    with in_background(ServerSettings(models=one_model, port=0, **files)) as port, Client("localhost", port, tls_ca=ca) as client:
        assert client.classify(IMAGE).predictions


def test_clients_show_their_certificates(mutual: int, tmp_path: Path, ca: Path) -> None:
    files = make("client", AUTHORITY).save(tmp_path, "client")
    with Client(port=mutual, tls_ca=ca, **files) as client:
        assert client.classify(IMAGE).predictions
    assert said(mutual, tls_ca=ca).startswith("the server requires a client certificate: set tls_certificate and tls_key")
    for made in (make("stranger's", STRANGER), make("expired", AUTHORITY, days=-1)):
        assert said(mutual, tls_ca=ca, **made.save(tmp_path, "other")).startswith(
            "the server rejects the client's certificate: expected one that has not expired, from an authority in its tls_client_ca"
        )
    with Client(port=mutual, tls_ca=ca) as client:
        assert not client.is_ready()


def test_a_renewed_certificate_is_shown_to_new_clients_and_old_connections_go_on(port: int, tmp_path: Path, ca: Path) -> None:
    with Client(port=port, tls_ca=ca) as old:
        old.classify(IMAGE)
        stream = old.classify_stream(iter_slowly(tmp_path))
        assert next(stream).result().predictions
        for name in ("first", "second", "third"):
            make(name, AUTHORITY).save(tmp_path, "server")
            assert [shown(port, ca) for _ in range(3)] == [name] * 3
        (tmp_path / "renewed").touch()
        assert [answer.result().model for answer in stream] == ["toy"]
        assert old.classify(IMAGE).predictions
        with Client(port=port, tls_ca=ca) as new:
            assert new.classify(IMAGE).predictions


def iter_slowly(folder: Path) -> Iterator[bytes]:
    """Yield two images, the second once a file exists."""
    yield IMAGE
    while not (folder / "renewed").exists():
        time.sleep(0.01)
    yield IMAGE


def test_a_half_written_renewal_leaves_the_old_certificate_and_one_line(
    port: int, tmp_path: Path, ca: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second = make("second", AUTHORITY)
    caplog.set_level(logging.INFO)
    for content, reason in (
        (second.certificate_pem, "not the key of the certificate in"),  # its key is not there yet
        (second.certificate_pem[:200], "no certificate found|not valid PEM"),
        (b"", "no certificate found"),
    ):
        (tmp_path / "server.pem").write_bytes(content)
        caplog.clear()
        assert [shown(port, ca) for _ in range(3)] == ["first"] * 3
        (line,) = [record.getMessage() for record in caplog.records if "TLS" in record.getMessage()]
        assert line.startswith("the TLS certificate changed but cannot be used, keeping the old one: tls_")
        assert any(part in line for part in reason.split("|")), line
    (tmp_path / "server.pem").unlink()
    assert shown(port, ca) == "first"
    caplog.clear()
    second.save(tmp_path, "server")
    assert shown(port, ca) == "second"
    assert "the TLS certificate changed: the new one is in use" in caplog.text


def test_a_folder_switched_by_a_link_is_a_renewal(one_model: Path, tmp_path: Path, ca: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        make(name, AUTHORITY).save(tmp_path / name, "server")
    now = tmp_path / "now"
    now.symlink_to("first")
    settings = ServerSettings(models=one_model, port=0, tls_certificate=now / "server.pem", tls_key=now / "server.key")
    with in_background(settings) as port:
        assert shown(port, ca) == "first"
        (tmp_path / "next").symlink_to("second")
        os.replace(tmp_path / "next", now)
        assert shown(port, ca) == "second"


def test_an_authority_of_clients_that_is_replaced(mutual: int, tmp_path: Path, ca: Path) -> None:
    root = tmp_path / "root.pem"  # what the clients trust stays as it is
    root.write_bytes(AUTHORITY.certificate_pem)
    before, after = make("before", AUTHORITY).save(tmp_path, "before"), make("after", STRANGER).save(tmp_path, "after")
    with Client(port=mutual, tls_ca=root, **before) as client:
        assert client.classify(IMAGE).predictions
    ca.write_bytes(STRANGER.certificate_pem)
    with Client(port=mutual, tls_ca=root, **after) as client:
        assert client.classify(IMAGE).predictions
    assert said(mutual, tls_ca=root, **before).startswith("the server rejects the client's certificate")


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ({"server.pem": None}, r"^tls_certificate .*server\.pem: No such file or directory: expected a readable PEM file$"),
        ({"server.key": None}, r"^tls_key .*server\.key: No such file or directory: expected a readable PEM file$"),
        (
            {"server.key": STRANGER.key_pem},
            r"^tls_key .*server\.key: not the key of the certificate in .*server\.pem: use its private key$",
        ),
        ({"server.pem": b"nothing"}, r"^tls_certificate .*server\.pem: no certificate found: expected PEM"),
        ({"server.pem": SERVER.certificate_pem[:100]}, r"^tls_certificate .*server\.pem: not valid PEM"),
        ({"server.key": b"nothing"}, r"^tls_key .*server\.key: not valid PEM"),
        ({"server.key": SERVER.encrypted(BestAvailableEncryption(b"word"))}, r"^tls_key .*: protected by a password: use a key without"),
        ({"ca.pem": b"nothing"}, r"^tls_client_ca .*ca\.pem: no certificate found"),
        ({"ca.pem": b""}, r"^tls_client_ca .*ca\.pem: no certificate found"),
        ({"ca.pem": None}, r"^tls_client_ca .*ca\.pem: No such file or directory: expected a readable PEM file$"),
    ],
)
def test_files_that_cannot_be_used_are_refused_at_the_start(
    contents: dict[str, bytes | None], expected: str, one_model: Path, tmp_path: Path, ca: Path
) -> None:
    settings = ServerSettings(models=one_model, port=0, tls_client_ca=ca, **SERVER.save(tmp_path, "server"))
    for name, content in contents.items():
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=expected) as caught, in_background(settings):
        pass
    assert "\n" not in str(caught.value)


def test_a_clients_files_are_looked_at_before_it_connects(tmp_path: Path, ca: Path) -> None:
    with pytest.raises(SettingsError, match=r"^tls_ca .*nosuch\.pem: No such file"):
        Client(tls_ca=tmp_path / "nosuch.pem")
    with pytest.raises(SettingsError, match=r"^tls_key is not set: set both the certificate and its key"):
        Client(tls_ca=ca, tls_certificate=ca)
    with pytest.raises(SettingsError, match=r"^tls_certificate is not set"):
        Client(tls_key=ca)
    with pytest.raises(SettingsError, match=r"^tls_key .*ca\.pem: not valid PEM"):
        Client(tls_certificate=ca, tls_key=ca)


def test_the_command_line(mutual: int, tmp_path: Path, ca: Path) -> None:
    image = tmp_path / "image.jpg"
    image.write_bytes(IMAGE)
    files = make("client", AUTHORITY).save(tmp_path, "client")
    arguments, trusted = [str(image), "--port", str(mutual), "--json"], ["--tls-ca", str(ca)]
    shows = ["--tls-certificate", str(files["tls_certificate"]), "--tls-key", str(files["tls_key"])]
    answer = CliRunner().invoke(command, [*arguments, *trusted, *shows])
    assert answer.exit_code == 0
    assert '"label"' in answer.stdout
    stranger = STRANGER.save(tmp_path, "stranger")["tls_certificate"]
    for others, expected in ((trusted, "--tls-certificate, --tls-key)\n"), (["--tls-ca", str(stranger)], "tls_ca (--tls-ca)\n")):
        refused = subprocess.run([sys.executable, "-m", "tlcli", "classify", *arguments, *others], capture_output=True, text=True)
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"Error: 127.0.0.1:{mutual}: the server")
        assert refused.stderr.endswith(expected)
        assert refused.stderr.count("\n") == 1  # and nothing of gRPC's own
