"""Slots of a model's queue: requests that are refused, requests that wait, and no slot that is lost."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.helpers.service.sample_images import encode, scene
from tlcli.contract.errors import OverloadedError
from tlcli.service import AsyncClient, Client, ServerSettings, in_background
from tlcli.service.execution.admission import Admission
from tlcli.service.pb.tlcli.v1 import classifier_pb2 as pb
from tlcli.service.pb.tlcli.v1.classifier_pb2_grpc import ClassifierStub

PNG = encode(scene((200, 30, 30), (40, 40, 120, 120)))


def test_a_full_queue_refuses_with_a_retry_delay() -> None:
    admission = Admission("toy", 2, lambda: 0.25)
    first, _ = admission.acquire(), admission.acquire()
    with pytest.raises(OverloadedError, match=r"^queue of model 'toy' full \(2 images waiting\): retry in 500 ms$") as refused:
        admission.acquire()
    assert refused.value.retry_s == 0.5
    first.release()
    first.release()  # a slot is returned once
    admission.acquire()
    with pytest.raises(OverloadedError):
        admission.acquire()


def test_streams_wait_in_their_order() -> None:
    async def main() -> list[str]:
        admission = Admission("toy", 1, lambda: 0.0)
        slot = admission.acquire()
        entered: list[str] = []

        async def wait(name: str) -> None:
            own = await admission.acquire_in_turn()
            entered.append(name)
            await asyncio.sleep(0.01)
            own.release()

        tasks = [asyncio.ensure_future(wait(name)) for name in ("a", "b", "c", "d")]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        slot.release()
        await asyncio.wait_for(asyncio.gather(tasks[0], tasks[2], tasks[3]), 5)
        assert admission.used == 0
        return entered

    assert asyncio.run(main()) == ["a", "c", "d"]


def test_the_turn_of_a_cancelled_stream_goes_to_the_next() -> None:
    async def main() -> None:
        admission = Admission("toy", 1, lambda: 0.0)
        slot = admission.acquire()
        gone, next_one = (asyncio.ensure_future(admission.acquire_in_turn()) for _ in range(2))
        await asyncio.sleep(0)
        slot.release()  # wakes the first
        gone.cancel()  # which is cancelled before it runs
        await asyncio.wait_for(next_one, 5)
        assert admission.used == 1

    asyncio.run(main())


def test_over_the_wire(one_model: Path, held_up: threading.Event) -> None:
    with in_background(ServerSettings(models=one_model, port=0, max_batch_size=1, max_queue_size=3)) as port:
        held_up.clear()
        with ThreadPoolExecutor(8) as pool, Client(port=port, retries=0) as client, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            admitted = []
            refused: list[OverloadedError] = []
            while not refused:  # one runs, three wait
                asked = pool.submit(client.classify, PNG)
                try:
                    error = asked.exception(timeout=0.5)
                except TimeoutError:
                    admitted.append(asked)
                else:
                    assert isinstance(error, OverloadedError)
                    refused.append(error)
            assert len(admitted) == 4
            assert 0 < refused[0].retry_s < 10

            with pytest.raises(grpc.RpcError) as failed:
                ClassifierStub(channel).Classify(pb.ClassifyRequest(encoded=PNG))
            call = failed.value
            assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            pushback = dict(call.trailing_metadata())["grpc-retry-pushback-ms"]
            status, advice = rpc_status.from_call(call), error_details_pb2.RetryInfo()
            assert any(detail.Unpack(advice) for detail in status.details)
            assert abs(int(pushback) - advice.retry_delay.ToMilliseconds()) <= 1

            stream = client.classify_stream([PNG] * 20)  # a stream waits for slots instead
            held_up.set()
            assert all(asked.result(timeout=10).predictions for asked in admitted)
            assert len([answer.result() for answer in stream]) == 20
            assert client.classify(PNG).predictions


def test_our_clients_retry_after_the_delay(one_model: Path, held_up: threading.Event) -> None:
    async def at_once(port: int) -> list[str]:
        async with AsyncClient(port=port) as client:
            answers = await asyncio.gather(*(client.classify(PNG, request_id=str(number)) for number in range(2)))
        return [answer.request_id for answer in answers]

    with in_background(ServerSettings(models=one_model, port=0, max_batch_size=1, max_queue_size=1)) as port:
        held_up.clear()
        with ThreadPoolExecutor(8) as pool, Client(port=port) as patient, Client(port=port, retries=0) as other:
            under_way = []
            while True:  # one runs, one waits
                more = pool.submit(other.classify, PNG)
                try:
                    more.result(timeout=0.3)
                except TimeoutError:
                    under_way.append(more)
                except OverloadedError:
                    break
            waiting = [pool.submit(patient.classify, PNG), pool.submit(asyncio.run, at_once(port))]
            threading.Timer(0.05, held_up.set).start()
            assert waiting[0].result(timeout=10).predictions
            assert waiting[1].result(timeout=10) == ["0", "1"]
            assert all(one.result(timeout=10).predictions for one in under_way)
