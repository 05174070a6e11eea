"""Tests of tokens: accepted and rejected requests, error messages, and token files that change at run time."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.helpers.service.made_certificates import make
from tests.helpers.service.sample_images import RED, encode, scene
from tlcli.cli.commands.classify import command
from tlcli.contract.errors import ServerError, SettingsError
from tlcli.service import Client, ServerSettings, in_background
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from tlcli.service.security.tokens import Token, is_known, read_token, read_tokens

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
TOKEN, OTHER = "c2VjcmV0IG9mIEFubmE=", "of~Ben/0123456789+-._"
REQUEST = pb.ClassifyRequest(encoded=IMAGE)
MISSING = "no token: this server requires one: send 'authorization: Bearer TOKEN' with the call"
WRONG = "unknown token: it may have been replaced"


def write(path: Path, text: str) -> Path:
    """Write a file by a rename, so that readers never see half of it."""
    path.with_suffix(".new").write_text(text)
    return path.with_suffix(".new").rename(path)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens", f"# who may ask\n\nanna: {TOKEN}\n  {OTHER}  \n")


@pytest.fixture
def port(one_model: Path, tokens: Path) -> Iterator[int]:
    with in_background(ServerSettings(models=one_model, port=0, tokens_file=tokens)) as port:
        yield port


@pytest.fixture
def channel(port: int) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


def test_a_file_of_tokens(tokens: Path) -> None:
    assert [(one.name, one.value) for one in read_tokens(tokens)] == [("anna", TOKEN), ("", OTHER)]
    assert TOKEN not in repr(read_tokens(tokens))
    with pytest.raises(SettingsError, match="holds 2 tokens: expected exactly one"):
        read_token(tokens)
    assert read_token(write(tokens, f"anna:{TOKEN}\n")) == TOKEN


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", r"tokens: no token found: expected one per line \(openssl rand -hex 32 makes one\)$"),
        ("# nobody\n\n", "no token found"),
        ("good\nwith a space\n", "line 2: expected TOKEN or NAME: TOKEN, with a token of letters, digits and"),
        ("good\nname:\n", "line 2: expected TOKEN"),
        ("zwölf\n", "line 1: expected TOKEN"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_at_the_start(text: str, expected: str, one_model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "tokens", text)
    with pytest.raises(SettingsError, match=expected) as caught, in_background(ServerSettings(models=one_model, port=0, tokens_file=path)):
        pass
    assert str(caught.value).startswith(f"tokens_file {path}: ")
    assert not any(secret in str(caught.value) for secret in ("space", "good", "zwölf"))


def test_no_file(one_model: Path, tmp_path: Path) -> None:
    settings = ServerSettings(models=one_model, port=0, tokens_file=tmp_path / "nosuch")
    with pytest.raises(SettingsError, match="nosuch: No such file or directory"), in_background(settings):
        pass


def test_a_token_is_compared_with_all() -> None:
    tokens = [Token("", "a" * 40), Token("", "b" * 20)]
    assert is_known(b"a" * 40, tokens)
    assert is_known(b"b" * 20, tokens)
    for wrong in (b"", b"a", b"a" * 39, b"a" * 41, b"B" * 20, "é".encode()):
        assert not is_known(wrong, tokens)


@pytest.mark.parametrize("token", [TOKEN, OTHER])
def test_a_client_with_a_token_is_answered(port: int, token: str) -> None:
    with Client(port=port, token=token) as client:
        client.wait_until_ready()
        assert client.classify(IMAGE).predictions
        assert [answer.result().model for answer in client.classify_stream([IMAGE] * 3)] == ["toy"] * 3
        assert client.get_model().model == "toy"
        assert len(client.list_models()) == 1


def test_a_client_with_another_token_or_none_is_not(port: int) -> None:
    for token, expected in ((None, MISSING), (TOKEN[:-1], WRONG), (TOKEN.lower(), WRONG)):
        with Client(port=port, token=token) as client:
            for ask in (
                lambda client=client: client.classify(IMAGE),
                lambda client=client: list(client.classify_stream([IMAGE] * 3)),
                lambda client=client: list(client.classify_stream([])),
                lambda client=client: client.classify(IMAGE + bytes(20_000_000)),  # refused before it is read
                client.list_models,
                client.get_model,
            ):
                with pytest.raises(ServerError) as caught:
                    ask()
                assert str(caught.value) == f"127.0.0.1:{port}: {expected} (token, or --token-file)"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], MISSING),
        ([f"Basic {TOKEN}"], "invalid authorization: expected 'authorization: Bearer TOKEN', once"),
        ([TOKEN], "invalid authorization: expected 'authorization: Bearer TOKEN', once"),
        ([f"Bearer {TOKEN}"] * 2, "invalid authorization: expected 'authorization: Bearer TOKEN', once"),
        (["Bearer "], "invalid authorization|unknown token"),
        (["Bearer anna"], WRONG),
        ([f"Bearer anna: {TOKEN}"], WRONG),
        ([f"Bearer {TOKEN} {OTHER}"], WRONG),
        ([f"bearer {TOKEN}"], ""),
    ],
)
def test_calls_as_others_make_them(values: list[str], expected: str, channel: grpc.Channel) -> None:
    metadata = [("authorization", value) for value in values]
    stub = ClassifierStub(channel)
    for ask in (lambda: stub.Classify(REQUEST, metadata=metadata), lambda: list(stub.ClassifyStream(iter([REQUEST]), metadata=metadata))):
        if not expected:
            assert ask()
            continue
        with pytest.raises(grpc.RpcError) as refused:
            ask()
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert (refused.value.details() or "").startswith(tuple(expected.split("|")))


def test_every_service_asks_for_a_token_but_health(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    assert next(health.Watch(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING

    def services(metadata: list[tuple[str, str]]) -> list[str]:
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        (answer,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked, metadata=metadata)
        return [one.name for one in answer.list_services_response.service]

    named = services([("authorization", f"Bearer {TOKEN}")])
    with pytest.raises(grpc.RpcError) as refused:
        services([])
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "grpc.health.v1.Health" in named
    # a call of each service, and of one that is not there: the refusal comes before anything is looked up
    for method in [f"/{name}/Call" for name in named if name != "grpc.health.v1.Health"] + [
        "/no.such.Service/Call",
        "/grpc.health.v1.Health/List",
    ]:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(method)(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED, method


def test_a_list_that_changes_counts_from_the_next_call_on(port: int, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Client(port=port, token=TOKEN) as anna, Client(port=port, token="new-token") as new:
        stream = anna.classify_stream(iter_slowly(tokens.parent))
        assert next(stream).result().predictions
        write(tokens, "new-token\n")
        assert new.classify(IMAGE).predictions
        with pytest.raises(ServerError, match="it may have been replaced"):
            anna.classify(IMAGE)
        (tokens.parent / "replaced").touch()
        assert [answer.result().model for answer in stream] == ["toy"]  # what was let in is answered to its end
    assert "the list of tokens changed: the new one is in use" in caplog.text
    assert "new-token" not in caplog.text


def iter_slowly(folder: Path) -> Iterator[bytes]:
    """Yield two images, the second once a file exists."""
    yield IMAGE
    while not (folder / "replaced").exists():
        time.sleep(0.01)
    yield IMAGE


def test_a_list_that_is_broken_or_gone_leaves_the_old_one_and_one_line(port: int, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Client(port=port, token=TOKEN) as client:
        for text in ("", "two words\n"):
            write(tokens, text)
            caplog.clear()
            for _ in range(3):
                client.list_models()
            (line,) = [record.getMessage() for record in caplog.records]
            assert line.startswith(f"the list of tokens changed but cannot be used, keeping the old one: tokens_file {tokens}: ")
        os.unlink(tokens)
        client.list_models()
        write(tokens, OTHER)
        with pytest.raises(ServerError, match="it may have been replaced"):
            client.list_models()


def test_the_log_names_whose_tokens_there_are(one_model: Path, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with in_background(ServerSettings(models=one_model, port=0, tokens_file=tokens)):
        pass
    assert f"requests must carry a token of {tokens}: anna, unnamed" in caplog.text
    assert TOKEN not in caplog.text
    assert OTHER not in caplog.text


def test_a_client_keeps_its_token_to_itself() -> None:
    for text in ("", "two words", "line\n", "zwölf"):
        with pytest.raises(SettingsError, match=r"^invalid token: expected letters, digits and -._~\+/=$"):
            Client(token=text)
    with pytest.raises(SettingsError, match=r"^the token for 192\.0\.2\.1:8001 would travel unencrypted: use TLS"):
        Client("192.0.2.1", token=TOKEN)


def test_with_tls(one_model: Path, tokens: Path, tmp_path: Path) -> None:
    authority = make("authority", is_authority=True)
    ca = authority.save(tmp_path, "ca")["tls_certificate"]
    files = make("server", authority).save(tmp_path, "server")
    settings = ServerSettings(models=one_model, host="0.0.0.0", port=0, tokens_file=tokens, **files)
    with in_background(settings) as port, Client(port=port, tls_ca=ca, token=TOKEN) as client, Client(port=port, tls_ca=ca) as other:
        assert client.classify(IMAGE).predictions
        with pytest.raises(ServerError, match="no token: this server requires one"):
            other.classify(IMAGE)


def test_the_command_line(port: int, tmp_path: Path) -> None:
    (tmp_path / "image.jpg").write_bytes(IMAGE)
    arguments = [str(tmp_path / "image.jpg"), "--port", str(port), "--json"]
    own = write(tmp_path / "own", f"{TOKEN}\n")
    assert '"label"' in CliRunner().invoke(command, [*arguments, "--token-file", str(own)]).stdout
    refused = CliRunner().invoke(command, arguments)
    assert isinstance(refused.exception, ServerError)
    assert str(refused.exception).endswith(f"{MISSING} (token, or --token-file)")
