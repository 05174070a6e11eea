"""Tests of loads, unloads and swaps under load: requests fail only with the expected errors, and each is answered by the right version."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.helpers.service.sample_images import encode, scene
from tests.helpers.service.toy_model import PREPROCESSING, ToyModel
from tlcli.contract.errors import NotFoundError
from tlcli.contract.images import decoding
from tlcli.service import Client, ServerSettings, in_background

CHANGES, CLIENTS = 50, 8
IMAGE = encode(scene((200, 30, 30), (40, 40, 120, 120)))


def save(folder: Path, version: int, seed: int, name: str = "toy") -> None:
    ToyModel.make(seed=seed).save(folder / name / str(version) / "model.onnx", name)


def logits(seed: int) -> np.ndarray:
    return ToyModel.make(seed=seed).answer(PREPROCESSING.apply(decoding.decode(IMAGE))).logits


@pytest.fixture
def controlled(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """Yield a folder, and the port of a server that loads from it on request and serves the latest version of each model."""
    save(tmp_path, 1, seed=1)
    save(tmp_path, 1, seed=1, name="steady")
    with in_background(ServerSettings(models=tmp_path, port=0, model_control="explicit", versions="latest")) as port:
        yield tmp_path, port


def test_by_a_client_that_we_did_not_write(controlled: tuple[Path, int]) -> None:
    folder, port = controlled
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        save(folder, 2, seed=2)
        client.load_model("toy")
        assert client.is_model_ready("toy", "2")
        assert not client.is_model_ready("toy", "1")
        client.unload_model("toy")
        assert not client.is_model_ready("toy")
        index = {one.name: (one.version, one.state, one.reason) for one in client.get_model_repository_index().models}
        assert index == {"steady": ("1", "READY", ""), "toy": ("2", "UNAVAILABLE", "it was unloaded")}
        (folder / "toy/3").mkdir()
        (folder / "toy/3/model.onnx").write_bytes(b"this is no model")
        client.load_model("steady")
        with pytest.raises(InferenceServerException, match=r"toy version 3: .*cannot load it"):
            client.load_model("toy")
        for name in ("nobody", "../steady"):
            with pytest.raises(InferenceServerException, match="no model") as caught:
                client.load_model(name)
            assert caught.value.status() == "StatusCode.NOT_FOUND"
        with pytest.raises(InferenceServerException, match="no model 'nobody'"):
            client.unload_model("nobody")


def test_while_clients_ask(controlled: tuple[Path, int]) -> None:
    folder, port = controlled
    over = threading.Event()
    answered: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    newest = 1  # the version is its model's seed

    def ask(number: int) -> None:
        with Client(port=port) as client:
            while not over.is_set():
                version = ("", str(newest), "steady")[number % 3]
                try:
                    if version == "steady":
                        answer = client.classify(IMAGE, model="steady", top_k=7)
                    else:
                        answer = client.classify(IMAGE, model="toy", version=version, top_k=7, cam="gradcam")
                except NotFoundError as error:
                    refused[refusal(version, str(error))] += 1
                    continue
                seed = 1 if version == "steady" else int(answer.version)
                assert version in ("", "steady", answer.version)
                expected = logits_of[seed]
                for one in answer.predictions:
                    assert abs(one.logit - expected[one.class_id]) < 1e-4
                answered[answer.model] += 1

    def refusal(version: str, message: str) -> str:
        """Return the expected errors: the model is unloaded, or the requested version was replaced."""
        assert version != "steady", message
        if "is not loaded: it was unloaded" in message:
            return "unloaded"
        assert version, message
        assert f"no version '{version}'" in message, message
        return "replaced"

    logits_of = {seed: logits(seed) for seed in range(1, CHANGES + 2)}
    with ThreadPoolExecutor(CLIENTS) as pool, triton.InferenceServerClient(f"127.0.0.1:{port}") as control:
        clients = [pool.submit(ask, number) for number in range(CLIENTS)]
        try:
            for change in range(CHANGES):
                if change % 5 == 4:
                    control.unload_model("toy")
                else:
                    save(folder, newest + 1, seed=newest + 1)
                    newest += 1
                control.load_model("toy")
        finally:
            over.set()
        for client in clients:
            client.result(timeout=30)
    assert answered["steady"] > CHANGES
    assert answered["toy"] > CHANGES
    assert refused.keys() <= {"unloaded", "replaced"}


def test_health_and_a_followed_folder(tmp_path: Path) -> None:
    save(tmp_path, 1, seed=1)
    settings = ServerSettings(models=tmp_path, port=0, model_control="poll", poll_s=0.05)
    with in_background(settings) as port, Client(port=port) as client:
        save(tmp_path, 1, seed=2, name="newcomer")
        client.wait_until_ready(timeout_s=10, model="newcomer")
        expected = logits(2)
        for one in client.classify(IMAGE, model="newcomer", top_k=7).predictions:
            assert abs(one.logit - expected[one.class_id]) < 1e-4
        with (
            triton.InferenceServerClient(f"127.0.0.1:{port}") as other,
            pytest.raises(InferenceServerException, match="model_control poll"),
        ):
            other.load_model("newcomer")
