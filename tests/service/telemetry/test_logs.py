"""Tests of the log: lines and JSON objects for requests, and request ids."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.helpers.service.sample_images import RED, encode, scene
from tests.helpers.service.server_process import PROGRAM, server_process
from tests.helpers.service.toy_model import SIZE
from tlcli.service import Client, ServerSettings, in_background
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from tlcli.service.telemetry.log_writer import LogWriter
from tlcli.service.telemetry.logs import JsonFormatter, log_request
from tlcli.service.telemetry.request_record import RequestRecord

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")
WHITE = np.full((SIZE, SIZE, 3), 255, np.uint8)
"""What the model `faulty` fails on."""


def requests_in(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [record.fields for record in caplog.records if record.name == "tlcli.service.telemetry.logs"]  # type: ignore[attr-defined]


def test_json_is_an_object_a_line_from_the_first_to_the_last(many_models: Path) -> None:
    with server_process(many_models, log_format="json", log_requests=True) as server:
        while not any("listening on" in line for line in server.log):
            assert server.process.poll() is None
        port = int(re.findall(r"listening on 127\.0\.0\.1:(\d+)", "".join(server.log))[0])
        with Client(port=port, retries=0) as client:
            client.wait_until_ready()
            client.classify(IMAGE, model="toy", request_id="a\nb", cam="gradcam", map_format="heat_map")
            with pytest.raises(Exception, match="internal server error"):
                client.classify(WHITE, model="faulty", request_id="its-fault")
        server.process.terminate()
        assert server.wait() == 0
    lines = [json.loads(line) for line in server.log]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert line["time"].endswith("Z")
        datetime.fromisoformat(line["time"])
    assert lines[-1]["message"] == "stopped"
    assert {line["level"] for line in lines} == {"INFO", "WARNING", "ERROR"}

    (answered,) = [line for line in lines if line.get("code") == "OK" and line["method"].endswith("/Classify")]
    assert answered["request_id"] == "a?b"
    assert (answered["model"], answered["version"], answered["images"]) == ("toy", "2", 1)
    assert answered["method"] == "tlcli.v1.Classifier/Classify"
    assert answered["received_bytes"] > len(IMAGE)
    assert answered["sent_bytes"] > 100
    parts = [answered[f"{stage}_ms"] for stage in ("decode", "queue", "infer", "render")]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= answered["total_ms"]

    (fault,) = [line for line in lines if "internal error" in line["message"]]
    assert fault["message"] == "request its-fault failed with an internal error"
    assert fault["request_id"] == "its-fault"
    assert "Traceback" in fault["exception"]
    (failed,) = [line for line in lines if line.get("code") == "INTERNAL"]
    assert failed["request_id"] == "its-fault"


def test_text_is_a_line_a_request_where_it_was_asked_for(one_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tlcli.service")
    with in_background(ServerSettings(models=one_model, port=0)) as port, Client(port=port) as client:
        client.classify(IMAGE, request_id="unheard")
    assert "unheard" not in caplog.text
    with in_background(ServerSettings(models=one_model, port=0, log_requests=True)) as port, Client(port=port) as client:
        client.classify(IMAGE, request_id="heard")
        client.list_models()
        with pytest.raises(Exception, match="no model"):
            client.classify(IMAGE, model="nosuch")
    said = [record.getMessage() for record in caplog.records if record.name == "tlcli.service.telemetry.logs"]
    number = r"\d+\.\d"
    stages = rf"\(decode {number}, queue {number}, infer {number}\)"
    expected = (
        rf"request heard: grpc tlcli\.v1\.Classifier/Classify: OK by toy version 1 in {number} ms {stages}, \d+ bytes received, \d+ sent",
        rf"request [0-9a-f]{{16}}: grpc tlcli\.v1\.Classifier/ListModels: OK by no model in {number} ms, 0 bytes received, \d+ sent",
        rf"request [0-9a-f]{{16}}: grpc tlcli\.v1\.Classifier/Classify: NOT_FOUND by no model in {number} ms, \d+ bytes received, 0 sent",
    )
    assert len(said) == len(expected)
    for line, pattern in zip(said, expected, strict=True):
        assert re.fullmatch(pattern, line), line


def test_an_id_that_came_beside_the_request_comes_back_however_it_ends(one_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tlcli.service.telemetry.logs")
    settings = ServerSettings(models=one_model, port=0, log_requests=True)
    beside = (("x-request-id", "from-the-proxy"),)
    with in_background(settings) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = ClassifierStub(channel)
        _, call = stub.Classify.with_call(pb.ClassifyRequest(encoded=IMAGE), metadata=beside)
        assert dict(call.trailing_metadata())["x-request-id"] == "from-the-proxy"
        _, call = stub.Classify.with_call(pb.ClassifyRequest(encoded=IMAGE, request_id="its-own"), metadata=beside)
        assert dict(call.trailing_metadata())["x-request-id"] == "from-the-proxy"
        _, call = stub.Classify.with_call(pb.ClassifyRequest(encoded=IMAGE))
        assert "x-request-id" not in dict(call.trailing_metadata())
        with pytest.raises(grpc.RpcError) as refused:
            stub.Classify(pb.ClassifyRequest(encoded=b""), metadata=beside)
        assert dict(refused.value.trailing_metadata())["x-request-id"] == "from-the-proxy"
        assert "grpc-status-details-bin" in dict(refused.value.trailing_metadata())
        stream = stub.ClassifyStream(iter([pb.ClassifyRequest(encoded=IMAGE)] * 2), metadata=beside)
        assert len(list(stream)) == 2
        assert dict(stream.trailing_metadata())["x-request-id"] == "from-the-proxy"
    ids = [one["request_id"] for one in requests_in(caplog)]
    assert (ids[0], ids[1], ids[3:]) == ("from-the-proxy", "its-own", ["from-the-proxy"] * 3)


def test_a_fault_carries_the_id(many_models: Path, caplog: pytest.LogCaptureFixture) -> None:
    with in_background(ServerSettings(models=many_models, port=0)) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = ClassifierStub(channel)
        bad = pb.ClassifyRequest(model="faulty", pixels=WHITE.tobytes())
        with pytest.raises(grpc.RpcError):
            stub.Classify(bad, metadata=(("x-request-id", "abc"),))
        bad.request_id = "of-a-stream"
        list(stub.ClassifyStream(iter([bad])))
    faults = [record.getMessage() for record in caplog.records if "internal error" in record.getMessage()]
    assert faults == ["request abc failed with an internal error", "request of-a-stream failed with an internal error"]


def test_stages_of_several_images_that_overlap_count_once() -> None:
    with RequestRecord("m") as request:
        request.note_span("decode", 0, 0, 10)
        request.note_span("decode", 5, 0, 10)
        request.note_span("decode", 6, 0, 2)
        request.note_span("decode", 20, 5, 5)
        request.note_span("infer", 22, 3, 4)
    assert {stage: took for stage, took in request.took_ns().items() if stage != "total"} == {"decode": 20, "queue": 5, "infer": 4}


def test_what_is_made_of_a_request_cannot_spoil_its_answer(caplog: pytest.LogCaptureFixture) -> None:
    def fail(request: RequestRecord) -> None:
        raise RuntimeError("of no use")

    with RequestRecord("m", on_end=[fail, log_request]) as request:
        request.note_request("one", 1)
    assert request.code == "OK"
    assert "request one cannot be recorded" in caplog.text


def test_an_id_of_a_client_is_one_short_line() -> None:
    with RequestRecord("m", (("x-request-id", "z"),)) as request:
        request.note_request("x\r\n\x1b[31m" + "y" * 1000, 1)
    assert request.request_id.startswith("x???[31my")
    assert len(request.request_id) == 128


def test_json_holds_what_text_would_break(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("a\nb")
    except ValueError:
        record = logging.LogRecord("name", logging.ERROR, "file", 1, "é %s\n", ("x",), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["message"], told["level"], told["logger"]) == ("é x\n", "ERROR", "name")
    assert told["exception"].endswith("ValueError: a\nb")


def test_a_log_that_nobody_reads_stops_nothing(one_model: Path) -> None:
    settings = repr({"port": 0, "http_port": 0, "log_requests": True})
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(one_model), settings], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            started = b""
            while b"serving 1 of 1" not in started:
                started += os.read(process.stderr.fileno(), 65536)
            found = re.search(rb"listening on 127\.0\.0\.1:(\d+)", started)
            assert found
            with Client(port=int(found[1]), retries=0) as client:
                for number in range(700):  # 120 bytes each: the pipe takes 64 KiB
                    assert client.classify(IMAGE, request_id=f"{number:060}", timeout_s=20).predictions
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


def test_lines_that_do_not_fit_are_dropped_and_counted() -> None:
    reading, writing = os.pipe()
    handler = LogWriter(writing, lines=10)
    handler.setFormatter(logging.Formatter("%(message)s"))

    def log(text: str) -> None:
        handler.handle(logging.LogRecord("name", logging.INFO, "path", 1, text, (), None))

    log("first")
    handler.flush()
    assert os.read(reading, 100) == b"first\n"
    begun = time.monotonic()
    for number in range(200):
        log(f"{number:01000}")
    assert time.monotonic() - begun < 1
    os.set_blocking(reading, False)
    written = b""
    for _ in range(20):
        time.sleep(0.02)
        with suppress(BlockingIOError):
            written += os.read(reading, 65536)
    log("last")
    handler.flush()
    written += os.read(reading, 65536)
    lines = written.decode().splitlines()
    dropped = [line for line in lines if line.endswith(" log lines were dropped: the reader was too slow")]
    assert len(dropped) == 1
    kept = [line for line in lines if line.isdecimal()]
    assert kept == [f"{number:01000}" for number in range(len(kept))]
    assert int(dropped[0].split()[0]) == 200 - len(kept)
    os.close(reading)
    log("to nobody")
    handler.flush()
    os.close(writing)
