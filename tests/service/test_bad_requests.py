"""Tests of invalid requests: the right status and one line for each, after which the next request succeeds."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from PIL import Image

from tests.helpers.service.sample_images import RED, encode, png_that_claims, scene
from tests.helpers.service.toy_model import LABELS, SIZE
from tlcli.contract.errors import ImageError, ModelFileError, NotFoundError, RequestError, ServerError, TlcliError
from tlcli.service import Client, ServerSettings, in_background
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub

GOOD = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
REQUEST = pb.ClassifyRequest(model="toy", encoded=GOOD)
INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION

BAD_IMAGES = {
    "empty": (b"", "the image is empty (0 bytes)"),
    "text": (b"Dear server, please classify this. Yours, a client", "not an image"),
    "truncated JPEG": (GOOD[: len(GOOD) // 2], "cannot be decoded"),
    "a PNG that claims to be huge": (png_that_claims(100_000, 100_000), "more than 50,000,000 pixels"),
    "half a header": (GOOD[:10], "cannot be decoded"),
    "a PDF": (b"%PDF-1.7\n" + bytes(500), "not an image"),
}

BAD_REQUESTS = {
    "no image": (pb.ClassifyRequest(model="toy"), INVALID, "holds no image"),
    "unknown model": (
        pb.ClassifyRequest(model="nosuch", encoded=GOOD),
        MISSING,
        "no model 'nosuch' on this server; it has: broken, damaged, faulty, toy",
    ),
    "no model named": (pb.ClassifyRequest(encoded=GOOD), MISSING, "several: damaged, faulty, toy: name one"),
    "a path as model": (pb.ClassifyRequest(model="../toy", encoded=GOOD), MISSING, "no model '../toy'"),
    "unknown version": (pb.ClassifyRequest(model="toy", version="7", encoded=GOOD), MISSING, "no version '7'; it has: 1, 2"),
    "odd version": (pb.ClassifyRequest(model="toy", version="01", encoded=GOOD), MISSING, "no version '01'"),
    "broken model": (pb.ClassifyRequest(model="broken", encoded=GOOD), PRECONDITION, "model 'broken' version 1 is broken and not served"),
    "broken version": (pb.ClassifyRequest(model="damaged", version="10", encoded=GOOD), PRECONDITION, "version 10 is broken"),
    "unknown method": (
        pb.ClassifyRequest(model="toy", encoded=GOOD, map=pb.MapRequest(method="lime")),
        INVALID,
        "'lime'; it has: cam, gradcam, eigencam, eigengradcam, scorecam, faster_scorecam",
    ),
    "no method": (pb.ClassifyRequest(model="toy", encoded=GOOD, map=pb.MapRequest()), INVALID, "no map method ''"),
    "channels of a method without": (
        pb.ClassifyRequest(model="toy", encoded=GOOD, map=pb.MapRequest(method="gradcam", max_channels=5)),
        INVALID,
        "max_channels 5: only scorecam and faster_scorecam take it; requested: gradcam",
    ),
    "negative channels": (
        pb.ClassifyRequest(model="toy", encoded=GOOD, map=pb.MapRequest(method="scorecam", max_channels=-1)),
        INVALID,
        "max_channels -1: expected 1 or more, or 0",
    ),
    "unknown class": (
        pb.ClassifyRequest(model="toy", encoded=GOOD, map=pb.MapRequest(method="cam", classes=[0, 7])),
        INVALID,
        "no class 7: expected 0 to 6",
    ),
    "unknown rank": (pb.ClassifyRequest(model="toy", encoded=GOOD, map=pb.MapRequest(method="cam", classes=[-8])), INVALID, "no class -8"),
    "far too many classes": (
        pb.ClassifyRequest(model="toy", encoded=GOOD, map=pb.MapRequest(method="cam", classes=range(100_000))),
        INVALID,
        "at most 100 maps per image",
    ),
    "unknown format": (pb.ClassifyRequest(model="toy", encoded=GOOD, map=pb.MapRequest(method="cam", format=9)), INVALID, "map.format 9"),
    "negative top_k": (pb.ClassifyRequest(model="toy", encoded=GOOD, top_k=-1), INVALID, "top_k -1"),
    "too few pixels": (
        pb.ClassifyRequest(model="toy", pixels=bytes(1000)),
        INVALID,
        f"pixels: expected {SIZE * SIZE * 3:,} bytes, RGB of 64 x 64 pixels (width x height), got 1,000",
    ),
    "no pixels": (pb.ClassifyRequest(model="toy", pixels=b""), INVALID, "(width x height), got 0"),
    "an endless name": (
        pb.ClassifyRequest(model="é\n" * 100_000, encoded=GOOD),
        INVALID,
        "'model' has 300,000 bytes: expected at most 65,536 bytes of text",
    ),
}


def refusal(stub: ClassifierStub, request: pb.ClassifyRequest) -> tuple[grpc.StatusCode, str]:
    """Return the code and message of a request that must fail, and check that the next one succeeds."""
    with pytest.raises(grpc.RpcError) as caught:
        stub.Classify(request)
    details = caught.value.details() or ""
    assert details
    assert "\n" not in details
    assert "Traceback" not in details
    assert stub.Classify(REQUEST).predictions
    return caught.value.code(), details


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_images(stub: ClassifierStub, name: str) -> None:
    data, expected = BAD_IMAGES[name]
    code, details = refusal(stub, pb.ClassifyRequest(model="toy", encoded=data))
    assert code is INVALID
    assert expected in details


@pytest.mark.parametrize("call", ["Classify", "ListModels", "GetModel"])
def test_bytes_that_are_no_message(port: int, call: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/tlcli.v1.Classifier/{call}")(b"\xff\xff\xff")
    assert caught.value.code() is INVALID
    assert f"the request (3 bytes) is not a valid tlcli.v1.{call}Request message" in (caught.value.details() or "")


@pytest.mark.parametrize(
    "path", ["health.v1.Health/Check", "health.v1.Health/Watch", "reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
)
def test_bytes_that_are_no_message_of_grpcs_own_calls(port: int, path: str, caplog: pytest.LogCaptureFixture) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream(f"/grpc.{path}")(iter([b"\x0a\x02\xff\xfe"]), timeout=20))
    assert caught.value.code() is INVALID
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_bad_requests(stub: ClassifierStub, name: str) -> None:
    request, expected_code, expected = BAD_REQUESTS[name]
    code, details = refusal(stub, request)
    assert code is expected_code
    assert expected in details


def odd_images() -> dict[str, bytes]:
    image = scene(RED, (30, 20, 90, 70))
    alpha = image.copy()
    alpha.putalpha(200)
    deep = Image.fromarray(np.linspace(0, 65535, 256 * 192).astype(np.uint16).reshape(192, 256))
    other = scene((0, 0, 255), (30, 20, 90, 70))
    return {
        "CMYK JPEG": encode(image.convert("CMYK"), "JPEG"),
        "16-bit PNG": encode(deep),
        "grey": encode(image.convert("L")),
        "grey JPEG": encode(image.convert("L"), "JPEG"),
        "alpha": encode(alpha),
        "palette": encode(image.convert("P")),
        "animated GIF": encode(image, "GIF", save_all=True, append_images=[other], duration=100),
        "one pixel": encode(Image.new("RGB", (1, 1), RED)),
        "a sliver": encode(Image.new("RGB", (2000, 1), RED)),
    }


@pytest.mark.parametrize("name", odd_images())
def test_odd_images_are_answered(stub: ClassifierStub, name: str) -> None:
    request = pb.ClassifyRequest(
        model="toy", encoded=odd_images()[name], top_k=100, map=pb.MapRequest(method="cam", format="MAP_FORMAT_OVERLAY")
    )
    answer = stub.Classify(request)
    assert sum(one.score for one in answer.predictions) == pytest.approx(1, abs=1e-5)
    assert answer.predictions[0].map.png.startswith(b"\x89PNG")


def test_the_first_frame_of_an_animation_is_seen(client: Client) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    animated = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)
    assert client.classify(animated, model="toy").predictions == client.classify(frames[0], model="toy").predictions


def test_a_fault_of_the_server_is_told_plainly_and_logged_in_full(stub: ClassifierStub, caplog: pytest.LogCaptureFixture) -> None:
    white = pb.ClassifyRequest(model="faulty", encoded=encode(Image.new("RGB", (64, 64), "white")))
    code, details = refusal(stub, white)
    assert code is grpc.StatusCode.INTERNAL
    assert details == "internal server error: see the server's log"
    assert "Gather" in caplog.text
    assert stub.Classify(pb.ClassifyRequest(model="faulty", encoded=GOOD)).predictions


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ImageError, {"image": b"text"}),
        (RequestError, {"image": GOOD, "cam": "lime"}),
        (RequestError, {"image": GOOD, "top_k": -1}),
        (RequestError, {"image": GOOD, "classes": [99], "cam": "gradcam"}),
        (NotFoundError, {"image": GOOD, "version": "7"}),
        (NotFoundError, {"image": GOOD, "model": "nosuch"}),
        (ModelFileError, {"image": GOOD, "model": "broken"}),
        (ServerError, {"image": encode(Image.new("RGB", (64, 64), "white")), "model": "faulty"}),
    ],
)
def test_the_client_raises_the_error_that_the_server_met(client: Client, error: type[TlcliError], arguments: dict[str, object]) -> None:
    with pytest.raises(TlcliError) as caught:
        client.classify(**{"model": "toy", **arguments})  # type: ignore[arg-type]
    assert type(caught.value) is error
    assert isinstance(caught.value.__cause__, grpc.RpcError)


def test_a_broken_file_among_the_models_is_listed_with_its_reason(client: Client, many_models: object) -> None:
    found = {(one.name, one.version): one for one in client.list_models()}
    assert {key: one.state.value for key, one in found.items()} == {
        ("broken", "1"): "failed",
        ("damaged", "9"): "ready",
        ("damaged", "10"): "failed",
        ("faulty", "1"): "ready",
        ("toy", "1"): "ready",
        ("toy", "2"): "ready",
    }
    for one in found.values():
        assert ("ONNX Runtime cannot load it" in one.reason) == (one.state.value == "failed")
    answer = client.classify(GOOD, model="damaged")
    assert answer.version == "9"  # stands in for 10


def test_a_image_of_the_largest_size_is_admitted_and_a_larger_one_refused(one_model: object) -> None:
    max_bytes = 5_000_000
    with in_background(ServerSettings(models=one_model, port=0, limits_max_bytes=max_bytes)) as port, Client(port=port) as client:  # type: ignore[arg-type]
        largest = GOOD + bytes(max_bytes - len(GOOD))  # what follows a JPEG's end is not read
        assert client.classify(largest).predictions == client.classify(GOOD).predictions
        with pytest.raises(ImageError, match=r"5,000,001 bytes: expected at most 5,000,000"):
            client.classify(largest + b"\0")
        with pytest.raises(RequestError, match="larger than max"):
            client.classify(largest * 2)
        assert client.classify(GOOD).predictions
        assert len(client.classify(GOOD, top_k=100).predictions) == len(LABELS)
