"""Fuzz test with twenty thousand damaged images and messages: each gets an answer or the right error, without memory growth."""

from __future__ import annotations

import asyncio
import io
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
from PIL import Image

from tests.helpers.service.sample_images import encode, scene
from tests.helpers.service.server_process import server_process
from tests.helpers.service.toy_model import SIZE
from tlcli.service import Client
from tlcli.service.pb.inference import open_inference_pb2 as oip
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb

IMAGES, MESSAGES, TENSORS = 12_000, 4_000, 4_000
IN_FLIGHT = 16
GROWTH_BYTES = 20_000_000
CLASSIFY, INFER = "/tlcli.v1.Classifier/Classify", "/inference.GRPCInferenceService/ModelInfer"
MESSAGE_CODES = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
"""A message may come to name a model or a version that is not there."""

Chance = random.Random


def seeds() -> list[bytes]:
    """Return small images of every format, plain and unusual."""
    found = []
    for number, image_format in enumerate(("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")):
        plain = scene((200, 30 * number, 60), (4, 4, 30, 24), size=(48, 40), seed=number)
        found.append(encode(plain, image_format))
        found.append(encode(plain.convert("P" if image_format in ("GIF", "PNG", "BMP", "TIFF") else "L"), image_format))
    plain = scene((10, 200, 60), (4, 4, 30, 24), size=(48, 40))
    found.append(encode(plain, "JPEG", progressive=True, quality=60))
    found.append(encode(plain, "TIFF", compression="tiff_lzw"))
    found.append(encode(plain, "TIFF", compression="jpeg"))
    frames = [scene((number * 60, 0, 90), (4, 4, 30, 24), size=(48, 40)) for number in range(3)]
    found.extend(encode(frames[0], image_format, save_all=True, append_images=frames[1:]) for image_format in ("GIF", "WEBP", "PNG"))
    turned = Image.Exif()
    turned[0x0112] = 6
    found.append(encode(plain, "JPEG", exif=turned))
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 48), dtype=np.uint16))
    found.append(encode(deep, "PNG"))
    return found


