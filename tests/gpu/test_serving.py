"""A server on a GPU: what comes in one run is answered as what comes alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.gpu.test_maps import TOLERANCE, far
from tests.helpers.exports.small_networks import blobs
from tlcli.contract.model.onnx_model import Model
from tlcli.service import AsyncClient, Client, ServerSettings, in_background


@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_answers_under_load_are_those_of_the_cpu(models: Path, name: str) -> None:
    """As many at a time as fit in batches, so that runs of every size take place, with maps and without."""
    images = np.concatenate([blobs(), blobs()[:, ::-1], blobs()[:, :, ::-1], 255 - blobs()])
    reference = Model.open(models / name / "1" / "model.onnx", device="cpu")
    seen = np.stack([reference.description.preprocessing.apply(Image.fromarray(image)) for image in images])
    expected = reference.run(seen, methods=["gradcam"])

    async def ask_all(port: int) -> None:
        async with AsyncClient(port=port) as client:
            for round_ in range(3):
                methods = ["gradcam" if (number + round_) % 3 else None for number in range(len(images))]
                batch = [(Image.fromarray(image), method) for image, method in zip(images, methods, strict=True)]
                asks = [client.classify(photo, model=name, cam=method) for photo, method in batch]
                for number, answer in enumerate(await asyncio.gather(*asks)):
                    best = answer.predictions[0]
                    assert best.score == pytest.approx(float(expected.scores[number].max()), abs=TOLERANCE)
                    if methods[number] is not None:
                        assert best.map is not None
                        assert far(best.map.values, expected.maps["gradcam"][number, 0]) < TOLERANCE

    with in_background(ServerSettings(models=models, port=0, device="cuda", max_queue_size=64)) as port:
        asyncio.run(ask_all(port))
        with Client(port=port) as client:
            assert client.get_model(name).device == "cuda"
