"""Open Inference Protocol with the clients of Triton and KServe: the answers are the model's, and the packages' messages do not clash.

Triton's client is imported into this process, where it registers messages of the same names as ours. KServe's client needs other versions
of its dependencies, and cannot be imported together with Triton's: it runs in an environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from tests.helpers import HELPERS
from tests.helpers.service.sample_images import BLUE, GREEN, RED, encode, scene
from tests.helpers.service.toy_model import GRID, LABELS, METHODS, SIZE, ToyAnswer, ToyModel
from tests.service.conftest import FIRST, SECOND
from tests.service.inference.test_classifier import TOLERANCE, network_input
from tlcli.contract.model.explain import explain
from tlcli.contract.model.onnx_model import Model
from tlcli.service import Client, Server, ServerSettings, in_background
from tlcli.service.inference.open_inference import STATES
from tlcli.service.pb.inference import open_inference_pb2
from tlcli.service.types.answer import ModelState

IMAGES = np.random.default_rng(7).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)
ENCODED = [encode(scene(color, (30, 20, 90, 70)), kind) for color, kind in ((RED, "JPEG"), (GREEN, "PNG"), (BLUE, "WEBP"))]

KSERVE = Path(sys.prefix) / "kserve/bin/python"
needs_kserve = pytest.mark.skipif(not KSERVE.exists(), reason=f"no {KSERVE}: make kserve")


@pytest.fixture(scope="module")
def triton_client(port: int) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield client


def given(**tensors: np.ndarray) -> list[triton.InferInput]:
    """Create inputs with the datatypes of the arrays."""
    inputs = []
    for name, values in tensors.items():
        tensor = triton.InferInput(name, values.shape, triton_datatype(values))
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def triton_datatype(values: np.ndarray) -> str:
    return {"uint8": "UINT8", "int64": "INT64", "bool": "BOOL", "object": "BYTES"}[values.dtype.name]


def wanted(*names: str) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput(name) for name in names]


def twins(images: np.ndarray, model: ToyModel = FIRST, softmax: bool = False) -> list[ToyAnswer]:
    return [model.answer(image, softmax) for image in images]


def resolved(answers: list[ToyAnswer], targets: list[list[int]]) -> list[list[int]]:
    """Return the class ids of ids and ranks."""
    orders = [np.argsort(-answer.logits, kind="stable") for answer in answers]
    return [[int(order[-one - 1]) if one < 0 else one for one in row] for order, row in zip(orders, targets, strict=True)]


def maps(answers: list[ToyAnswer], classes: list[list[int]], method: str) -> np.ndarray:
    """Return the maps of the classes, `[N, K, h, w]`."""
    return np.stack([getattr(answer, method)[row] for answer, row in zip(answers, classes, strict=True)])


def same(found: Any, expected: object) -> None:
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize(("version", "answered_by", "model"), [("1", "1", FIRST), ("2", "2", SECOND), ("", "2", SECOND)])
def test_scores_and_logits_are_the_default_outputs(
    triton_client: triton.InferenceServerClient, version: str, answered_by: str, model: ToyModel
) -> None:
    result = triton_client.infer("toy", given(images=IMAGES), model_version=version, request_id="mine")
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("toy", answered_by, "mine")
    assert [(one.name, one.datatype, [*one.shape]) for one in response.outputs] == [
        ("scores", "FP32", [3, len(LABELS)]),
        ("logits", "FP32", [3, len(LABELS)]),
    ]
    same(result.as_numpy("scores"), [one.scores for one in twins(IMAGES, model)])
    same(result.as_numpy("logits"), [one.logits for one in twins(IMAGES, model)])


def test_a_row_of_a_batch_equals_the_answer_to_the_image_alone(triton_client: triton.InferenceServerClient) -> None:
    asked = {"model_name": "toy", "model_version": "1", "outputs": wanted("logits", "gradcam", "eigengradcam")}
    together = triton_client.infer(inputs=given(images=IMAGES), **asked)
    for row, image in enumerate(IMAGES):
        alone = triton_client.infer(inputs=given(images=image[None]), **asked)
        for name in ("logits", "gradcam", "eigengradcam"):
            same(together.as_numpy(name)[row], alone.as_numpy(name)[0])


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_encoded_images_have_the_same_answers_as_with_classify(
    triton_client: triton.InferenceServerClient, client: Client, shape: tuple[int, ...]
) -> None:
    images = np.array(ENCODED, dtype=object).reshape(shape)
    result = triton_client.infer("toy", given(encoded=images), model_version="1", outputs=wanted("scores"))
    same(result.as_numpy("scores"), [FIRST.answer(network_input(one)).scores for one in ENCODED])
    for row, image in enumerate(ENCODED):
        found = {one.class_id: one.score for one in client.classify(image, model="toy", version="1", top_k=len(LABELS)).predictions}
        same(result.as_numpy("scores")[row], [found[class_id] for class_id in range(len(LABELS))])


def test_maps_are_returned_by_name_in_the_order_of_the_request(triton_client: triton.InferenceServerClient) -> None:
    result = triton_client.infer("toy", given(images=IMAGES), model_version="1", outputs=wanted("gradcam", "classes", "cam"))
    assert [one.name for one in result.get_response().outputs] == ["gradcam", "classes", "cam"]
    answers = twins(IMAGES)
    best = resolved(answers, [[-1]] * 3)
    assert result.as_numpy("classes").tolist() == best
    same(result.as_numpy("cam"), maps(answers, best, "cam"))
    same(result.as_numpy("gradcam"), maps(answers, best, "gradcam"))


@pytest.mark.parametrize("targets", [[3, -1, -7, 3], [[3, -1, -7, 3]], [[0, -1], [-2, 5], [6, 6]]])
@pytest.mark.parametrize("softmax", [None, np.array([True]), np.array([[True]]), np.array([False])])
def test_classes_by_id_and_rank_for_all_images_or_each(
    triton_client: triton.InferenceServerClient, targets: list[Any], softmax: np.ndarray | None
) -> None:
    more = {} if softmax is None else {"softmax": softmax}
    asked = given(images=IMAGES, targets=np.array(targets, np.int64), **more)
    result = triton_client.infer("toy", asked, model_version="1", outputs=wanted("classes", "gradcam"))
    answers = twins(IMAGES, softmax=softmax is not None and bool(softmax.any()))
    rows = np.atleast_2d(targets).tolist()
    expected = resolved(answers, rows if len(rows) == 3 else rows * 3)
    assert result.as_numpy("classes").tolist() == expected
    same(result.as_numpy("gradcam"), maps(answers, expected, "gradcam"))


def test_classes_without_a_map_are_ranked_too(triton_client: triton.InferenceServerClient) -> None:
    asked = given(images=IMAGES, targets=np.array([[-1, 4, -7]]))
    result = triton_client.infer("toy", asked, model_version="1", outputs=wanted("classes"))
    assert result.as_numpy("classes").tolist() == resolved(twins(IMAGES), [[-1, 4, -7]] * 3)


def test_every_map_of_the_description_is_that_of_explain(triton_client: triton.InferenceServerClient, many_models: Path) -> None:
    targets = np.array([[0, -1], [2, -2], [5, 1]])
    asked = given(images=IMAGES, targets=targets, max_channels=np.array([2]))
    result = triton_client.infer("toy", asked, model_version="1", outputs=wanted(*METHODS))
    expected = explain(Model.open(many_models / "toy/1/model.onnx", "cpu"), IMAGES, targets, METHODS, max_channels=2)
    for method in METHODS:
        same(result.as_numpy(method), expected.maps[method])


def test_more_images_than_one_run_holds_keep_their_order(triton_client: triton.InferenceServerClient) -> None:
    many = np.random.default_rng(8).integers(0, 256, (3 * ServerSettings().max_batch_size + 1, SIZE, SIZE, 3), dtype=np.uint8)
    targets = np.arange(len(many))[:, None] % len(LABELS)
    result = triton_client.infer("toy", given(images=many, targets=targets), model_version="1", outputs=wanted("logits", "cam"))
    answers = twins(many)
    same(result.as_numpy("logits"), [one.logits for one in answers])
    same(result.as_numpy("cam"), maps(answers, targets.tolist(), "cam"))


def typed_request(**contents: tuple[str, list[int], str, list[Any]]) -> service_pb2.ModelInferRequest:
    """Create a request with separate values: for each input its datatype, shape, field and values."""
    request = service_pb2.ModelInferRequest(model_name="toy", model_version="1", id="typed")
    for name, (datatype, shape, field, values) in contents.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape, contents={field: values})
    return request


@pytest.fixture(scope="module")
def infer(port: int) -> Iterator[grpc.UnaryUnaryMultiCallable]:
    """Yield the call `ModelInfer` with Triton's messages."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )


