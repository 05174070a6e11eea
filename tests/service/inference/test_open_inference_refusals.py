"""Error statuses of the Open Inference Protocol: the right code and one line, after which the server answers the next request."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from tests.helpers.service.sample_images import RED, encode, png_that_claims, scene
from tests.helpers.service.toy_model import SIZE, ToyModel
from tests.service.conftest import FIRST
from tlcli.contract.model.onnx_model import Answer, Model
from tlcli.service import ServerSettings, in_background

SHAPE = [1, SIZE, SIZE, 3]
PIXELS = bytes(SIZE * SIZE * 3)
GOOD = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
HUGE = 2**62

Contents = dict[str, list[Any]]
Tensor = tuple[str, str, list[int], bytes | Contents | None]

IMAGES: Tensor = ("images", "UINT8", SHAPE, PIXELS)


def element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def ints(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def request(*tensors: Tensor, outputs: tuple[str, ...] = (), extra_raw: tuple[bytes, ...] = (), **fields: str) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(**{"model_name": "toy", **fields})
    for name, datatype, shape, values in tensors:
        made.inputs.add(name=name, datatype=datatype, shape=shape, contents=values if isinstance(values, dict) else None)
        if isinstance(values, bytes):
            made.raw_input_contents.append(values)
    made.raw_input_contents.extend(extra_raw)
    for name in outputs:
        made.outputs.add(name=name)
    return made


def with_parameter(made: pb.ModelInferRequest, of_output: bool, name: str) -> pb.ModelInferRequest:
    (made.outputs if of_output else made.inputs)[0].parameters[name].string_param = "x"
    return made


BAD = {
    "no input": (request(), "expected one of the inputs 'images' (UINT8 [-1, 64, 64, 3]) and 'encoded' (BYTES [-1]), got neither"),
    "both": (request(IMAGES, ("encoded", "BYTES", [1], element(GOOD))), ", got both"),
    "unknown input": (request(("photos", "UINT8", SHAPE, PIXELS)), "no input 'photos'; it has: images, encoded, targets, softmax"),
    "unknown output": (request(IMAGES, outputs=("lime",)), "no output 'lime'; it has: scores, logits, classes, cam, gradcam"),
    "the same input twice": (request(IMAGES, IMAGES), "input 'images' occurs twice"),
    "the same output twice": (request(IMAGES, outputs=("cam", "cam")), "twice in cam, cam"),
    "another datatype": (request(("images", "FP32", SHAPE, 4 * PIXELS)), "expected UINT8 [-1, 64, 64, 3], not FP32 [1, 64, 64, 3]"),
    "no datatype": (request(("images", "", SHAPE, PIXELS)), "expected UINT8 [-1, 64, 64, 3], not"),
    "another size": (request(("images", "UINT8", [1, 32, 32, 3], bytes(3072))), "[-1, 64, 64, 3], not UINT8 [1, 32, 32, 3]"),
    "another rank": (request(("images", "UINT8", SHAPE[1:], PIXELS)), "[-1, 64, 64, 3], not UINT8 [64, 64, 3]"),
    "no shape": (request(("images", "UINT8", [], PIXELS)), "[-1, 64, 64, 3], not UINT8 []"),
    "ten thousand sizes": (request(("images", "UINT8", [1] * 10_000, PIXELS)), "the shape has 10,000 dimensions"),
    "no images": (request(("images", "UINT8", [0, *SHAPE[1:]], b"")), "shape [0, 64, 64, 3]: expected sizes of 1 or more"),
    "a negative size": (request(("images", "UINT8", [-1, *SHAPE[1:]], PIXELS)), "shape [-1, 64, 64, 3]"),
    "negative sizes whose product fits": (request(("images", "UINT8", [-1, -64, 64, 3], PIXELS)), "shape [-1, -64, 64, 3]"),
    "sizes whose product passes 64 bits": (request(("images", "UINT8", [HUGE, *SHAPE[1:]], PIXELS)), f"UINT8 [{HUGE}, 64, 64, 3] needs"),
    "a product that wraps to nothing": (request(("encoded", "BYTES", [HUGE], {"bytes_contents": []})), f"needs {HUGE:,} values"),
    "too few bytes": (
        request(("images", "UINT8", SHAPE, PIXELS[1:])),
        "[1, 64, 64, 3] needs 12,288 bytes, but the raw contents hold 12,287",
    ),
    "too many bytes": (request(("images", "UINT8", SHAPE, PIXELS + b"x")), "the raw contents hold 12,289"),
    "too few raw contents": (request(IMAGES, ("targets", "INT64", [1], None)), "1 raw_input_contents for 2 inputs"),
    "too many raw contents": (request(IMAGES, extra_raw=(b"",)), "2 raw_input_contents for 1 inputs"),
    "raw and typed": (
        request(("images", "UINT8", SHAPE, {"uint_contents": [1]}), extra_raw=(PIXELS,)),
        "input 'images' has both `contents` and raw_input_contents",
    ),
    "neither raw nor typed": (request(("images", "UINT8", SHAPE, None)), "needs 12,288 values, but the contents hold 0"),
    "typed in another field": (
        request(("images", "UINT8", SHAPE, {"int_contents": [0] * len(PIXELS)})),
        "expected values of UINT8 in uint_contents, got int_contents",
    ),
    "typed beyond the datatype": (
        request(("images", "UINT8", SHAPE, {"uint_contents": [256] * len(PIXELS)})),
        "values from 256 to 256: UINT8 holds 0 to 255",
    ),
    "too few typed": (request(("targets", "INT64", [2], {"int64_contents": [1]}), ("images", *IMAGES[1:3], None)), "needs 2 values"),
    "an element cut short": (request(("encoded", "BYTES", [1], element(GOOD)[:-1])), "raw bytes do not hold 1 elements"),
    "a length cut short": (request(("encoded", "BYTES", [2], element(GOOD) + b"\1\0")), "do not hold 2 elements"),
    "a length beyond the end": (request(("encoded", "BYTES", [1], b"\xff\xff\xff\xff" + GOOD)), "send each element after its length"),
    "too few elements": (request(("encoded", "BYTES", [2], element(GOOD))), "do not hold 2 elements"),
    "too many elements": (request(("encoded", "BYTES", [1], 2 * element(GOOD))), "do not hold 1 elements"),
    "no length at all": (request(("encoded", "BYTES", [1], b"")), "the 0 raw bytes do not hold 1 elements"),
    "no image among good ones": (
        request(("encoded", "BYTES", [3], element(GOOD) + element(b"text") + element(GOOD))),
        "input 'encoded', element 1: 4 bytes are not an image",
    ),
    "an empty image": (request(("encoded", "BYTES", [1], element(b""))), "element 0: the image is empty"),
    "an image that claims to be huge": (
        request(("encoded", "BYTES", [1], element(png_that_claims(100_000, 100_000)))),
        "more than 50,000,000 pixels",
    ),
    "an unknown class": (request(IMAGES, ("targets", "INT64", [2], ints(0, 7)), outputs=("cam",)), "no class 7: expected 0 to 6"),
    "an unknown class that no output needs": (request(IMAGES, ("targets", "INT64", [1], ints(7))), "no class 7"),
    "an unknown rank": (request(IMAGES, ("targets", "INT64", [1, 1], ints(-8)), outputs=("classes",)), "no class -8"),
    "classes for other images": (
        request(IMAGES, ("targets", "INT64", [2, 1], ints(0, 0))),
        "input 'targets' has shape [2, 1] in a request with 1 images: expected [1 or 1, K]",
    ),
    "no classes": (request(IMAGES, ("targets", "INT64", [1, 0], b"")), "shape [1, 0]"),
    "classes of three dimensions": (request(IMAGES, ("targets", "INT64", [1, 1, 1], ints(0))), "expected INT64 [-1, -1] or INT64 [-1]"),
    "too many classes": (
        request(IMAGES, ("targets", "INT64", [101], ints(*[0] * 101)), outputs=("cam",)),
        "input 'targets' has 101 classes: at most 100",
    ),
    "too many maps": (
        request(IMAGES, ("targets", "INT64", [51], ints(*[0] * 51)), outputs=("cam", "gradcam")),
        "51 classes with 2 maps each were requested: at most 100 maps per image",
    ),
    "two values for one": (request(IMAGES, ("softmax", "BOOL", [2], b"\0\1")), "expected BOOL [1] or BOOL [1, 1], not BOOL [2]"),
    "negative channels": (request(IMAGES, ("max_channels", "INT64", [1], ints(-1)), outputs=("scorecam",)), "max_channels -1: expected"),
    "channels of a map without": (
        request(IMAGES, ("max_channels", "INT64", [1], ints(5)), outputs=("gradcam",)),
        "only scorecam and faster_scorecam take it; requested: gradcam",
    ),
    "more images than may wait": (
        request(("images", "UINT8", [65, *SHAPE[1:]], 65 * PIXELS)),
        "65 images in one request: at most 64 may wait for model 'toy'; send several requests",
    ),
    "a class count": (
        with_parameter(request(IMAGES, outputs=("scores",)), True, "classification"),
        "output 'scores': parameter 'class",
    ),
    "shared memory": (
        with_parameter(request(IMAGES), False, "shared_memory_region"),
        "input 'images': parameter 'shared_memory_region'",
    ),
}

ELSEWHERE = {
    "unknown model": (request(IMAGES, model_name="nosuch"), grpc.StatusCode.NOT_FOUND, "no model 'nosuch' on this server; it has: "),
    "no model named": (request(IMAGES, model_name=""), grpc.StatusCode.NOT_FOUND, "several: damaged, faulty, toy: name one"),
    "unknown version": (request(IMAGES, model_version="7"), grpc.StatusCode.NOT_FOUND, "no version '7'"),
    "broken model": (request(IMAGES, model_name="broken"), grpc.StatusCode.FAILED_PRECONDITION, "broken and not served"),
    "a fault while it runs": (
        request(("images", "UINT8", SHAPE, b"\xff" * len(PIXELS)), model_name="faulty"),
        grpc.StatusCode.INTERNAL,
        "internal server error: see the server's log",
    ),
}

Ask = Callable[[pb.ModelInferRequest], pb.ModelInferResponse]


@pytest.fixture(scope="module")
def channel(port: int) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


def asking(channel: grpc.Channel) -> grpc.UnaryUnaryMultiCallable:
    return channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )


def refusal(ask: Ask, made: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    """Send a request that must fail and one that must not, and return the code and the line of the first."""
    with pytest.raises(grpc.RpcError) as caught:
        ask(made)
    details = caught.value.details() or ""
    assert details
    assert "\n" not in details
    assert "Traceback" not in details
    assert len(ask(request(IMAGES)).raw_output_contents) == 2
    return caught.value.code(), details


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(channel: grpc.Channel, name: str) -> None:
    made, expected = BAD[name]
    code, details = refusal(asking(channel), made)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert expected in details


@pytest.mark.parametrize("name", ELSEWHERE)
def test_errors_of_models(channel: grpc.Channel, name: str) -> None:
    made, expected_code, expected = ELSEWHERE[name]
    code, details = refusal(asking(channel), made)
    assert code is expected_code
    assert expected in details


def test_tritons_client_gets_the_status_and_the_line(port: int) -> None:
    tensor = triton.InferInput("images", SHAPE, "UINT8")
    tensor.set_data_from_numpy(np.zeros(SHAPE, np.uint8))
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("toy", [tensor], outputs=[triton.InferRequestedOutput("lime")])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert caught.value.message().startswith("model 'toy' has no output 'lime'; it has: scores, ")
        with pytest.raises(InferenceServerException) as caught:
            client.get_model_metadata("nosuch")
        assert caught.value.status() == "StatusCode.NOT_FOUND"
        assert client.infer("toy", [tensor]).as_numpy("scores").shape == (1, 7)


@pytest.mark.parametrize(
    "call", ["ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "RepositoryIndex"]
)
def test_bytes_that_are_no_message(channel: grpc.Channel, call: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/inference.GRPCInferenceService/{call}")(b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"the request (3 bytes) is not a valid inference.{call}Request message" in (caught.value.details() or "")


def test_an_index_of_another_repository_is_refused(channel: grpc.Channel) -> None:
    ask = channel.unary_unary(
        "/inference.GRPCInferenceService/RepositoryIndex",
        request_serializer=pb.RepositoryIndexRequest.SerializeToString,
        response_deserializer=pb.RepositoryIndexResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as caught:
        ask(pb.RepositoryIndexRequest(repository_name="other"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert {one.state for one in ask(pb.RepositoryIndexRequest(ready=True)).models} == {"READY"}


def test_a_request_that_fails_returns_its_slots(one_model: Path) -> None:
    bad = request(("encoded", "BYTES", [3], element(GOOD) + element(b"text") + element(GOOD)))
    white = request(("encoded", "BYTES", [3], 3 * element(encode(Image.new("RGB", (64, 64), "white")))))
    with (
        in_background(ServerSettings(models=one_model, port=0, max_queue_size=3)) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as own,
    ):
        ask = asking(own)
        for _ in range(10):
            with pytest.raises(grpc.RpcError, match="element 1"):
                ask(bad)
            assert len(ask(white).raw_output_contents[0]) == 3 * 7 * 4


class HeldRuns:
    """Hold on the runs of all models.

    started: set when the first run starts.
    let_go: set to let them finish.
    sizes: number of images of each run.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.started, self.let_go = threading.Event(), threading.Event()
        self.sizes: list[int] = []
        run = Model.run

        def held(model: Model, images: np.ndarray, *arguments: Any, **named: Any) -> Answer:
            self.started.set()
            assert self.let_go.wait(20)
            self.sizes.append(len(images))
            return run(model, images, *arguments, **named)

        monkeypatch.setattr(Model, "run", held)


