from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.helpers.service.http_requests import http_in_background
from tests.helpers.service.toy_model import ToyModel
from tlcli.contract.model.onnx_model import Model
from tlcli.service import Client, ServerSettings, in_background
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub

FIRST, SECOND = ToyModel.make(seed=1), ToyModel.make(seed=2)
"""Versions 1 and 2 of the model `toy`."""


@pytest.fixture(scope="session")
def one_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a repository with one model."""
    folder = tmp_path_factory.mktemp("one")
    FIRST.save(folder / "toy/1/model.onnx", "toy")
    return folder


@pytest.fixture(scope="session")
def many_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a repository with valid models, broken ones, and other entries."""
    folder = tmp_path_factory.mktemp("many")
    FIRST.save(folder / "toy/1/model.onnx", "toy")
    SECOND.save(folder / "toy/2/model.onnx", "toy")
    ToyModel.make(seed=3, faulty=True).save(folder / "faulty/1/model.onnx", "faulty")
    FIRST.save(folder / "damaged/9/model.onnx", "damaged")
    whole = (folder / "damaged/9/model.onnx").read_bytes()
    for name, content in {"damaged/10": whole[: len(whole) // 2], "broken/1": b"this is no model"}.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "model.onnx").write_bytes(content)
    (folder / "notes.txt").write_text("a file that is no model")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="session")
def port(many_models: Path) -> Iterator[int]:
    """Run a server of `many_models`, and yield its port."""
    with in_background(ServerSettings(models=many_models, port=0)) as port:
        yield port


@pytest.fixture(scope="session")
def client(port: int) -> Iterator[Client]:
    with Client(port=port) as client:
        yield client


@pytest.fixture(scope="session")
def stub(port: int) -> Iterator[ClassifierStub]:
    """Yield a stub as other clients have it, with plain messages and status codes."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield ClassifierStub(channel)


@pytest.fixture(scope="module")
def http_port(many_models: Path) -> Iterator[int]:
    with http_in_background(ServerSettings(models=many_models, port=0, http_port=0)) as port:
        yield port


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Yield an event for which the runs of models wait."""
    go, plain = threading.Event(), Model.run
    go.set()

    def run(self: Model, *args: object, **kwargs: object) -> object:
        assert go.wait(20)
        return plain(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "run", run)
    yield go
    go.set()
