"""Tests of unusual requests from other programs: numbers of thousands of digits, non-ASCII ids, multi-member gzip, Triton's raw form."""

from __future__ import annotations

import gzip
import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.helpers.service.http_requests import Asking, http_in_background
from tests.helpers.service.sample_images import RED, encode, scene
from tests.service.conftest import FIRST
from tlcli.contract.errors import NotFoundError, SettingsError
from tlcli.service import Client, ServerSettings, in_background
from tlcli.service.pb.inference import open_inference_pb2 as pb
from tlcli.service.pb.tlcli.v1 import classifier_pb2
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from tlcli.service.settings.server_settings import SETTINGS, bound, kind_of
from tlcli.service.telemetry.request_record import RequestRecord

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
CLASSIFY, INFER = "/v1/classify?model=toy", "/v2/models/toy/infer"
MANY, TOO_MANY = "9" * 4200, "9" * 5000


@pytest.fixture
def http(http_port: int) -> Iterator[Asking]:
    with Asking(http_port) as asking:
        yield asking
        assert asking.post(CLASSIFY, IMAGE).json["predictions"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            '{"inputs":[{"name":"images","datatype":"UINT8","shape":[%s,64,64,3],"data":[]}]}',
            "the shape contains a number of more than 64",
        ),
        ('{"inputs":[{"name":"targets","datatype":"INT64","shape":[%s,%s],"data":[]}]}', "the shape contains a number of more than 64"),
        ('{"inputs":[{"name":"targets","datatype":"INT64","shape":[-%s,-%s],"data":[]}]}', "the shape contains a number of more than 64"),
        (
            '{"inputs":[{"name":"images","datatype":"UINT8","shape":[1,64,64,3],"parameters":{"binary_data_size":%s}}]}',
            "expected a 64-bit integer",
        ),
        ('{"inputs":[{"name":"targets","datatype":"INT64","shape":[1,1],"data":[%s]}]}', "expected 64-bit integers"),
        ('{"inputs":[{"name":"targets","datatype":"INT64","shape":[1,1],"data":[-%s]}]}', "expected 64-bit integers"),
        ('{"inputs":%s}', "expected a list"),
        ('{"inputs":[%s]}', "expected an object"),
        ('{"id":%s}', "expected a string"),
    ],
)
def test_numbers_of_thousands_of_digits_are_refused_in_a_line(http: Asking, template: str, expected: str) -> None:
    status, line = http.post(INFER, template.replace("%s", MANY).encode()).refusal
    assert (status, len(line) < 300) == (400, True)
    assert expected in line
    assert http.post(INFER, template.replace("%s", TOO_MANY).encode()).refusal[0] == 400


def test_a_shape_at_the_edge_of_64_bits_is_refused_in_a_line(http: Asking) -> None:
    for name, size in (("images", 4), ("targets", 2)):
        shape = [2**63 - 1] * size
        body = {"inputs": [{"name": name, "datatype": "UINT8" if name == "images" else "INT64", "shape": shape, "data": []}]}
        assert http.post(INFER, body).refusal[0] == 400


@pytest.mark.parametrize("value", ["٣", "1_0", " 3", "3 ", "1e3", "+", "-", MANY, TOO_MANY, "3.0", ""])
def test_a_query_parameter_is_a_whole_number_of_ascii_digits(http: Asking, value: str) -> None:
    from urllib.parse import quote

    for name in ("top_k", "cam=scorecam&max_channels", "cam=gradcam&classes"):
        if name.endswith("classes") and not value:
            continue
        status, line = http.post(f"{CLASSIFY}&{name}={quote(value)}", IMAGE).refusal
        assert status == 400
        assert ("no such class; expected a label" if name.endswith("classes") else "expected an integer") in line