def test_typed_contents_are_read_and_answered_raw(infer: grpc.UnaryUnaryMultiCallable) -> None:
    request = typed_request(
        images=("UINT8", [3, SIZE, SIZE, 3], "uint_contents", IMAGES.ravel().tolist()),
        targets=("INT64", [1, 2], "int64_contents", [2, -1]),
        softmax=("BOOL", [1], "bool_contents", [True]),
    )
    for name in ("scores", "gradcam"):
        request.outputs.add(name=name)
    response = infer(request)
    scores, gradcam = response.raw_output_contents
    assert not any(one.HasField("contents") for one in response.outputs)
    assert response.id == "typed"
    answers = twins(IMAGES, softmax=True)
    same(np.frombuffer(scores, "<f4").reshape(3, -1), [one.scores for one in answers])
    same(np.frombuffer(gradcam, "<f4").reshape(3, 2, GRID, GRID), maps(answers, resolved(answers, [[2, -1]] * 3), "gradcam"))


def test_encoded_images_may_be_typed_contents(infer: grpc.UnaryUnaryMultiCallable) -> None:
    response = infer(typed_request(encoded=("BYTES", [3], "bytes_contents", ENCODED)))
    scores = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(3, -1)
    same(scores, [FIRST.answer(network_input(one)).scores for one in ENCODED])


