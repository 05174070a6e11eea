"""Status codes that clients get from Ray's proxies, with Ray's own gRPC server and fake replicas."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import Mock

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.helpers.deploy.ray_cluster import ROOT
from tlcli.contract.errors import ImageError, OverloadedError, ServerError
from tlcli.ray.call_outcome import FROM_APPLICATION
from tlcli.ray.proxy import add_to_proxy
from tlcli.service import AsyncClient
from tlcli.service.pb.inference import open_inference_pb2
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub
from tlcli.service.protocol.error_status import RETRY_AFTER_MS, to_status
from tlcli.service.protocol.rpc_methods import SERVICES, path_of

GONE = "The actor died unexpectedly before finishing this task.\n\tclass_name: ServeReplica"
RAISED = "\x1b[36mray::ServeReplica:tlcli:Replica.handle_request()\x1b[39m (pid=1)\n  File ...\nAttributeError: no such method"
POLICY = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.01s",
                    "maxBackoff": "0.1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)

Replica = Callable[[str, Any, Any], bytes]
"""Fake replica: returns the response to a call's path, request and context."""


def says(code: grpc.StatusCode, message: str = "", then: bytes = b"", times: int = 10**6) -> Replica:
    """Return a replica that fails `times` times, as Ray's proxy reports a failure, and then returns `then`."""
    from ray.serve._private.grpc_util import set_grpc_code_and_details
    from ray.serve._private.proxy_request_response import ResponseStatus

    left = [times]

    def replica(path: str, request: Any, context: Any) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            return then
        set_grpc_code_and_details(context, ResponseStatus(code=code, is_error=True, message=message))
        return b""

    return replica


