"""Batches: which requests share a run, in which order, and that every request gets its own answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from tlcli.contract.errors import ImageError, ServerError
from tlcli.contract.images.network_input import NetworkInput
from tlcli.contract.model.onnx_model import Answer
from tlcli.service.execution.batching import Batcher, Batching, MapRequest, MixedBatchPolicy
from tlcli.service.system.thread_pool import Workers

CLASSES = 10
GRADCAM = MapRequest((-1,), ("gradcam",))
FREE = MixedBatchPolicy(frozenset({"gradcam"}), run_s=1.0, map_s=0.0)


def make_image(number: int, size: int = 4) -> npt.NDArray[np.uint8]:
    return np.full((1, size, size, 3), number, dtype=np.uint8)


@dataclass
class Recorder:
    """Model that returns an image's number, and waits for `go`.

    runs: images' numbers, targets and maps of each run. threads: that they were run in.
    """

    go: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    runs: list[tuple[list[int], list[list[int]], tuple[str, ...]]] = field(default_factory=list)
    threads: list[str] = field(default_factory=list)
    under_way: int = 0

    def __call__(self, images: npt.NDArray[np.uint8], targets: npt.NDArray[np.int64], methods: tuple[str, ...], softmax: bool) -> Answer:
        numbers = images[:, 0, 0, 0].tolist()
        self.runs.append((numbers, targets.tolist(), methods))
        self.threads.append(threading.current_thread().name.partition("_")[0])
        assert not self.under_way
        self.under_way += 1
        self.begun.set()
        assert self.go.wait(10)
        self.under_way -= 1
        if 99 in numbers:
            raise ValueError("this image cannot be run")
        scores = np.repeat(np.float32(numbers)[:, None], CLASSES, 1)
        maps = {name: (1000 * scores[:, :1, None, None] + targets[:, :, None, None]).astype(np.float32) for name in methods}
        return Answer(scores, scores, targets if methods else None, maps)


@pytest.fixture
def thread() -> Iterator[Workers]:
    workers = Workers(1, "model")
    yield workers
    workers.close()


@pytest.fixture
def model() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    recorder.go.set()


Make = Callable[..., Batcher]


@pytest.fixture
def make(thread: Workers, model: Recorder) -> Make:
    def made(max_size: int = 4, delay_s: float = 0.0, sharing: MixedBatchPolicy = FREE, any_thread: bool = False) -> Batcher:
        return Batcher(thread, model, Batching(max_size, delay_s), sharing, any_thread=any_thread)

    return made


@pytest.fixture
def decoders() -> Iterator[Workers]:
    workers = Workers(2, "decoder")
    yield workers
    workers.close()


def seeing(number: int) -> Callable[[], NetworkInput]:
    return lambda: NetworkInput(make_image(number), (0.0, 0.0, 4.0, 4.0), None)


async def see(batcher: Batcher, decoders: Workers, number: int) -> float:
    seen, ran = await batcher.decode_and_submit(seeing(number), decoders, MapRequest())
    assert seen.value.images[0, 0, 0, 0] == number
    return float(ran.value.scores[0, 0])


async def held_up(batcher: Batcher, model: Recorder) -> asyncio.Task[object]:
    """Start a run that does not end before `model.go` is set."""
    first = asyncio.ensure_future(batcher.submit(make_image(0), MapRequest()))
    await asyncio.to_thread(model.begun.wait, 10)
    return first


def start(batcher: Batcher, number: int, wanted: MapRequest = MapRequest(), size: int = 4) -> asyncio.Task[float]:  # noqa: B008
    async def ask() -> float:
        answer = (await batcher.submit(make_image(number, size), wanted)).value
        assert answer.scores.shape == (1, CLASSES)
        assert (answer.classes is None) == (not wanted.methods)
        assert answer.maps.keys() == set(wanted.methods)
        for values in answer.maps.values():
            assert values[0, :, 0, 0].tolist() == [1000 * number + target for target in wanted.targets]
        return float(answer.scores[0, 0])

    return asyncio.ensure_future(ask())


async def asked(batcher: Batcher, model: Recorder, *wanted: MapRequest) -> list[float]:
    """Submit images 1, 2, ... while image 0 runs, and return their answers in their order."""
    first = await held_up(batcher, model)
    tasks = [start(batcher, number, one) for number, one in enumerate(wanted, 1)]
    await asyncio.sleep(0)
    model.go.set()
    await first
    return await asyncio.gather(*tasks)


def test_images_that_arrive_during_a_run_share_the_next(make: Make, model: Recorder) -> None:
    async def main() -> list[float]:
        return await asked(make(max_size=4), model, *[MapRequest()] * 9)

    assert asyncio.run(main()) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [numbers for numbers, _, _ in model.runs] == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_an_idle_model_starts_at_once(make: Make, model: Recorder) -> None:
    async def main() -> float:
        model.go.set()
        return await asyncio.wait_for(start(make(delay_s=0.0), 7), 5)

    assert asyncio.run(main()) == 7


def test_different_kinds_of_maps_do_not_share_a_run_and_none_starves(make: Make, model: Recorder) -> None:
    two = MapRequest((3, -1), ("gradcam",))
    kinds = [
        two,
        GRADCAM,
        MapRequest((-1,), ("layercam",)),
        MapRequest((5, 6), ("gradcam",)),
        MapRequest((-1,), ("gradcam",), softmax=True),
        GRADCAM,
    ]

    async def main() -> list[float]:
        return await asked(make(), model, *kinds)

    assert asyncio.run(main()) == [1, 2, 3, 4, 5, 6]
    assert [numbers for numbers, _, _ in model.runs] == [[0], [1, 4], [2, 6], [3], [5]]
    assert model.runs[1][1] == [[3, -1], [5, 6]], "each image keeps its own classes"


def test_images_of_different_sizes_do_not_share_a_run(make: Make, model: Recorder) -> None:
    async def main() -> list[float]:
        batcher = make()
        first = await held_up(batcher, model)
        tasks = [start(batcher, 1, size=4), start(batcher, 2, size=6), start(batcher, 3, size=4)]
        await asyncio.sleep(0)
        model.go.set()
        await first
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [1, 2, 3]
    assert [numbers for numbers, _, _ in model.runs] == [[0], [1, 3], [2]]


@pytest.mark.parametrize(
    ("sharing", "expected"),
    [
        (FREE, [[0], [1, 2, 3, 4]]),
        (MixedBatchPolicy(), [[0], [1, 3], [2, 4]]),
        (MixedBatchPolicy(frozenset({"gradcam"}), run_s=0.010, map_s=0.006), [[0], [1, 3], [2, 4]]),  # two maps cost more than a run
        (MixedBatchPolicy(frozenset({"gradcam"}), run_s=0.010, map_s=0.004), [[0], [1, 2, 3, 4]]),
        (MixedBatchPolicy(frozenset({"cam"}), run_s=1.0, map_s=0.0), [[0], [1, 3], [2, 4]]),
    ],
)
def test_scores_share_a_run_with_maps_where_that_is_cheaper(
    make: Make, model: Recorder, sharing: MixedBatchPolicy, expected: list[list[int]]
) -> None:
    async def main() -> list[float]:
        return await asked(make(sharing=sharing), model, MapRequest(), GRADCAM, MapRequest(), GRADCAM)

    assert asyncio.run(main()) == [1, 2, 3, 4]
    assert [numbers for numbers, _, _ in model.runs] == expected


def test_a_cancelled_image_is_not_run_and_the_others_are(make: Make, model: Recorder) -> None:
    async def main() -> list[float]:
        batcher = make()
        first = await held_up(batcher, model)
        tasks = [start(batcher, number) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.sleep(0)
        model.go.set()
        await first
        return await asyncio.gather(tasks[0], tasks[2])

    assert asyncio.run(main()) == [1, 3]
    assert [numbers for numbers, _, _ in model.runs] == [[0], [1, 3]]


def test_an_image_cancelled_during_the_run_leaves_the_others_answered(make: Make, model: Recorder) -> None:
    async def main() -> list[float]:
        batcher = make()
        first = await held_up(batcher, model)
        model.begun.clear()
        tasks = [start(batcher, number) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        model.go.set()
        await first
        await asyncio.to_thread(model.begun.wait, 10)
        tasks[0].cancel()
        return await asyncio.wait_for(asyncio.gather(*tasks[1:]), 5)

    assert asyncio.run(main()) == [2, 3]


def test_an_image_that_cannot_be_run_fails_alone(make: Make, model: Recorder) -> None:
    async def main() -> tuple[list[float], BaseException | None]:
        batcher = make()
        first = await held_up(batcher, model)
        tasks = [start(batcher, number) for number in (1, 99, 3)]
        await asyncio.sleep(0)
        model.go.set()
        await first
        good = await asyncio.gather(tasks[0], tasks[2])
        await asyncio.wait([tasks[1]])
        return good, tasks[1].exception()

    good, error = asyncio.run(main())
    assert good == [1, 3]
    assert isinstance(error, ValueError)


def test_a_delayed_batch_runs_when_it_is_full(make: Make, model: Recorder) -> None:
    async def main() -> list[float]:
        model.go.set()
        batcher = make(max_size=2, delay_s=60)
        alone = start(batcher, 1)
        await asyncio.sleep(0.05)
        assert not model.runs
        return await asyncio.wait_for(asyncio.gather(alone, start(batcher, 2)), 5)

    assert asyncio.run(main()) == [1, 2]
    assert [numbers for numbers, _, _ in model.runs] == [[1, 2]]


def test_a_delayed_batch_runs_when_its_delay_is_over(make: Make, model: Recorder) -> None:
    async def main() -> tuple[float, float]:
        model.go.set()
        batcher = make(max_size=8, delay_s=0.1)
        begun = asyncio.get_running_loop().time()
        await asyncio.wait_for(start(batcher, 1), 5)
        first_s = asyncio.get_running_loop().time() - begun
        begun = asyncio.get_running_loop().time()
        await asyncio.wait_for(start(batcher, 2), 5)
        return first_s, asyncio.get_running_loop().time() - begun

    first_s, second_s = asyncio.run(main())
    assert 0.09 < first_s < 1.0
    assert 0.09 < second_s < 1.0


def test_a_closed_queue_refuses_waiting_images_and_answers_running_ones(make: Make, model: Recorder) -> None:
    async def main() -> None:
        batcher = make()
        first = await held_up(batcher, model)
        waiting = start(batcher, 1)
        await asyncio.sleep(0)
        batcher.close()
        with pytest.raises(ServerError, match="unloaded"):
            await asyncio.wait_for(waiting, 5)
        with pytest.raises(ServerError, match="unloaded"):
            await start(batcher, 2)
        model.go.set()
        await asyncio.wait_for(first, 5)

    asyncio.run(main())
    assert [numbers for numbers, _, _ in model.runs] == [[0]]


def test_the_slot_is_freed_when_the_run_starts(make: Make, model: Recorder) -> None:
    async def main() -> list[str]:
        told: list[str] = []
        batcher = make(max_size=1)
        first = asyncio.ensure_future(batcher.submit(make_image(1), MapRequest(), lambda: told.append("first")))
        await asyncio.to_thread(model.begun.wait, 10)
        second = asyncio.ensure_future(batcher.submit(make_image(2), MapRequest(), lambda: told.append("second")))
        await asyncio.sleep(0.05)
        before = list(told)
        model.go.set()
        await asyncio.gather(first, second)
        assert told == ["first", "second"]
        return before

    assert asyncio.run(main()) == ["first"]


@pytest.mark.parametrize(("any_thread", "runs_in"), [(True, "decoder"), (False, "model")])
def test_an_image_that_finds_the_model_free_runs_in_its_decoding_thread(
    make: Make, model: Recorder, decoders: Workers, any_thread: bool, runs_in: str
) -> None:
    model.go.set()

    async def main() -> float:
        return await see(make(any_thread=any_thread), decoders, 7)

    assert asyncio.run(main()) == 7
    assert model.threads == [runs_in]


def test_one_decoder_runs_the_model_another_decodes_and_the_models_thread_runs_the_next_batch(
    make: Make, model: Recorder, decoders: Workers
) -> None:
    async def main() -> list[float]:
        batcher = make(any_thread=True)
        first = asyncio.ensure_future(see(batcher, decoders, 0))
        await asyncio.to_thread(model.begun.wait, 10)
        others = [asyncio.ensure_future(see(batcher, decoders, number)) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        await decoders.do(lambda: None)  # its turn comes when all three are decoded
        model.go.set()
        await first
        return await asyncio.gather(*others)

    assert asyncio.run(main()) == [1, 2, 3]
    assert [numbers for numbers, _, _ in model.runs] == [[0], [1, 2, 3]]
    assert model.threads == ["decoder", "model"]


def test_exclusive_jobs_and_batches_never_run_at_the_same_time(make: Make, model: Recorder, decoders: Workers, thread: Workers) -> None:
    alone = threading.Event()

    async def main() -> float:
        batcher = make(any_thread=True)
        model.go.set()

        def job() -> int:
            alone.set()
            time.sleep(0.1)
            return len(model.runs)

        step = asyncio.ensure_future(thread.do(batcher.run_exclusively, job))
        await asyncio.to_thread(alone.wait, 10)
        answer = await see(batcher, decoders, 5)
        assert (await step).value == 0
        return answer

    assert asyncio.run(main()) == 5
    assert model.threads == ["model"]


def test_an_image_that_cannot_be_decoded_fails_alone(make: Make, model: Recorder, decoders: Workers) -> None:
    model.go.set()

    def broken() -> NetworkInput:
        raise ImageError("no image")

    async def main() -> list[object]:
        batcher = make(any_thread=True)
        asked = [see(batcher, decoders, 1), batcher.decode_and_submit(broken, decoders, MapRequest()), see(batcher, decoders, 2)]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, failed, last = asyncio.run(main())
    assert (first, last) == (1, 2)
    assert isinstance(failed, ImageError)


def test_an_image_cancelled_before_decoding_is_neither_decoded_nor_run(make: Make, model: Recorder) -> None:
    decoder = Workers(1, "decoder")
    decoded = threading.Event()

    def note() -> NetworkInput:
        decoded.set()
        return seeing(1)()

    async def main() -> None:
        batcher = make(any_thread=True)
        first = asyncio.ensure_future(see(batcher, decoder, 0))
        await asyncio.to_thread(model.begun.wait, 10)
        gone = asyncio.ensure_future(batcher.decode_and_submit(note, decoder, MapRequest()))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        model.go.set()
        await first
        await decoder.do(lambda: None)

    asyncio.run(main())
    decoder.close()
    assert not decoded.is_set()
    assert [numbers for numbers, _, _ in model.runs] == [[0]]


def test_wait_includes_a_run_in_a_decoding_thread(make: Make, model: Recorder, decoders: Workers) -> None:
    async def main() -> None:
        batcher = make(any_thread=True)
        first = asyncio.ensure_future(see(batcher, decoders, 0))
        await asyncio.to_thread(model.begun.wait, 10)
        batcher.close()
        waited = asyncio.ensure_future(asyncio.to_thread(batcher.wait))
        await asyncio.sleep(0.05)
        assert not waited.done()
        with pytest.raises(ServerError, match="unloaded"):
            await see(batcher, decoders, 1)
        model.go.set()
        await asyncio.wait_for(asyncio.gather(waited, first), 5)

    asyncio.run(main())


@pytest.mark.parametrize("any_thread", [True, False])
def test_the_delay_holds_for_decoded_images_too(make: Make, model: Recorder, decoders: Workers, any_thread: bool) -> None:
    model.go.set()

    async def main() -> list[float]:
        batcher = make(max_size=2, delay_s=0.2, any_thread=any_thread)
        alone = await see(batcher, decoders, 9)
        return [alone, *await asyncio.gather(*[see(batcher, decoders, number) for number in (1, 2)])]

    assert asyncio.run(main()) == [9, 1, 2]
    assert [sorted(numbers) for numbers, _, _ in model.runs] == [[9], [1, 2]]
