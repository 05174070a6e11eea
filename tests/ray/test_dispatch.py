"""Calls dispatched without a gRPC server behave as with one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.helpers.service.sample_images import RED, encode, scene
from tlcli.ray.dispatch import Dispatch, Handlers
from tlcli.ray.ray_context import CallAborted, RayContext
from tlcli.service import ServerSettings
from tlcli.service.inference.components import Components
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.protocol.rpc_methods import Metadata
from tlcli.service.rpc.grpc_server import handlers, interceptors
from tlcli.service.security.tokens import reloading_tokens
from tlcli.service.telemetry.request_record import RequestRecord

IMAGE = pb.ClassifyRequest(encoded=encode(scene(RED, (30, 20, 90, 70)))).SerializeToString()
CLASSIFY, STREAM = "/tlcli.v1.Classifier/Classify", "/tlcli.v1.Classifier/ClassifyStream"


class RaysContext:
    """Fake of Ray's context."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata = metadata
        self.set: dict[str, Any] = {"code": 0}

    def invocation_metadata(self) -> Metadata:
        return self.metadata

    def code(self) -> Any:
        return self.set["code"]

    def set_code(self, code: grpc.StatusCode) -> None:
        self.set["code"] = code

    def set_details(self, details: str) -> None:
        self.set["details"] = details

    def set_trailing_metadata(self, metadata: list[tuple[str, Any]]) -> None:
        self.set["trailing"] = dict(metadata)


class Asked:
    """Dispatch over the components of a server."""

    def __init__(self, models: Path, tokens_file: Path | None = None) -> None:
        async def nothing() -> None:
            pass

        self.parts = Components.of(ServerSettings(models=models, tokens_file=tokens_file), on_change=nothing, is_serving=lambda: True)
        self.seen: list[RequestRecord] = []
        self.parts.recorder._on_end = (*self.parts.recorder._on_end, self.seen.append)
        offered = Handlers()
        offered.add_generic_rpc_handlers(handlers(self.parts))
        self.dispatch = Dispatch(offered, interceptors(self.parts, reloading_tokens(tokens_file)))

    async def __aenter__(self) -> Asked:
        self.parts.repository.discover()
        await self.parts.repository.load()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.parts.close()

    async def classify(self, context: RaysContext, path: str = CLASSIFY) -> pb.ClassifyResponse:
        call = RayContext(context)  # type: ignore[arg-type]
        return pb.ClassifyResponse.FromString(await self.dispatch.answer(path, IMAGE, call, call.invocation_metadata()))


def test_tokens_are_asked_for_and_calls_are_observed(one_model: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("secret")

    async def main() -> None:
        async with Asked(one_model, tokens) as asked:
            answer = await asked.classify(RaysContext(("authorization", "Bearer secret"), ("x-request-id", "id-1")))
            assert answer.predictions
            assert (asked.seen[-1].code, asked.seen[-1].model, asked.seen[-1].request_id) == ("OK", "toy", "id-1")
            context = RaysContext(("x-request-id", "id-2"))
            with pytest.raises(CallAborted):
                await asked.classify(context)
            assert context.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "no token: this server requires one" in context.set["details"]
            assert (asked.seen[-1].code, asked.seen[-1].request_id) == ("UNAUTHENTICATED", "id-2")

    asyncio.run(main())


def test_what_goes_behind_an_answer(one_model: Path) -> None:
    async def main() -> None:
        async with Asked(one_model) as asked:
            context = RaysContext(("x-request-id", "id-1"))
            await asked.classify(context)
            assert context.set == {"code": 0, "trailing": {"x-request-id": "id-1"}}
            unknown = RaysContext()
            with pytest.raises(CallAborted):
                await asked.classify(unknown, path="/tlcli.v1.Classifier/Nothing")
            assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(main())


def test_a_stream_is_written_to_its_context(one_model: Path) -> None:
    written: list[pb.ClassifyStreamResponse] = []

    async def write(message: pb.ClassifyStreamResponse) -> None:
        written.append(message)

    async def requests() -> AsyncIterator[bytes]:
        yield IMAGE
        yield b"nothing that can be read"

    async def main() -> None:
        async with Asked(one_model) as asked:
            await asked.dispatch.answer_stream(STREAM, requests(), RayContext(RaysContext(), write), ())  # type: ignore[arg-type]
            assert {one.code for one in asked.seen} == {"OK", "INVALID_ARGUMENT"}

    asyncio.run(main())
    assert [one.WhichOneof("result") for one in written] == ["response", "error"]