@pytest.mark.parametrize(
    ("sent", "back"),
    [
        (b"abc", b"abc"),
        ("é你".encode(), None),
        (b"\xe9", None),
        (b"a\x01b", None),
        (b"a\x7fb", None),
        (b"a" * 7000, b"a" * 1024),
    ],
)
def test_an_id_over_grpc_that_is_no_metadata_is_answered_all_the_same(port: int, sent: bytes, back: bytes | None) -> None:
    request = RequestRecord("method", [("x-request-id", sent)])
    assert request.echo.isascii()
    assert request.echo.isprintable()
    assert back is None or request.echo.encode() == back
    found = grpc_by_hand(port, [(b"x-request-id", sent)])
    assert b"Invalid metadata" not in found
    assert FIRST_LABEL in found


def test_an_id_comes_back_with_404_and_405_too(http: Asking) -> None:
    for method, path, status in (("GET", "/nosuch", 404), ("POST", "/nosuch", 404), ("GET", "/v1/classify", 405), ("PUT", "/v2", 405)):
        answer = http.ask(method, path, None, X_Request_ID="mine")
        assert (answer.status, answer.headers["x-request-id"]) == (status, "mine")
        assert "x-request-id" not in http.ask(method, path, None).headers


def test_scores_that_are_no_numbers_are_null_in_json(tmp_path: Path) -> None:
    bias = FIRST.bias.copy()
    bias[2] = np.nan
    replace(FIRST, bias=bias).save(tmp_path / "toy/1/model.onnx", "toy")
    with http_in_background(ServerSettings(models=tmp_path, port=0, http_port=0)) as port, Asking(port) as http:
        for query in ("", "&cam=gradcam", "&cam=scorecam"):
            predictions = http.post(f"{CLASSIFY}&top_k=7{query}", IMAGE).json["predictions"]
            assert any(one["logit"] is None for one in predictions)
            assert all(one["score"] is None for one in predictions)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "X-GZIP"])
@pytest.mark.parametrize("members", [1, 2, 40])
def test_gzip_of_several_members_is_unpacked(http: Asking, encoding: str, members: int) -> None:
    size = -(-len(IMAGE) // members)
    packed = b"".join(gzip.compress(IMAGE[start : start + size]) for start in range(0, len(IMAGE), size))
    expected = http.post(CLASSIFY, IMAGE).json["predictions"]
    assert http.post(CLASSIFY, packed, Content_Encoding=encoding).json["predictions"] == expected
    for broken in (packed[:-1], packed + b"\x1f\x8b", packed + b"x"):
        assert http.post(CLASSIFY, broken, Content_Encoding=encoding).refusal[0] == 400


def test_gzip_of_endless_empty_members_is_refused(http: Asking) -> None:
    status, line = http.post(CLASSIFY, gzip.compress(b"") * 5000, Content_Encoding="gzip").refusal
    assert (status, line) == (400, "the body continues after the end of its gzip data: remove the extra bytes")


def test_tritons_raw_binary_request_is_an_encoded_image(http: Asking) -> None:
    answer = http.post(INFER, IMAGE, Inference_Header_Content_Length="0", Content_Type="application/octet-stream")
    assert answer.status == 200
    size = int(answer.headers["Inference-Header-Content-Length"])
    head = json.loads(answer.body[:size])
    scores, _ = head["outputs"]
    assert (scores["name"], scores["shape"], scores["parameters"]) == ("scores", [1, 7], {"binary_data_size": 28})
    values = np.frombuffer(answer.body[size:], "<f4")
    expected = sorted(http.post(f"{CLASSIFY}&top_k=7", IMAGE).json["predictions"], key=lambda one: int(one["class_id"]))
    np.testing.assert_allclose(values[:7], [one["score"] for one in expected], rtol=1e-6)
    np.testing.assert_allclose(values[7:], [one["logit"] for one in expected], rtol=1e-6)
    assert http.post(INFER, b"", Inference_Header_Content_Length="0").refusal[0] == 400
    assert http.post(INFER, b"text", Inference_Header_Content_Length="0").refusal[0] == 400


def test_what_tritons_loads_can_carry_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    FIRST.save(tmp_path / "toy/1/model.onnx", "toy")
    settings = ServerSettings(models=tmp_path, port=0, http_port=0, model_control="explicit")
    load, unload = "/v2/repository/models/toy/load", "/v2/repository/models/toy/unload"
    with http_in_background(settings) as port, Asking(port) as http:
        for parameters in ({"config": '{"max_batch_size": 99}'}, {"file:1/model.onnx": "QUJD"}, {"other": 1}):
            (name,) = parameters
            expected = f"parameter {name!r} is not supported: models are loaded only from their folders; copy the files there"
            assert http.post(load, {"parameters": parameters}).refusal == (400, expected)
            assert http.post(unload, {"parameters": parameters}).refusal == (400, expected)
        assert http.post(load, {"parameters": {}}).status == http.post(load, {}).status == http.post(load, b"").status == 200
        assert http.post(unload, {"parameters": {"unload_dependents": True}}).status == 200
        status, line = http.post("/v1/classify", IMAGE).refusal
        assert (status, line) == (404, "the request names no model, and this server serves none: load one, or see its log")
    with in_background(settings.model_copy(update={"http_port": None})) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = pb.RepositoryModelLoadRequest(model_name="toy")
        request.parameters["config"].string_param = "{}"
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")(request.SerializeToString())
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_server_of_several_models_names_them(client: Client) -> None:
    with pytest.raises(NotFoundError, match=r"this server has several: damaged, faulty, toy: name one of them"):
        client.classify(IMAGE)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e300, 10**400, -1e300])