def test_metadata_describe_inputs_and_outputs(triton_client: triton.InferenceServerClient, port: int) -> None:
    found = triton_client.get_model_metadata("toy", as_json=True)
    assert (found["name"], found["platform"], found["versions"]) == ("toy", "onnxruntime_onnx", ["1", "2"])
    assert [(one["name"], one["datatype"], [int(size) for size in one["shape"]]) for one in found["inputs"]] == [
        ("images", "UINT8", [-1, SIZE, SIZE, 3]),
        ("encoded", "BYTES", [-1]),
        ("targets", "INT64", [-1, -1]),
        ("softmax", "BOOL", [1]),
        ("max_channels", "INT64", [1]),
    ]
    assert [(one["name"], one["datatype"], [int(size) for size in one["shape"]]) for one in found["outputs"]] == [
        ("scores", "FP32", [-1, len(LABELS)]),
        ("logits", "FP32", [-1, len(LABELS)]),
        ("classes", "INT64", [-1, -1]),
        *((method, "FP32", [-1, -1, GRID, GRID]) for method in METHODS),
    ]
    # Triton's messages have no properties
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
        answer = open_inference_pb2.ModelMetadataResponse.FromString(
            ask(open_inference_pb2.ModelMetadataRequest(name="toy").SerializeToString())
        )
    assert json.loads(answer.properties["labels"]) == [*LABELS]


def test_a_dynamic_model_accepts_any_size(tmp_path: Path) -> None:
    ToyModel.make(seed=5, dynamic=True).save(tmp_path / "any/1/model.onnx", "any")
    images = np.random.default_rng(1).integers(0, 256, (2, 2 * SIZE, 3 * SIZE, 3), dtype=np.uint8)
    with (
        in_background(ServerSettings(models=tmp_path, port=0)) as port,
        triton.InferenceServerClient(f"127.0.0.1:{port}") as client,
    ):
        found = client.get_model_metadata("any", as_json=True)
        assert [int(size) for size in found["inputs"][0]["shape"]] == [-1, -1, -1, 3]
        assert all([int(size) for size in one["shape"]] == [-1] * 4 for one in found["outputs"][3:])
        result = client.infer("any", given(images=images), outputs=wanted("logits", "cam"))
    expected = Model.open(tmp_path / "any/1/model.onnx", "cpu").run(images, methods=["cam"])
    same(result.as_numpy("logits"), expected.logits)
    same(result.as_numpy("cam"), expected.maps["cam"])
    assert result.as_numpy("cam").shape == (2, 1, 2 * GRID, 3 * GRID)


