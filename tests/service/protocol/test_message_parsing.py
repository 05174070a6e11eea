"""Tests of the cost check: small messages that are expensive to parse are rejected unparsed, ordinary ones are not."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from tlcli.contract.errors import RequestError
from tlcli.service.pb.inference import open_inference_pb2 as oi
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.protocol.message_parsing import MAX_FIELDS, MAX_NUMBERS, MAX_TEXT_BYTES, parse


def varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def field(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


INFER, CLASSIFY = oi.ModelInferRequest, pb.ClassifyRequest
MANY = MAX_FIELDS + 1


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        pytest.param(INFER, b"\x2a\x00" * MANY, "fields", id="inputs"),
        pytest.param(INFER, b"\x32\x00" * MANY, "fields", id="outputs"),
        pytest.param(INFER, b"\x3a\x00" * MANY, "fields", id="raw contents"),
        pytest.param(INFER, b"\x22\x00" * MANY, "fields", id="parameters"),
        pytest.param(INFER, b"\xf8\x7f\x01" * MANY, "fields", id="unknown fields"),
        pytest.param(INFER, b"\xfb\x7f\xfc\x7f" * MANY, "fields", id="unknown groups"),
        pytest.param(INFER, field(5, field(5, b"\x42\x00" * MANY)), "fields", id="elements of an input"),
        pytest.param(INFER, field(5, field(3, b"\x01" * (MAX_NUMBERS + 1))), "'shape' holds more than", id="a shape"),
        pytest.param(INFER, field(5, field(5, field(4, b"\x01" * (MAX_NUMBERS + 1)))), "'uint_contents' holds", id="values"),
        pytest.param(CLASSIFY, field(6, field(2, b"\x01" * (MAX_NUMBERS + 1))), "'classes' holds more than", id="classes"),
        pytest.param(CLASSIFY, field(7, b"a" * (MAX_TEXT_BYTES + 1)), "'request_id' has 65,537 bytes", id="an id"),
        pytest.param(CLASSIFY, field(1, b"a" * (MAX_TEXT_BYTES + 1)), "'model' has 65,537 bytes", id="a name"),
    ],
)
def test_too_much_is_refused(kind: type[Message], data: bytes, expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        parse(kind, data)


def test_what_programs_send_is_parsed() -> None:
    image = bytes(range(256)) * 4000
    infer = INFER(model_name="toy", id="1", raw_input_contents=[image])
    infer.inputs.add(name="images", datatype="UINT8", shape=[1, 64, 64, 3])
    values = INFER(inputs=[{"name": "images", "contents": {"uint_contents": [200] * 3 * 224 * 224 * 8}}])
    elements = INFER(inputs=[{"name": "encoded", "contents": {"bytes_contents": [image] * 64}}])
    classify = CLASSIFY(encoded=b"\x2a\x00" * 2 * MANY, map={"method": "gradcam", "classes": range(-100, 0)})
    for message in (infer, values, elements, classify):
        assert parse(type(message), message.SerializeToString()) == message


@pytest.mark.parametrize("data", [b"\xff" * 30, b"\x2a\x7f", b"\x2a", b"\x07", field(5, b"\x2a\xff\xff\xff\xff\x0f")])
def test_what_is_no_message_is_left_to_the_parser(data: bytes) -> None:
    with pytest.raises(RequestError, match=r"not a valid inference\.ModelInferRequest message"):
        parse(INFER, data)
