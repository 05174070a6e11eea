"""Paths outside of the repository, which neither names in requests nor locations of weights may reach."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.helpers.service.sample_images import RED, encode, scene
from tests.service.conftest import FIRST
from tests.service.repository.test_model_repository import loaded
from tlcli.contract.errors import NotFoundError
from tlcli.contract.model.external_weights import external_files
from tlcli.contract.model.repository_layout import model_names
from tlcli.service import Client, ModelState, ServerSettings, in_background
from tlcli.service.pb.inference import open_inference_pb2

IMAGE = encode(scene(RED, (30, 20, 90, 70)), "JPEG")


def save_with_weights_at(folder: Path, name: str, location: str, constant: bool = False) -> None:
    """Save the toy model with the weights of its last layer in another file, as an initializer or as a node's value."""
    path = folder / name / "1/model.onnx"
    FIRST.save(path, name)
    model = onnx.load(path)
    (weight,) = (one for one in model.graph.initializer if one.name == "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(FIRST.weight.nbytes)}.items():
        weight.external_data.add(key=key, value=value)
    if constant:
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["weight"], value=weight))
        model.graph.initializer.remove(weight)
    path.write_bytes(model.SerializeToString())


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Create a repository next to a file of weights that does not belong to it."""
    folder = tmp_path / "models"
    FIRST.save(folder / "toy/1/model.onnx", "toy")
    (tmp_path / "secret.bin").write_bytes(FIRST.weight.tobytes())
    return folder


@pytest.mark.parametrize("constant", [False, True])
def test_weights_outside_of_a_models_folder_are_not_read(
    constant: bool, repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    locations = {
        "up": "../../../secret.bin",
        "sideways": "../../toy/1/weights.bin",
        "absolute": str(tmp_path / "secret.bin"),
        "round": "../1/../../../secret.bin",
        "linked": "link.bin",
        "beyond": "folder/secret.bin",
    }
    (repository / "toy/1/weights.bin").write_bytes(FIRST.weight.tobytes())
    for name, location in locations.items():
        save_with_weights_at(repository, name, location, constant)
    (repository / "linked/1/link.bin").symlink_to(tmp_path / "secret.bin")
    (repository / "beyond/1/folder").symlink_to(tmp_path)
    with in_background(ServerSettings(models=repository, port=0)) as port, Client(port=port) as client:
        found = {one.name: one for one in client.list_models()}
        assert {name: one.state for name, one in found.items()} == {"toy": ModelState.READY, **dict.fromkeys(locations, ModelState.FAILED)}
        for name in locations:
            reason = found[name].reason
            assert reason.startswith(f"{repository / name}/1/model.onnx: ONNX Runtime cannot load it: ")
            assert any(part in reason for part in ("escapes model directory", "Absolute path not allowed")), reason
            assert f"{name} version 1: not served: {reason}" in caplog.text
        assert client.classify(IMAGE, model="toy").predictions


def test_weights_in_a_models_folder_are_read(repository: Path) -> None:
    save_with_weights_at(repository, "beside", "weights.bin")
    save_with_weights_at(repository, "linked", "link.bin")
    for name in ("beside", "linked"):
        (repository / name / "1/weights.bin").write_bytes(FIRST.weight.tobytes())
    (repository / "linked/1/link.bin").symlink_to("weights.bin")
    with in_background(ServerSettings(models=repository, port=0)) as port, Client(port=port) as client:
        logits = [[one.logit for one in client.classify(IMAGE, model=name).predictions] for name in ("toy", "beside", "linked")]
    np.testing.assert_array_equal(logits[1], logits[0])
    np.testing.assert_array_equal(logits[2], logits[0])


@pytest.mark.parametrize("name", ["..", ".", "../toy", "toy/1", "/etc", "toy\0", ".hidden", "toy/../toy", "models"])
def test_a_name_in_a_request_is_no_path(name: str, client: Client, many_models: Path) -> None:
    assert (many_models / "toy/1/model.onnx").is_file()
    with pytest.raises(NotFoundError, match="no model"):
        client.classify(IMAGE, model=name)
    for version in (name, "01", "1/", "../2", "1\n", "-1"):
        with pytest.raises(NotFoundError):
            client.get_model("toy", version)
    assert not client.is_ready(name)


def test_which_entries_of_the_folder_are_models(repository: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    FIRST.save(elsewhere / "1/model.onnx", "elsewhere")
    for name in (".hidden", "..data", "two words", "lost+found"):
        (repository / name).mkdir()
        (repository / name / "1").symlink_to(elsewhere / "1")
    (repository / "linked").symlink_to(elsewhere)  # as a folder that is kept up by links has it
    (repository / "dangling").symlink_to(tmp_path / "nosuch")
    (repository / "loop").symlink_to("loop")
    (repository / "cut").mkdir()
    (repository / "cut/1").symlink_to(tmp_path / "nosuch")
    (repository / "up").symlink_to("..")
    assert model_names(repository) == ["linked", "toy"]


@pytest.fixture
def with_weights(tmp_path: Path) -> Path:
    """Create a repository with one model, whose weights are in a file next to it."""
    save_with_weights_at(tmp_path, "toy", "weights.bin")
    (tmp_path / "toy/1/weights.bin").write_bytes(FIRST.weight.tobytes())
    return tmp_path


def first_logit(client: Client) -> float:
    return next(one.logit for one in client.classify(IMAGE, top_k=7).predictions if one.class_id == 0)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("location", ["weights.bin", "folder/weights.bin"])
def test_truncating_weights_of_a_served_model_changes_nothing(tmp_path: Path, location: str, constant: bool) -> None:
    save_with_weights_at(tmp_path, "toy", location, constant)
    weights = tmp_path / "toy/1" / location
    weights.parent.mkdir(exist_ok=True)
    weights.write_bytes(FIRST.weight.tobytes() + bytes(1 << 20))
    with in_background(ServerSettings(models=tmp_path, port=0)) as port, Client(port=port) as client:
        before = first_logit(client)
        assert str(weights) not in Path("/proc/self/maps").read_text()
        os.truncate(weights, 0)
        assert first_logit(client) == before
        weights.unlink()
        assert first_logit(client) == before


@pytest.mark.parametrize("mode", ["explicit", "poll"])
def test_changed_weights_are_loaded_even_if_the_graph_is_the_same(with_weights: Path, mode: str) -> None:
    settings = ServerSettings(models=with_weights, port=0, model_control=mode, poll_s=0.05)
    with in_background(settings) as port, Client(port=port) as client, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        before = first_logit(client)
        (with_weights / "toy/1/weights.bin").write_bytes((2 * FIRST.weight).tobytes())  # of the same size
        if mode == "explicit":
            load = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
            load(open_inference_pb2.RepositoryModelLoadRequest(model_name="toy").SerializeToString())
        until = time.monotonic() + 10
        bias = float(FIRST.bias[0])
        while abs(first_logit(client) - bias - 2 * (before - bias)) > 1e-4:
            assert mode == "poll"
            assert time.monotonic() < until
            time.sleep(0.05)


def test_polling_waits_for_weights_that_are_being_copied(with_weights: Path) -> None:
    async def main() -> None:
        repository = await loaded(with_weights)
        weights = with_weights / "toy/1/weights.bin"
        served = repository.find("toy", "")
        await repository.refresh()
        for size in (10, 20, len(FIRST.weight.tobytes())):
            weights.write_bytes((2 * FIRST.weight).tobytes()[:size])
            await repository.refresh()
            assert repository.find("toy", "") is served
        await repository.refresh()
        assert repository.find("toy", "") is not served
        repository.close()

    asyncio.run(main())


def test_files_of_weights_are_found_wherever_tensors_occur(tmp_path: Path) -> None:
    def tensor(location: str) -> onnx.TensorProto:
        one = onnx.TensorProto(name=location, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        one.external_data.add(key="offset", value="0")
        one.external_data.add(key="location", value=location)
        return one

    model = onnx.ModelProto(ir_version=10)
    model.graph.initializer.extend(
        [tensor("a"), tensor("b/c"), tensor("a"), onnx.numpy_helper.from_array(np.zeros(9999, np.float32), "in")]
    )
    inner = onnx.GraphProto(initializer=[tensor("d")])
    branch = onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner)
    model.graph.node.extend([branch, onnx.helper.make_node("Constant", [], ["e"], value=tensor("e"))])
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor("f"))
    model.functions.add(name="function").node.append(onnx.helper.make_node("Constant", [], ["g"], value=tensor("g")))
    model.graph.initializer.extend([tensor("../out"), tensor("/etc/passwd")])
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert external_files(path) == {name: tmp_path / name for name in ("a", "b/c", "d", "e", "f", "g")}
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        external_files(path)
    path.write_bytes(b"this is no model")
    assert external_files(path) == {}