def test_readiness_is_reported_without_errors(triton_client: triton.InferenceServerClient) -> None:
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    states = {
        (name, version): triton_client.is_model_ready(name, version)
        for name, version in [("toy", ""), ("toy", "1"), ("toy", "7"), ("damaged", ""), ("damaged", "10"), ("broken", ""), ("nosuch", "")]
    }
    assert [key for key, ready in states.items() if ready] == [("toy", ""), ("toy", "1"), ("damaged", "")]
    found = triton_client.get_server_metadata()
    assert (found.name, found.version, [*found.extensions]) == ("tlcli", metadata.version("tlcli"), ["model_repository"])


def test_nothing_is_ready_before_loading_and_during_shutdown(one_model: Path) -> None:
    async def states(client: triton_aio.InferenceServerClient) -> tuple[bool, bool, bool, str]:
        (one,) = (await client.get_model_repository_index()).models
        return await client.is_server_live(), await client.is_server_ready(), await client.is_model_ready("toy"), one.state

    async def ask() -> None:
        server = Server(ServerSettings(models=one_model, port=0, pre_stop_s=1))
        port = await server.start()
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert await states(client) == (True, False, False, "LOADING")
            with pytest.raises(InferenceServerException, match="still loading") as refused:
                await client.infer("toy", given(images=IMAGES))
            assert refused.value.status() == "StatusCode.UNAVAILABLE"
            await server.load()
            assert await states(client) == (True, True, True, "READY")
            stopping = asyncio.create_task(server.stop())
            await asyncio.sleep(0.1)
            assert await states(client) == (True, False, True, "READY")  # requests that come all the same are answered
            same((await client.infer("toy", given(images=IMAGES))).as_numpy("scores"), [one.scores for one in twins(IMAGES)])
            await stopping

    asyncio.run(ask())


def test_the_index_lists_what_is_in_the_repository(triton_client: triton.InferenceServerClient) -> None:
    found = {(one.name, one.version): (one.state, one.reason) for one in triton_client.get_model_repository_index().models}
    assert {key: state for key, (state, _) in found.items()} == {
        ("broken", "1"): "UNAVAILABLE",
        ("damaged", "9"): "READY",
        ("damaged", "10"): "UNAVAILABLE",
        ("faulty", "1"): "READY",
        ("toy", "1"): "READY",
        ("toy", "2"): "READY",
    }
    assert all(("ONNX Runtime cannot load it" in reason) == (state == "UNAVAILABLE") for state, reason in found.values())


def test_the_asynchronous_client_sends_concurrent_requests(port: int) -> None:
    async def ask() -> list[Any]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert await client.is_model_ready("toy")
            asked = [
                client.infer("toy", given(images=image[None]), model_version="1", request_id=str(row)) for row, image in enumerate(IMAGES)
            ]
            return await asyncio.gather(*asked)

    for row, result in enumerate(asyncio.run(ask())):
        assert result.get_response().id == str(row)
        same(result.as_numpy("logits")[0], FIRST.answer(IMAGES[row]).logits)


def test_our_client_and_tritons_work_in_one_process(triton_client: triton.InferenceServerClient, client: Client) -> None:
    ours = client.classify(IMAGES[0], model="toy", version="1", top_k=1).predictions[0]
    theirs = triton_client.infer("toy", given(images=IMAGES[:1]), model_version="1").as_numpy("scores")[0]
    assert ours.class_id == int(theirs.argmax())
    same(ours.score, theirs.max())


def messages(descriptor: Descriptor) -> Iterator[Descriptor]:
    yield descriptor
    for nested in descriptor.nested_types:
        yield from messages(nested)