@asynccontextmanager
async def proxy(replica: Replica, add: Callable[[Any, Any], None] = add_to_proxy) -> AsyncIterator[int]:
    from ray.serve._private.grpc_util import gRPCGenericServer
    from ray.serve._private.proxy_request_response import gRPCStreamingType
    from ray.serve.grpc_util import RayServegRPCContext

    def factory(service_method: str, streaming_type: Any) -> Any:
        async def one(request: Any, context: Any) -> bytes:
            RayServegRPCContext(context)  # Ray takes what it needs of it
            return replica(service_method, request, context)

        async def several(requests: Any, context: Any) -> AsyncIterator[bytes]:
            async for request in requests:
                yield replica(service_method, request, context)

        return several if streaming_type is gRPCStreamingType.STREAM_STREAM else one

    server = gRPCGenericServer(factory)
    add(Mock(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def failure(replica: Replica, policy: str = "{}") -> grpc.aio.AioRpcError:
    """Return the error of a call of `ListModels`."""
    async with proxy(replica) as port, channel(port, policy) as opened:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ClassifierStub(opened).ListModels(pb.ListModelsRequest())
        return caught.value


def channel(port: int, policy: str = "{}") -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.service_config", policy)])


def trailing(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    return dict(error.trailing_metadata())  # type: ignore[call-overload]  # pairs, whatever the stubs say


def test_every_call_comes_as_bytes_and_goes_as_bytes() -> None:
    seen: list[tuple[str, Any]] = []

    def replica(path: str, request: Any, context: Any) -> bytes:
        seen.append((path, request))
        return request[::-1]

    async def main() -> None:
        async with proxy(replica) as port, channel(port) as opened:
            for service in SERVICES:
                for method in service.methods:
                    path = path_of(method)
                    if method.client_streaming:
                        call = opened.stream_stream(path)(iter([b"one", b"two"]))
                        assert [answer async for answer in call] == [b"eno", b"owt"]
                        assert seen[-2:] == [(path, b"one"), (path, b"two")]
                    else:
                        assert await opened.unary_unary(path)(b"once") == b"ecno"
                        assert seen[-1] == (path, b"once")
            assert await opened.unary_unary("/grpc.health.v1.Health/Check")(b"") == b""
            for path in ("/grpc.health.v1.Health/Watch", "/tlcli.v1.Classifier/Nothing"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await opened.unary_unary(path)(b"")
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(main())
    assert len(seen) == sum(len(service.methods) for service in SERVICES) + 2


def test_a_replica_that_is_gone_is_asked_for_again_by_any_standard_policy() -> None:
    answer = pb.ListModelsResponse(models=[pb.ModelStatus(name="toy")])

    async def main() -> None:
        gone = says(grpc.StatusCode.INTERNAL, GONE, answer.SerializeToString(), times=2)
        async with proxy(gone) as port, channel(port, POLICY) as opened:
            assert await ClassifierStub(opened).ListModels(pb.ListModelsRequest()) == answer

    asyncio.run(main())
    error = asyncio.run(failure(says(grpc.StatusCode.INTERNAL, GONE)))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == "the replica that processed this request died: retry to reach another replica"
    assert int(trailing(error)[RETRY_AFTER_MS]) > 0


def test_all_that_ray_says_of_what_died_is_known() -> None:
    from ray import exceptions

    died = [
        exceptions.RayActorError(),
        exceptions.ActorDiedError(),
        exceptions.ActorUnavailableError("the connection was closed", bytes(16)),
        exceptions.WorkerCrashedError(),
        exceptions.ObjectLostError("00", b"", ""),
        exceptions.OwnerDiedError("00", b"", ""),
    ]
    for error in died:
        told = asyncio.run(failure(says(grpc.StatusCode.INTERNAL, str(error))))
        assert told.code() is grpc.StatusCode.UNAVAILABLE, str(error)


def test_ray_alone_would_not_be_asked_again() -> None:
    """Reason for `tlcli.ray.proxy`: if this test fails, Ray has fixed the problem."""
    from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import add_ClassifierServicer_to_server

    async def main() -> None:
        unavailable = says(grpc.StatusCode.UNAVAILABLE, "no replica", pb.ListModelsResponse().SerializeToString(), times=1)
        async with proxy(unavailable, add_ClassifierServicer_to_server) as port, channel(port, POLICY) as opened:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ClassifierStub(opened).ListModels(pb.ListModelsRequest())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "message", "told"),
    [
        (grpc.StatusCode.INTERNAL, RAISED, grpc.StatusCode.INTERNAL),
        (grpc.StatusCode.INTERNAL, "Received message larger than max", grpc.StatusCode.INTERNAL),
        (grpc.StatusCode.UNAVAILABLE, "Deployment is unavailable because it failed to deploy.", grpc.StatusCode.UNAVAILABLE),
        (grpc.StatusCode.NOT_FOUND, "Application metadata not set.", grpc.StatusCode.NOT_FOUND),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Request timed out after 1s.", grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
def test_what_else_ray_says(code: grpc.StatusCode, message: str, told: grpc.StatusCode) -> None:
    """Errors that would happen again are not retried, and keep their message."""
    error = asyncio.run(failure(says(code, message)))
    assert error.code() is told
    assert message.splitlines()[-1] in (error.details() or "")
    assert (RETRY_AFTER_MS in trailing(error)) == (told is grpc.StatusCode.UNAVAILABLE)


def test_where_every_replica_is_busy_our_client_waits() -> None:
    answer = pb.ClassifyResponse(model="toy", timings=pb.Timings())
    error = asyncio.run(failure(says(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(trailing(error)[RETRY_AFTER_MS]) > 0
    advice = error_details_pb2.RetryInfo()
    assert any(one.Unpack(advice) for one in rpc_status.from_call(error).details)  # type: ignore[arg-type,union-attr]
    assert advice.retry_delay.ToMilliseconds() > 0

    async def main(busy: int, retries: int) -> str:
        full = says(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", answer.SerializeToString(), times=busy)
        async with proxy(full) as port, AsyncClient(port=port, retries=retries) as client:
            return (await client.classify(b"image")).model

    assert asyncio.run(main(busy=1, retries=1)) == "toy"
    with pytest.raises(OverloadedError, match="every replica is at its limit of requests: retry in 250 ms"):
        asyncio.run(main(busy=1, retries=0))


def test_a_refusal_of_the_application_is_told_as_it_is() -> None:
    """The status arrives with an empty response, which is how Ray carries it."""
    refusal = rpc_status.to_status(to_status(ImageError("4 bytes are not an image")))

    def replica(path: str, request: Any, context: Any) -> bytes:
        context.set_code(refusal.code)
        context.set_details(refusal.details)
        context.set_trailing_metadata([("request_id", "r1"), *refusal.trailing_metadata, FROM_APPLICATION])
        return b""

    async def main() -> None:
        async with proxy(replica) as port, AsyncClient(port=port) as client:
            with pytest.raises(ImageError, match=r"^4 bytes are not an image$"):
                await client.classify(b"nope")

    asyncio.run(main())
    error = asyncio.run(failure(replica))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert trailing(error)["request_id"] == "r1"
    assert trailing(error).keys() == {"request_id", "grpc-status-details-bin"}


def test_a_stream_whose_replica_dies_ends_as_unavailable() -> None:
    def replica(path: str, request: Any, context: Any) -> bytes:
        if request == b"last":
            return says(grpc.StatusCode.INTERNAL, GONE)(path, request, context)
        return request  # type: ignore[no-any-return]

    async def main() -> list[bytes]:
        answers = []
        async with proxy(replica) as port, channel(port) as opened:
            call = opened.stream_stream("/tlcli.v1.Classifier/ClassifyStream")(iter([b"one", b"last"]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012
                async for answer in call:
                    answers.append(answer)  # noqa: PERF401  # those before the end
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        return answers

    assert asyncio.run(main()) == [b"one"]


def test_reflection_knows_both_protocols() -> None:
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    names = [service.full_name for service in SERVICES]
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        *(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in names),
    ]

    async def main() -> list[Any]:
        async with proxy(says(grpc.StatusCode.INTERNAL)) as port, channel(port) as opened:
            stub = reflection_pb2_grpc.ServerReflectionStub(opened)
            return [answer async for answer in stub.ServerReflectionInfo(iter(asked))]

    listed, _, open_inference = asyncio.run(main())
    assert {one.name for one in listed.list_services_response.service} >= {*names, "grpc.health.v1.Health"}
    assert open_inference_pb2.DESCRIPTOR.serialized_pb in open_inference.file_descriptor_response.file_descriptor_proto


def test_a_proxy_needs_no_model() -> None:
    code = "import sys, tlcli.ray.proxy; print([name for name in ('numpy', 'onnxruntime', 'PIL', 'torch') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"


def test_a_status_without_ours_is_a_server_that_fails() -> None:
    """Our client reports a server error, not a bad request."""

    async def main() -> None:
        async with proxy(says(grpc.StatusCode.INTERNAL, GONE)) as port, AsyncClient(port=port, retries=0) as client:
            with pytest.raises(ServerError, match="the replica that processed this request died: retry to reach another replica"):
                await client.classify(b"image")

    asyncio.run(main())
