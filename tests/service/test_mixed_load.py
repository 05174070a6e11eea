"""Load test with many clients, some of them impatient or sending invalid requests: each gets its own answer, and none hangs."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.helpers.service.sample_images import encode, scene
from tests.helpers.service.toy_model import GRID, LABELS, PREPROCESSING, ToyAnswer, ToyModel
from tests.service.conftest import FIRST, SECOND
from tlcli.contract.images import decoding
from tlcli.service import Client, ServerSettings, in_background
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb

REQUESTS, CLIENTS = 10_000, 32
CLASSIFY = "/tlcli.v1.Classifier/Classify"


@dataclass(frozen=True)
class Sample:
    encoded: bytes
    expected: dict[str, ToyAnswer]


def samples(count: int) -> list[Sample]:
    chance = random.Random(0)
    found = []
    for seed in range(count):
        color = (chance.randrange(256), chance.randrange(256), chance.randrange(256))
        left, top = chance.randrange(60), chance.randrange(60)
        encoded = encode(scene(color, (left, top, left + 80, top + 60), seed=seed), "JPEG", quality=90)
        image = PREPROCESSING.apply(decoding.decode(encoded))
        found.append(Sample(encoded, {"1": FIRST.answer(image), "2": SECOND.answer(image)}))
    return found


@pytest.fixture
def two_versions(tmp_path: Path) -> Path:
    for version, model in enumerate((FIRST, SECOND), 1):
        assert isinstance(model, ToyModel)
        model.save(tmp_path / f"toy/{version}/model.onnx", "toy")
    return tmp_path


async def one(call: grpc.aio.UnaryUnaryMultiCallable, sample: Sample, chance: random.Random) -> str:  # type: ignore[type-arg]
    version = chance.choice(("1", "2"))
    request = pb.ClassifyRequest(encoded=sample.encoded, version=version, top_k=len(LABELS), request_id=str(chance.random()))
    classes: list[int] = []
    kind = chance.random()
    if kind < 0.5:
        request.map.method = chance.choice(("gradcam", "cam", "eigencam"))
        classes = [chance.randrange(len(LABELS)) for _ in range(chance.choice((1, 1, 2)))]
        request.map.classes.extend(classes)
    if kind > 0.95:
        request.encoded = chance.choice((b"", b"no image", sample.encoded[: len(sample.encoded) // 2], b"\xff\xd8\xff" + bytes(50)))
    timeout = chance.choice((0.002, 0.01)) if chance.random() < 0.05 else 30.0
    running = call(request.SerializeToString(), timeout=timeout)
    if chance.random() < 0.05:
        asyncio.get_running_loop().call_later(chance.random() * 0.02, running.cancel)
    try:
        answer = pb.ClassifyResponse.FromString(await running)
    except asyncio.CancelledError:
        return "CANCELLED"
    except grpc.aio.AioRpcError as error:
        return error.code().name
    assert kind <= 0.95, "an image that is none was answered"
    assert (answer.request_id, answer.version) == (request.request_id, version)
    expected = sample.expected[version]
    for prediction in answer.predictions:
        assert abs(prediction.logit - expected.logits[prediction.class_id]) < 1e-3
        assert prediction.HasField("map") == (prediction.class_id in classes)
        if prediction.HasField("map") and request.map.method != "eigencam":
            values = np.frombuffer(prediction.map.values, np.float32).reshape(GRID, GRID)
            np.testing.assert_allclose(values, getattr(expected, request.map.method)[prediction.class_id], atol=1e-3)
    return "OK"


async def everyone(port: int) -> Counter[str]:
    known = samples(48)
    codes: Counter[str] = Counter()

    async def client(number: int) -> None:
        chance = random.Random(number)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(CLASSIFY, None, None)
            for _ in range(REQUESTS // CLIENTS):
                codes[await one(call, chance.choice(known), chance)] += 1

    await asyncio.wait_for(asyncio.gather(*(client(number) for number in range(CLIENTS))), 300)
    return codes


def test_every_answer_is_its_own(two_versions: Path) -> None:
    with in_background(ServerSettings(models=two_versions, port=0)) as port:
        codes = asyncio.run(everyone(port))
        assert sum(codes.values()) == REQUESTS // CLIENTS * CLIENTS
        assert codes.keys() <= {"OK", "CANCELLED", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT"}, codes
        assert codes["OK"] > 0.8 * REQUESTS
        assert min(codes.values()) > 0.01 * REQUESTS, codes
        with Client(port=port) as client:
            assert client.classify(samples(1)[0].encoded, version="2").version == "2"