def test_our_messages_are_tritons_on_the_wire() -> None:
    theirs = service_pb2.DESCRIPTOR.pool
    beside_theirs = {"ModelMetadataResponse.properties", "ModelMetadataResponse.PropertiesEntry"}
    for top in open_inference_pb2.DESCRIPTOR.message_types_by_name.values():
        for ours in messages(top):
            if ours.full_name.removeprefix("inference.") in beside_theirs:
                continue
            twin = theirs.FindMessageTypeByName(ours.full_name)
            fields = {one.name: one for one in ours.fields if f"{ours.name}.{one.name}" not in beside_theirs}
            assert fields.keys() == {one.name for one in twin.fields}
            for name, one in fields.items():
                other = twin.fields_by_name[name]
                assert (one.number, one.type, one.is_repeated) == (other.number, other.type, other.is_repeated), f"{ours.full_name}.{name}"
    (ours,) = open_inference_pb2.DESCRIPTOR.services_by_name.values()
    for method in ours.methods:
        other = theirs.FindServiceByName(ours.full_name).methods_by_name[method.name]
        assert (method.input_type.full_name, method.output_type.full_name) == (other.input_type.full_name, other.output_type.full_name)


def test_our_messages_are_not_in_protobufs_own_pool() -> None:
    code = (
        "import tlcli.service.server, google.protobuf.descriptor_pool as pools\n"
        "try: pools.Default().FindMessageTypeByName('inference.ModelInferRequest')\n"
        "except KeyError: print('apart')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "apart\n"


def test_reflection_lists_both_services_and_their_messages(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {"inference.GRPCInferenceService", "tlcli.v1.Classifier", "grpc.health.v1.Health"} <= {*database.get_services()}
        pool = DescriptorPool(database)
        found = pool.FindMessageTypeByName("inference.ModelInferRequest")
        assert {one.name: one.number for one in found.fields} == {
            one.name: one.number for one in open_inference_pb2.ModelInferRequest.DESCRIPTOR.fields
        }
        assert "properties" in pool.FindMessageTypeByName("inference.ModelMetadataResponse").fields_by_name  # ours, not Triton's
        assert "ModelInfer" in pool.FindServiceByName("inference.GRPCInferenceService").methods_by_name
        assert "Classify" in pool.FindServiceByName("tlcli.v1.Classifier").methods_by_name
        with pytest.raises(KeyError):
            pool.FindMessageTypeByName("inference.NoSuchMessage")


def test_the_health_protocol_is_served_too(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        assert check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        assert check(health_pb2.HealthCheckRequest(service="toy")).status == health_pb2.HealthCheckResponse.SERVING


def test_every_state_of_a_model_has_a_name_in_the_index() -> None:
    assert STATES.keys() == {*ModelState}


@needs_kserve
def test_kserves_client(port: int, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    (tmp_path / "image").write_bytes(ENCODED[0])
    script = HELPERS / "service/kserve_requests.py"
    done = subprocess.run([KSERVE, script, str(port), tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["live"]
    assert found["ready"]
    assert found["models"] == {"toy": True, "broken": False, "nosuch": False}
    answers = twins(IMAGES)
    for sent in ("raw", "typed"):
        assert found[sent]["version"] == "1"
        assert found[sent]["id"] == sent
        same(found[sent]["scores"], [one.scores for one in answers])
        same(found[sent]["cam"], maps(answers, resolved(answers, [[0, -1]] * 3), "cam"))
    same(found["encoded"], [FIRST.answer(network_input(ENCODED[0])).scores])
    assert found["refusal"] == [
        "INVALID_ARGUMENT",
        "model 'toy' has no input 'nosuch'; it has: images, encoded, targets, softmax, max_channels",
    ]


@needs_kserve
def test_kserves_messages_and_ours_live_in_one_process() -> None:
    code = """
import importlib.util, sys
import tlcli.service.server
from tlcli.service.pb.inference import open_inference_pb2 as ours
spec = importlib.util.spec_from_file_location("theirs", sys.argv[1])
theirs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(theirs)
request = theirs.ModelInferRequest(model_name="toy", id="x", raw_input_contents=[b"abc"])
request.inputs.add(name="images", datatype="UINT8", shape=[1, 3])
read = ours.ModelInferRequest.FromString(request.SerializeToString())
print(read.model_name, read.id, read.raw_input_contents, [*read.inputs[0].shape])
"""
    (file,) = KSERVE.parents[1].glob("lib/python*/site-packages/kserve/protocol/grpc/grpc_predict_v2_pb2.py")
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, check=False)
    assert done.stdout == "toy x [b'abc'] [1, 3]\n", done.stderr