@pytest.mark.parametrize("name", [name for name, field in SETTINGS.items() if kind_of(field) is float])
def test_no_number_is_infinite_or_larger_than_a_clock_counts(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"^{name} "):
        ServerSettings(**{name: value})


def test_the_longest_times_are_served_with(one_model: Path) -> None:
    names = ("max_connection_age_s", "max_image_s", "stream_idle_s", "grace_s", "poll_s")
    longest = {name: bound(SETTINGS[name], "le") for name in names}
    settings = ServerSettings(models=one_model, port=0, model_control="poll", **longest)  # type: ignore[arg-type]
    with in_background(settings) as port, Client(port=port) as client:
        assert [len(one.response.predictions) for one in client_stream(port)] == [1]
        assert client.classify(IMAGE).predictions


def client_stream(port: int) -> list[classifier_pb2.ClassifyStreamResponse]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return list(ClassifierStub(channel).ClassifyStream(iter([classifier_pb2.ClassifyRequest(encoded=IMAGE, top_k=1)])))


FIRST_LABEL = b"grey"


def grpc_by_hand(port: int, extra: list[tuple[bytes, bytes]]) -> bytes:
    """Return the HTTP/2 frames of a server for a `Classify` with headers that gRPC's own client refuses to send."""
    message = classifier_pb2.ClassifyRequest(model="toy", encoded=IMAGE, top_k=7).SerializeToString()
    headers = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/tlcli.v1.Classifier/Classify"),
        (b":authority", b"127.0.0.1"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *extra,
    ]
    block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers)  # RFC 7541, 6.2.2: literals, not indexed
    body = b"\x00" + struct.pack(">I", len(message)) + message
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.settimeout(10)
        one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, b"") + _frame(1, 4, 1, block) + _frame(0, 1, 1, body))
        whole = b""
        while not _ended(whole):
            part = one.recv(65536)
            if not part:
                break
            whole += part
    return whole


def _text(text: bytes) -> bytes:
    length, more = min(len(text), 127), b""
    left = len(text) - 127
    if left >= 0:
        while left >= 128:
            more += bytes([left % 128 + 128])
            left //= 128
        more += bytes([left])
    return bytes([length]) + more + text


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _ended(whole: bytes) -> bool:
    """Return True if the frame that ends the stream has arrived."""
    start = 0
    while start + 9 <= len(whole):
        size = int.from_bytes(whole[start : start + 3], "big")
        kind, flags, stream = whole[start + 3], whole[start + 4], int.from_bytes(whole[start + 5 : start + 9], "big")
        if start + 9 + size > len(whole):
            return False
        if stream == 1 and (kind == 3 or (kind in (0, 1) and flags & 1)):
            return True
        start += 9 + size
    return False
