"""Error responses over HTTP: the right status and one line, after which the connection answers the next request."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.helpers.service.http_requests import Asking, http_in_background
from tests.helpers.service.sample_images import RED, encode, scene
from tests.helpers.service.toy_model import SIZE
from tests.service.rest.test_requests import AS_BASE64, IMAGES, INFER, given
from tlcli.contract.errors import MemoryLimitError, OverloadedError
from tlcli.service import ServerSettings
from tlcli.service.protocol.error_status import CODES, to_status
from tlcli.service.rest.responses import STATUSES, error_response

GOOD = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
IMAGE = given("images", IMAGES[:1])
CLASSIFY = "/v1/classify?model=toy"


@pytest.fixture
def http(http_port: int) -> Iterator[Asking]:
    with Asking(http_port) as asking:
        yield asking
        assert asking.post(CLASSIFY, GOOD).json["predictions"]


def changed(**fields: Any) -> dict[str, Any]:
    return {"inputs": [{**IMAGE, **fields}]}


BAD_BODIES: dict[str, tuple[Any, str]] = {
    "nothing": (b"", "the request's 0 bytes are not JSON"),
    "no JSON": (b"{'inputs': []}", "the request's 14 bytes are not JSON: key must be a string at line 1 column 2"),
    "NaN": (b'{"inputs": NaN}', "bytes are not JSON"),
    "no UTF-8": (b'{"id": "\xff"}', "bytes are not JSON"),
    "deep": (b"[" * 5000, "bytes are not JSON: recursion limit"),
    "a list": ([], "the request: expected an object, got a list of 0"),
    "no inputs": ({}, "expected one of the inputs 'images' (UINT8 [-1, 64, 64, 3]) and 'encoded' (BYTES [-1]), got neither"),
    "inputs of another kind": ({"inputs": {}}, "the request: 'inputs' is an object of 0: expected a list"),
    "an input that is none": ({"inputs": [7]}, "inputs[0]: expected an object, got 7"),
    "no name": ({"inputs": [{}]}, "inputs[0]: 'name' is missing: expected a string"),
    "no datatype": ({"inputs": [{"name": "images"}]}, "input 'images': 'datatype' is missing: expected a string"),
    "no data": ({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1]}]}, "input 'images': 'data' is missing: expected a list"),
    "unknown input": (changed(name="nosuch"), "model 'toy' has no input 'nosuch'; it has: images, encoded, targets, softmax, max_channels"),
    "unknown output": ({"inputs": [IMAGE], "outputs": [{"name": "lime"}]}, "model 'toy' has no output 'lime'; it has: scores, logits,"),
    "an input twice": ({"inputs": [IMAGE, IMAGE]}, "input 'images' occurs twice"),
    "an output twice": ({"inputs": [IMAGE], "outputs": [{"name": "cam"}] * 2}, "an output is requested twice in cam, cam"),
    "wrong datatype": (changed(datatype="FP32"), "expected UINT8 [-1, 64, 64, 3], not FP32 [1, 64, 64, 3]"),
    "wrong shape": (changed(shape=[1, 64, 64, 4], data=[0] * SIZE * SIZE * 4), "[-1, 64, 64, 3], not UINT8 [1, 64, 64, 4]"),
    "a shape of texts": (changed(shape=["1"]), "input 'images': its shape is ['1']: expected integers"),
    "a shape of truths": (changed(shape=[True, 64, 64, 3]), "expected integers"),
    "a size that is none": (changed(shape=[-1, 64, 64, 3]), "shape [-1, 64, 64, 3]: expected sizes of 1 or more"),
    "a shape that is huge": (changed(shape=[10**30, 64, 64, 3], data=[0]), "a number of more than 64 bits"),
    "too few values": (changed(data=[0, 1]), "shape [1, 64, 64, 3] needs 12,288 values, but the contents hold 2"),
    "nested otherwise": (changed(data=[[0, 1]]), "the nesting of its data differs from its shape [1, 64, 64, 3]"),
    "nested too deep": (changed(data=[IMAGE["data"]]), "the nesting of its data differs"),
    "half nested": (changed(data=[[0] * 64, 7]), "the nesting of its data differs"),
    "a fraction": (changed(data=[0.5] * SIZE * SIZE * 3), "input 'images': expected integers for UINT8, got 0.5"),
    "a truth": (changed(data=[True] * SIZE * SIZE * 3), "expected integers for UINT8, got True"),
    "a text": (changed(data=["7"] * SIZE * SIZE * 3), "expected integers for UINT8, got '7'"),
    "null": (changed(data=[None] * SIZE * SIZE * 3), "expected integers for UINT8, got None"),
    "a number over 255": (changed(data=[256] * SIZE * SIZE * 3), "input 'images': values from 256 to 256: UINT8 holds 0 to 255"),
    "a class of 100 bits": (
        {"inputs": [IMAGE, {"name": "targets", "datatype": "INT64", "shape": [1], "data": [2**100]}]},
        "input 'targets': expected 64-bit integers, got 1267650600228229401496703205376 to",
    ),
    "a class that is not there": ({"inputs": [IMAGE, given("targets", np.array([7]))]}, "class 7"),
    "a number for a truth": (
        {"inputs": [IMAGE, {**given("softmax", np.array([True])), "data": [1]}]},
        "expected true or false for BOOL, got 1",
    ),
    "bytes without base64": (
        {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": ["abc"]}]},
        'expected bytes in base64, with "parameters": {"content_type": "base64"}',
    ),
    "no base64": (
        {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": ["a!"], "parameters": AS_BASE64}]},
        "input 'encoded': invalid base64: ",
    ),
    "no image": (
        {"inputs": [{"name": "encoded", "datatype": "BYTES", "shape": [1], "data": ["AAAA"], "parameters": AS_BASE64}]},
        "input 'encoded', element 0: 3 bytes are not an image",
    ),
    "shared memory": (changed(parameters={"shared_memory_region": "a"}), "parameter 'shared_memory_region' is not supported"),
    "classification": (
        {"inputs": [IMAGE], "outputs": [{"name": "scores", "parameters": {"classification": 3}}]},
        "output 'scores': parameter 'classification' is not supported",
    ),
    "bytes that did not come": (changed(data=None, parameters={"binary_data_size": 9}), "is 9, but 0 bytes are left after the JSON"),
    "fewer than no bytes": (changed(data=None, parameters={"binary_data_size": -1}), "its binary_data_size is -1"),
    "both data and bytes": (changed(parameters={"binary_data_size": 0}), "has both data and binary_data_size: send one of them"),
    "an id that is a number": ({"id": 7, "inputs": [IMAGE]}, "the request: 'id' is 7: expected a string"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_tensor_is_named(http: Asking, name: str) -> None:
    body, expected = BAD_BODIES[name]
    status, told = http.post(INFER, body).refusal
    assert status == 400
    assert expected in told


def test_json_with_too_many_values_is_not_parsed(http: Asking) -> None:
    status, told = http.post(INFER, b'{"inputs":[' + b"[],[]," * 600_000 + b"[]]}").refusal
    assert (status, told) == (400, "the request has more than 1,000,000 values in JSON: send tensors as binary data")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("x", "expected the number of bytes of JSON"),
        ("-1", "expected the number of"),
        ("9" * 30, "expected the number of"),
        ("999", "the header announces 999 bytes of JSON, but the body has 2 bytes"),
    ],
)
def test_an_invalid_header_length(http: Asking, header: str, expected: str) -> None:
    status, told = http.post(INFER, b"{}", Inference_Header_Content_Length=header).refusal
    assert status == 400
    assert expected in told


def test_bytes_after_the_last_input(http: Asking) -> None:
    head = json.dumps({"inputs": [IMAGE]}).encode()
    status, told = http.post(INFER, head + b"abc", Inference_Header_Content_Length=str(len(head))).refusal
    assert (status, told[:34]) == (400, "3 bytes are left after the inputs:")
    lone = {"inputs": [{**IMAGE, "data": None, "parameters": {"binary_data_size": 3}}]}
    head = json.dumps(lone).encode()
    status, told = http.post(INFER, head + b"abc", Inference_Header_Content_Length=str(len(head))).refusal
    assert (status, told) == (400, "input 'images': UINT8 [1, 64, 64, 3] needs 12,288 bytes, but the raw contents hold 3")


BAD_QUERIES = {
    "modle=toy": "unknown query parameter 'modle': expected model, version, top_k, cam,",
    "model=toy&model=toy": "query parameter 'model' occurs twice",
    "model=toy&top_k=some": "query parameter 'top_k' is 'some': expected an integer",
    "model=toy&top_k=" + "9" * 5000: "expected an integer",
    "model=toy&top_k=-1": "top_k -1: expected 1 or more",
    "model=toy&cam=lime": "'lime'; it has: cam, gradcam, eigencam",
    "model=toy&cam=cam&classes=7": "query parameter 'classes': '7': no such class; expected a label (red, green, blue,",
    "model=toy&cam=cam&classes=1,": "query parameter 'classes': '': no such class",
    "model=toy&cam=cam&classes=" + "9" * 40: "9999': no such class",
    "model=toy&cam=cam&format=jpeg": "unknown map format 'jpeg': expected raw, heat_map, overlay",
    "model=toy&cam=cam&softmax=perhaps": "query parameter 'softmax' is 'perhaps': expected true or false",
    "model=toy&cam=cam&max_channels=3": "max_channels 3: only scorecam and faster_scorecam take it",
    "model=toy&classes=1": "query parameter 'classes' requires 'cam'",
}


@pytest.mark.parametrize("query", BAD_QUERIES)
def test_a_bad_query_is_named(http: Asking, query: str) -> None:
    status, told = http.post(f"/v1/classify?{query}", GOOD).refusal
    assert status == 400
    assert BAD_QUERIES[query] in told


def test_requests_for_a_png_without_one_map(http: Asking) -> None:
    for query, expected in (("", "names no map"), ("&cam=cam&format=raw", "has format=raw"), ("&cam=cam&classes=1,2", "has 2 classes")):
        status, told = http.post(CLASSIFY + query, GOOD, Accept="image/png").refusal
        assert status == 400
        assert expected in told


@pytest.mark.parametrize(
    ("body", "expected"), [(b"", "the image is empty"), (b"no image", "no image"), (GOOD[: len(GOOD) // 2], "cannot be decoded")]
)
def test_bytes_that_are_no_image(http: Asking, body: bytes, expected: str) -> None:
    status, told = http.post(CLASSIFY, body).refusal
    assert status == 400
    assert expected in told


def test_a_form_is_refused(http: Asking) -> None:
    status, told = http.post(CLASSIFY, b"--x\r\n", Content_Type="multipart/form-data; boundary=x").refusal
    assert (status, told) == (400, "the body is a form: send the image's bytes alone, as `curl --data-binary @image.jpg` does")


@pytest.mark.parametrize(
    ("path", "status", "expected"),
    [
        ("/v2/models/nosuch/infer", 404, "no model 'nosuch' on this server; it has: broken, damaged, faulty, toy"),
        ("/v2/models/..%2Ftoy/infer", 404, "no such path: '/v2/models/../toy/infer': see GET /docs for the paths"),
        ("/v2/models/toy/versions/7/infer", 404, "model 'toy' has no version '7'; it has: 1, 2"),
        ("/v2/models/broken/infer", 409, "model 'broken' version 1 is broken and not served: "),
        ("/v1/classify", 404, "the request names no model, and this server has several: damaged, faulty, toy: name one of them"),
        (
            "/v2/repository/models/toy/load",
            409,
            "clients cannot load models with model_control fixed: start the server with --model-control explicit",
        ),
        (
            "/v2/repository/models/toy/unload",
            409,
            "clients cannot unload models with model_control fixed: start the server with --model-control explicit",
        ),
        ("/v2/nosuch", 404, "no such path: '/v2/nosuch': see GET /docs for the paths"),
        ("/v2/health/live/", 404, "no such path"),
        ("/v2", 405, "method POST is not allowed here: use GET or HEAD"),
    ],
)
def test_unknown_models_and_paths(http: Asking, path: str, status: int, expected: str) -> None:
    found, told = http.post(path, {"inputs": [IMAGE]} if "infer" in path else b"").refusal
    assert found == status
    assert expected in told


def test_unknown_models_are_neither_ready_nor_described(http: Asking) -> None:
    assert (http.get("/v2/models/nosuch/ready").status, http.get("/v2/models/toy/versions/7/ready").status) == (400, 400)
    assert http.get("/v2/models/nosuch").refusal[0] == 404
    assert http.get(INFER).refusal == (405, "method GET is not allowed here: use POST")


def test_a_failing_model_reveals_nothing(http: Asking, caplog: pytest.LogCaptureFixture) -> None:
    white = given("images", np.full((1, SIZE, SIZE, 3), 255, np.uint8))
    assert http.post("/v2/models/faulty/infer", {"inputs": [white]}).refusal == (
        500,
        "internal server error: see the server's log",
    )
    assert "failed with an internal error" in caplog.text


def test_pages_of_other_sites_may_not_post(http: Asking) -> None:
    for site in ("cross-site", "same-site"):
        status, told = http.post(CLASSIFY, GOOD, Sec_Fetch_Site=site).refusal
        assert status == 403
        assert "a web page of another site" in told
    assert http.post(CLASSIFY, GOOD, Sec_Fetch_Site="same-origin").status == 200


def test_unsupported_content_encodings(http: Asking) -> None:
    assert http.post(CLASSIFY, GOOD, Content_Encoding="br").refusal == (
        415,
        "unsupported content encoding 'br': use gzip or deflate, or none",
    )
    for broken in (GOOD, gzip.compress(GOOD)[:-9], gzip.compress(GOOD) + b"more"):
        status, told = http.post(CLASSIFY, broken, Content_Encoding="gzip").refusal
        assert status == 400
        assert "body" in told


@pytest.fixture(scope="module")
def small(one_model: Path) -> Iterator[int]:
    """Port of a server that accepts images of 100 kB, and requests of 300 kB."""
    settings = ServerSettings(models=one_model, port=0, http_port=0, limits_max_bytes=100_000, max_message_bytes=300_000)
    with http_in_background(settings) as port:
        yield port


def test_a_body_over_the_limit_is_refused_and_not_kept(small: int) -> None:
    with Asking(small) as http:
        endless = b"x" * 8_000_000
        expected = (413, "the body has 8,000,000 bytes: at most 100,000 are accepted; send a smaller request")
        assert http.post("/v1/classify", endless).refusal == expected
        unannounced = (413, "the body has more than 100,000 bytes: at most 100,000 are accepted; send a smaller request")
        assert http.ask("POST", "/v1/classify", iter([endless[:70_000]] * 20)).refusal == unannounced
        assert http.post("/v1/classify", gzip.compress(endless), Content_Encoding="gzip").refusal == unannounced
        assert http.post("/v2/models/toy/infer", endless).refusal[1].startswith("the body has 8,000,000 bytes: at most 300,000")
        assert http.post("/v1/classify", GOOD + bytes(100_000 - len(GOOD))).json["predictions"]  # exactly at the limit


def test_a_full_queue_refuses_with_a_retry_delay(one_model: Path) -> None:
    settings = ServerSettings(models=one_model, port=0, http_port=0, max_queue_size=1, max_score_cams=1, max_batch_size=1)
    seen = []
    with http_in_background(settings) as port:

        def ask() -> None:
            with Asking(port) as http:
                seen.extend(http.post("/v1/classify?cam=scorecam", GOOD) for _ in range(30))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    refused = [one for one in seen if one.status != 200]
    assert 0 < len(refused) < len(seen)
    for one in refused:
        assert one.refusal[0] == 429
        assert "queue of model 'toy' full (1 Score-CAMs waiting): retry in" in one.refusal[1]
        assert int(one.headers["Retry-After"]) >= 1


def test_the_retry_delay_is_in_whole_seconds() -> None:
    response = error_response(OverloadedError("busy", 2.3))
    assert (response.status_code, response.headers["Retry-After"]) == (429, "3")


def test_every_error_has_a_status() -> None:
    for kind, code in CODES.items():
        assert error_response(kind("what")).status_code == (503 if kind is MemoryLimitError else STATUSES[code])
        assert to_status(kind("what")).code == code.value[0]
    assert grpc.StatusCode.UNAUTHENTICATED in STATUSES


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00 hello\r\n\r\n", b"GET /v2 HTTP/1.1\r\n\r\n"], ids=["no HTTP", "no Host"])
def test_invalid_http_is_refused_with_a_line_too(http_port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", http_port), timeout=10) as plain:
        plain.sendall(sent)
        head, _, body = b"".join(iter(lambda: plain.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head.lower()
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert json.loads(body) == {"error": "invalid HTTP request: expected HTTP/1.1 with a Host header"}
    with Asking(http_port) as http:
        assert http.get("/v2/health/live").json == {"live": True}


def test_a_million_numbers_do_not_block_others_for_long(http_port: int) -> None:
    """JSON is parsed in one step, which the limit of values bounds."""
    waited = []
    over = threading.Event()

    def watch() -> None:
        with Asking(http_port) as http:
            while not over.is_set():
                begun = time.monotonic()
                http.get("/v2/health/live")
                waited.append(time.monotonic() - begun)

    watching = threading.Thread(target=watch)
    watching.start()
    images = 999_900 // (SIZE * SIZE * 3)
    with Asking(http_port) as http:
        status, told = http.post(INFER, {"inputs": [given("images", np.zeros((images, SIZE, SIZE, 3), np.uint8))]}).refusal
    over.set()
    watching.join()
    assert (status, told[:2]) == (400, "81")  # more images than slots
    assert max(waited) < 3


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"[" * 400_001, "more than 400,000 lists and objects", id="deep lists"),
        pytest.param(b'{"a":' * 400_001, "more than 400,000 lists and objects", id="deep objects"),
        pytest.param(b'{"inputs":[' + b"[]," * 400_001 + b"1]}", "more than 400,000 lists and objects", id="empty lists"),
        pytest.param(b'{"inputs":[' + b"{}," * 400_001 + b"1]}", "more than 400,000 lists and objects", id="empty objects"),
        pytest.param(b'{"id":"' + "\U0001f600".encode() + b"a" * 2**20 + b'"}', "non-ASCII characters", id="wide text"),
        pytest.param(b'{"id":"' + b"\\u00e9" * 2**18 + b'"}', "non-ASCII characters", id="escapes"),
        pytest.param(b'{"inputs":' + b"9" * 2**20 + b"}", "not JSON: number out of range", id="a long number"),
        pytest.param(json.dumps(changed(shape=[1] * 9, data=[0])).encode(), "the shape has 9 dimensions", id="many dimensions"),
        pytest.param(
            json.dumps(changed(data=[0])).replace("64, 64", "9" * 4000 + ", " + "9" * 4000).encode(),
            "a number of more than 64 bits",
            id="a shape of long numbers",
        ),
        pytest.param(
            b'{"inputs":[{"name":"images","datatype":"UINT8","shape":[1],"parameters":{"binary_data_size":' + b"9" * 4000 + b"}}]}",
            "expected a 64-bit integer",
            id="a length of many digits",
        ),
    ],
)
def test_json_that_is_costly_to_parse_is_refused(http: Asking, body: bytes, expected: str) -> None:
    status, told = http.post(INFER, body).refusal
    assert status == 400
    assert expected in told
