"""Memory of gRPC messages that have not arrived in full: bounded, and returned."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.helpers.service.server_process import ServerProcess, server_process
from tests.helpers.service.unfinished_call import UnfinishedCall, send_unfinished
from tlcli.service import Client, ServerSettings
from tlcli.service.server import Server

MESSAGE_BYTES = 16_000_000
BUDGET_BYTES = 160 << 20


def resident_mib(server: ServerProcess) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) // 1024


@pytest.mark.parametrize("path", ["/tlcli.v1.Classifier/Classify", "/tlcli.v1.Classifier/ClassifyStream", "/grpc.health.v1.Health/Watch"])
def test_unfinished_messages_stay_within_the_budget(one_model: Path, path: str) -> None:
    """Thirty messages of 16 MB take 480 MB; the budget is 160 MB."""
    with server_process(one_model, max_memory_bytes=BUDGET_BYTES) as server, Client(port=server.port) as client:
        client.wait_until_ready(120)
        image = np.zeros((32, 48, 3), dtype=np.uint8)
        client.classify(image)
        before = resident_mib(server)
        calls = [UnfinishedCall(server.port, MESSAGE_BYTES, path) for _ in range(30)]
        peak = before
        end = time.monotonic() + 20
        while time.monotonic() < end and any(call.left and not call.ended for call in calls):
            send_unfinished(calls, timeout_s=0.1)
            peak = max(peak, resident_mib(server))
        ended = sum(call.ended for call in calls)
        assert 10 <= ended < 30, "the longest are ended, the others go on"
        assert peak < before + (BUDGET_BYTES >> 20) + 100
        assert client.classify(image).predictions, "others are served"
        for call in calls:
            call.close()
        end = time.monotonic() + 10
        while resident_mib(server) > before + 50 and time.monotonic() < end:
            time.sleep(0.2)
        assert resident_mib(server) <= before + 50
        assert any("calls whose messages have not arrived in full" in line for line in server.log)
        assert not [line for line in server.log if "Traceback" in line or "Error" in line]


def test_a_call_without_a_message_is_refused(one_model: Path) -> None:
    import grpc

    with server_process(one_model) as server:
        channel = grpc.insecure_channel(f"127.0.0.1:{server.port}")
        call = channel.stream_unary("/tlcli.v1.Classifier/Classify", None, None)
        with pytest.raises(grpc.RpcError) as refused:
            call(iter(()), timeout=10)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details() == "the call ended before its message was complete: send one message"


def test_the_memory_of_models_does_not_count_as_messages(one_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a health check before the models are loaded, their memory must not count as that of messages."""
    growth = iter([100, 900])
    monkeypatch.setattr("tlcli.service.rpc.interceptors._process_bytes", lambda: next(growth))

    async def main() -> tuple[int | None, int | None]:
        server = Server(ServerSettings(models=one_model, port=0, grace_s=0))
        port = await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert server._grpc is not None
        before = server._grpc._unread._first_bytes
        await server.load()
        after = server._grpc._unread._first_bytes
        await server.stop()
        return before, after

    assert asyncio.run(main()) == (100, 900)
