"""Tests of the conversion between errors and gRPC statuses, in both directions."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import status_pb2

from tlcli.contract import errors as ours
from tlcli.contract.errors import ModelFileError, NotFoundError, RequestError, ServerError, TlcliError
from tlcli.service.protocol import error_status


def tree(kind: type[TlcliError]) -> list[type[TlcliError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in tree(child) if child.__module__ == ours.__name__)]


def test_every_error_of_the_tree_has_a_code() -> None:
    assert set(error_status.CODES) == set(tree(TlcliError))
    assert all(code is not grpc.StatusCode.OK for code in error_status.CODES.values())


@pytest.mark.parametrize("kind", tree(TlcliError))
def test_an_error_comes_back_as_it_went(kind: type[TlcliError]) -> None:
    back = error_status.from_status(error_status.to_status(kind("the line")))
    assert type(back) is kind
    assert str(back) == "the line"


def test_an_unexpected_error_tells_nothing_of_itself() -> None:
    status = error_status.to_status(KeyError("/etc/secret"))
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret" not in str(status)
    assert type(error_status.from_status(status)) is ServerError


def test_a_kind_of_error_made_elsewhere_counts_as_its_parent() -> None:
    class FinerError(RequestError):
        pass

    assert error_status.to_status(FinerError("x")).code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


@pytest.mark.parametrize("letter", ["x", "é", "網", "\n"])
def test_a_status_fits_into_the_metadata_that_clients_read(letter: str) -> None:
    status = error_status.to_status(RequestError(f"begins {letter * 100_000}"))
    percent_encoded, base64 = 3 * len(status.message.encode()), status.ByteSize() * 4 / 3
    assert percent_encoded + base64 < 8192
    assert status.message.startswith("begins")
    assert "\n" not in status.message


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, RequestError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, RequestError),
        (grpc.StatusCode.NOT_FOUND, NotFoundError),
        (grpc.StatusCode.FAILED_PRECONDITION, ModelFileError),
        (grpc.StatusCode.ABORTED, ServerError),
    ],
)
def test_a_status_of_another_server_counts_by_its_code(code: grpc.StatusCode, kind: type[TlcliError]) -> None:
    back = error_status.from_status(status_pb2.Status(code=code.value[0], message="the line"))
    assert type(back) is kind
    assert str(back) == "the line"