def mutated(data: bytes, chance: Chance) -> bytes:
    """Return data with one to eight changed bytes, runs or lengths."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        place = chance.randrange(len(changed)) if changed else 0
        if chance.random() < 0.5:
            place = min(place, chance.randrange(64))  # headers are where the damage is
        what = chance.randrange(7)
        if not changed or what == 0:
            changed[place:place] = chance.randbytes(chance.choice((1, 2, 8, 64)))
        elif what == 1:
            changed[place] ^= 1 << chance.randrange(8)
        elif what == 2:
            changed[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
        elif what == 3:
            changed[place : place + 4] = chance.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
        elif what == 4:
            del changed[place : place + chance.choice((1, 2, 16, 256))]
        elif what == 5:
            del changed[place:]
        else:
            length = chance.choice((1, 4, 32))
            changed[place:place] = changed[place : place + length]
    return bytes(changed)


def damaged_images(chance: Chance) -> Iterator[bytes]:
    known = seeds()
    for _ in range(IMAGES):
        request = pb.ClassifyRequest(encoded=mutated(chance.choice(known), chance))
        if chance.random() < 0.3:
            request.map.method = "gradcam"
            request.map.format = chance.choice((pb.MAP_FORMAT_RAW, pb.MAP_FORMAT_OVERLAY))
        yield request.SerializeToString()


def damaged_messages(chance: Chance) -> Iterator[bytes]:
    image = encode(scene((200, 30, 60), (4, 4, 30, 24), size=(48, 40)), "PNG")
    whole = pb.ClassifyRequest(model="toy", version="1", encoded=image, top_k=3, request_id="seven")
    whole.map.method, whole.map.softmax = "gradcam", True
    whole.map.classes.extend((1, -1))
    pixels = pb.ClassifyRequest(model="toy", pixels=bytes(SIZE * SIZE * 3), map=pb.MapRequest(method="faster_scorecam", max_channels=2))
    for _ in range(MESSAGES):
        kind = chance.random()
        if kind < 0.7:
            yield mutated(chance.choice((whole, pixels)).SerializeToString(), chance)
        else:
            odd = pb.ClassifyRequest()
            odd.CopyFrom(whole)
            odd.top_k = chance.choice((-1, 0, 2**31 - 1, -(2**31)))
            odd.map.classes[:] = [chance.choice((-(2**63), 2**63 - 1, 7, -8, 0)) for _ in range(chance.choice((0, 1, 50, 500)))]
            odd.map.max_channels = chance.choice((-1, 0, 2**31 - 1))
            odd.map.method = chance.choice(("scorecam", "gradcam", "GradCAM", "", "gradcam@", "x" * 5000, "\n\x00"))
            yield odd.SerializeToString()


def damaged_tensors(chance: Chance) -> Iterator[bytes]:
    for _ in range(TENSORS):
        request = oip.ModelInferRequest(model_name="toy", id="eight")
        images = request.inputs.add(name="images", datatype="UINT8")
        images.shape.extend((1, SIZE, SIZE, 3))
        request.raw_input_contents.append(bytes(SIZE * SIZE * 3))
        request.outputs.add(name=chance.choice(("scores", "gradcam", "classes", "nothing")))
        targets = request.inputs.add(name="targets", datatype="INT64")
        targets.shape.extend((1, 2))
        request.raw_input_contents.append(np.array([[1, -1]], "<i8").tobytes())
        what = chance.randrange(8)
        if what == 0:
            images.shape[chance.randrange(4)] = chance.choice((-1, 0, 2**63 - 1, -(2**63), 2**32, 65))
        elif what == 1:
            images.datatype = chance.choice(("FP32", "BYTES", "", "uint8", "INT64"))
        elif what == 2:
            request.raw_input_contents[chance.randrange(2)] = chance.randbytes(chance.choice((0, 1, 8, 16, SIZE * SIZE * 3)))
        elif what == 3:
            images.name = chance.choice(("encoded", "image", "", "targets", "softmax", "wanted"))
        elif what == 4:
            del request.raw_input_contents[chance.randrange(2)]
        elif what == 5:
            images.contents.uint_contents.extend([1, 2, 3])
        elif what == 6:
            targets.shape[:] = [chance.choice((-1, 0, 1, 2, 2**40)) for _ in range(chance.randrange(4))]
        yield mutated(request.SerializeToString(), chance) if chance.random() < 0.5 else request.SerializeToString()


async def send(port: int, method: str, messages: Iterator[bytes]) -> Counter[str]:
    codes: Counter[str] = Counter()

    async def client(channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(method, None, None)
        for message in messages:
            try:
                await call(message, timeout=60)
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1
            else:
                codes["OK"] += 1

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await asyncio.gather(*(client(channel) for _ in range(IN_FLIGHT)))
    return codes


def anonymous_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def test_damaged_images_and_messages(one_model: Path) -> None:
    streams: list[tuple[str, Callable[[Chance], Iterator[bytes]], set[str]]] = [
        (CLASSIFY, damaged_images, {"OK", "INVALID_ARGUMENT"}),
        (CLASSIFY, damaged_messages, MESSAGE_CODES),
        (INFER, damaged_tensors, MESSAGE_CODES),
    ]
    with server_process(one_model) as server:
        with Client(port=server.port) as client:
            client.wait_until_ready(timeout_s=60)
        for method, make, _ in streams:  # what a busy server holds is no growth
            asyncio.run(send(server.port, method, (message for message, _ in zip(make(random.Random(1)), range(500), strict=False))))
        before = anonymous_bytes(server.process.pid)
        for method, make, expected in streams:
            codes = asyncio.run(send(server.port, method, make(random.Random(2))))
            assert codes.keys() <= expected, codes
            assert min(codes["OK"], codes["INVALID_ARGUMENT"]) > 100, codes
        grown = anonymous_bytes(server.process.pid) - before
        assert grown <= GROWTH_BYTES, f"{grown / 1e6:.1f} MB"
        with Client(port=server.port) as client:
            assert client.classify(encode(scene((0, 255, 0), (40, 40, 120, 120)))).predictions[0].label == "green"


def test_the_seeds_are_images() -> None:
    for data in seeds():
        Image.open(io.BytesIO(data)).load()
