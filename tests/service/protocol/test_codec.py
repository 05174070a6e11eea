"""Tests of the codec: reading a written message returns the original."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from tlcli.contract.errors import RequestError
from tlcli.contract.maps.method_names import METHODS
from tlcli.service import ClassMap, MapMethod, ModelInfo, ModelState, ModelStatus, Prediction, Timings
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.protocol import codec
from tlcli.service.types.answer import Classification
from tlcli.service.types.query import MapFormat, MapQuery, Query


@pytest.mark.parametrize(
    "query",
    [
        Query(encoded=b"", model="m"),
        Query(encoded=b"abc", model="m", version="3", top_k=7, request_id="id"),
        Query(pixels=b"abc", map=MapQuery("cam", (1, -1, 2**62))),
        Query(pixels=b"abc", map=MapQuery("scorecam@layer3", softmax=True, max_channels=2**31 - 1)),
        *[Query(encoded=b"abc", map=MapQuery("cam", (), map_format)) for map_format in ("raw", "heat_map", "overlay")],
    ],
)
def test_requests(query: Query) -> None:
    assert codec.read_request(pb.ClassifyRequest.FromString(codec.write_request(query).SerializeToString())) == query


@pytest.mark.parametrize(
    "query",
    [
        Query(encoded=b"", top_k=2**40),
        Query(encoded=b"", map=MapQuery("cam", (2**70,))),
        Query(encoded=b"", map=MapQuery("scorecam", max_channels=2**31)),
    ],
)
def test_numbers_that_no_field_holds(query: Query) -> None:
    with pytest.raises(RequestError, match="cannot be encoded"):
        codec.write_request(query)


def test_answers() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    box = (-1.5, 0.0, 10.0, 20.0)
    answer = Classification(
        request_id="id",
        model="m",
        version="2",
        predictions=(
            Prediction(3, "three", 0.5, 1, 2.0, ClassMap("cam", 2, 3, values, None, box)),
            Prediction(1, "one", 0.25, 2, 1.0, ClassMap("cam", 2, 3, None, b"png", box)),
            Prediction(0, "nil", 0.0, 3, -1.0),
        ),
        timings=Timings(1, 2, 3, 2**40),
    )
    back = codec.read_response(pb.ClassifyResponse.FromString(codec.write_response(answer).SerializeToString()))
    assert (back.request_id, back.model, back.version, back.timings) == ("id", "m", "2", answer.timings)
    for one, other in zip(back.predictions, answer.predictions, strict=True):
        assert (one.class_id, one.label, one.score, one.rank, one.logit) == (
            other.class_id,
            other.label,
            other.score,
            other.rank,
            other.logit,
        )
    raw, drawn, none = (one.map for one in back.predictions)
    assert raw is not None
    assert raw.values is not None
    assert drawn is not None
    np.testing.assert_array_equal(raw.values, values)
    assert raw.values.flags.writeable
    assert (raw.method, raw.png, raw.box) == ("cam", None, box)
    assert (drawn.values, drawn.png, drawn.height, drawn.width) == (None, b"png", 2, 3)
    assert none is None


def test_models() -> None:
    info = ModelInfo("m", "1", "cpu", ("a", "b"), 4, 5, (MapMethod("cam", "layer", 2, 3),), "{}")
    assert codec.read_info(codec.write_info(info)) == info
    for state in ModelState:
        status = ModelStatus("m", "1", state, "why")
        assert codec.read_status(codec.write_status(status)) == status


def test_every_map_format_and_state_of_the_proto_is_known() -> None:
    formats: set[MapFormat] = set()
    for number in pb.MapFormat.values():
        request = pb.ClassifyRequest(encoded=b"", map=pb.MapRequest(method="cam", format=number))
        wanted = codec.read_request(request).map
        assert wanted is not None
        formats.add(wanted.map_format)
    assert formats == {"raw", "heat_map", "overlay"}
    assert len(pb.ModelState.values()) == len(ModelState) + 1


def test_the_proto_names_every_method() -> None:
    text = (Path(__file__).parents[3] / "proto/tlcli/v1/classifier.proto").read_text()
    (comment,) = re.findall(r"message MapRequest \{\n(.*?)string method", text, re.DOTALL)
    assert set(re.findall(r'"(\w+)"', comment)) == set(METHODS)