def waiting(ask: grpc.UnaryUnaryMultiCallable, made: pb.ModelInferRequest) -> grpc.Future:
    """Return a call that was admitted, and repeat it until then."""
    for _ in range(100):
        call = ask.future(made)
        try:
            call.result(timeout=0.2)
        except grpc.FutureTimeoutError:
            return call
        except grpc.RpcError:
            continue  # earlier requests still hold their slots
    raise AssertionError("never admitted")


def several(images: int) -> pb.ModelInferRequest:
    return request(("images", "UINT8", [images, *SHAPE[1:]], images * PIXELS))


def test_a_request_for_more_slots_than_are_free_is_refused_and_a_cancelled_one_returns_its_slots(
    one_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ServerSettings(models=one_model, port=0, max_queue_size=4, max_batch_size=1)
    with in_background(settings) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as own:
        held = HeldRuns(monkeypatch)
        ask = asking(own)
        running = ask.future(several(1))
        assert held.started.wait(20)
        three = waiting(ask, several(3))
        with pytest.raises(grpc.RpcError, match=r"full \(3 of 4 images waiting, this request has 2\): retry in") as refused:
            ask(several(2))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert float(dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        three.cancel()
        four = waiting(ask, several(4))
        held.let_go.set()
        assert len(running.result(timeout=20).raw_output_contents) == 2
        assert len(four.result(timeout=20).raw_output_contents[0]) == 4 * 7 * 4
        assert held.sizes == [1] * 5  # those of the cancelled request were not run


def test_if_one_image_fails_the_others_of_its_request_are_not_run(one_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        in_background(ServerSettings(models=one_model, port=0, max_batch_size=1)) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as own,
    ):
        held = HeldRuns(monkeypatch)
        ask = asking(own)
        running = ask.future(several(1))
        assert held.started.wait(20)
        with pytest.raises(grpc.RpcError, match="element 1"):
            ask(request(("encoded", "BYTES", [3], element(GOOD) + element(b"text") + element(GOOD))))
        last = waiting(ask, several(2))
        held.let_go.set()
        assert len(running.result(timeout=20).raw_output_contents) == len(last.result(timeout=20).raw_output_contents) == 2
        assert held.sizes == [1, 1, 1]


def test_images_of_one_request_share_runs_with_each_other_and_with_others(one_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        in_background(ServerSettings(models=one_model, port=0, max_batch_size=8)) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as own,
    ):
        held = HeldRuns(monkeypatch)
        ask = asking(own)
        running = ask.future(several(1))
        assert held.started.wait(20)
        calls = [waiting(ask, several(5)), waiting(ask, several(6)), waiting(ask, several(5))]
        held.let_go.set()
        assert [len(call.result(timeout=20).raw_output_contents[0]) // 28 for call in (running, *calls)] == [1, 5, 6, 5]
        assert held.sizes == [1, 8, 8]


def test_a_message_may_be_larger_than_an_image_with_max_message_bytes(one_model: Path) -> None:
    many = request(("images", "UINT8", [32, *SHAPE[1:]], 32 * PIXELS))
    heavy = request(("encoded", "BYTES", [2], element(GOOD) + element(GOOD + bytes(100_000))))
    for max_message_bytes, expected in ((0, grpc.StatusCode.RESOURCE_EXHAUSTED), (1_000_000, grpc.StatusCode.OK)):
        settings = ServerSettings(models=one_model, port=0, limits_max_bytes=100_000, max_message_bytes=max_message_bytes)
        with in_background(settings) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as own:
            ask = asking(own)
            called = ask.future(many)
            assert called.code() is expected
            code, details = refusal(ask, heavy)
            if max_message_bytes:
                assert code is grpc.StatusCode.INVALID_ARGUMENT
                assert "element 1" in details
                assert "at most 100,000" in details


def test_pixels_for_a_dynamic_model_are_limited_too(tmp_path: Path) -> None:
    ToyModel.make(seed=5, dynamic=True).save(tmp_path / "any/1/model.onnx", "any")
    settings = ServerSettings(models=tmp_path, port=0, limits_max_pixels=SIZE * SIZE)
    with in_background(settings) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as own:
        ask = asking(own)
        with pytest.raises(grpc.RpcError, match="64 x 72 pixels are too large: at most 4,096 pixels"):
            ask(request(("images", "UINT8", [1, SIZE, SIZE + 8, 3], bytes(SIZE * (SIZE + 8) * 3)), model_name="any"))
        logits = np.frombuffer(ask(request(IMAGES, model_name="any", outputs=("logits",))).raw_output_contents[0], "<f4")
    expected = ToyModel.make(seed=5, dynamic=True).answer(np.zeros((SIZE, SIZE, 3), np.uint8)).logits
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert not np.allclose(logits, FIRST.answer(np.zeros((SIZE, SIZE, 3), np.uint8)).logits)


@pytest.mark.parametrize("call", ["load_model", "unload_model"])
def test_loading_and_unloading_are_refused_by_default(port: int, call: str) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(InferenceServerException) as caught:
            getattr(client, call)("toy")
        assert caught.value.status() == "StatusCode.FAILED_PRECONDITION"
        action = call.removesuffix("_model")
        assert (
            f"clients cannot {action} models with model_control fixed: start the server with --model-control explicit"
            in caught.value.message()
        )
        assert client.is_model_ready("toy")
