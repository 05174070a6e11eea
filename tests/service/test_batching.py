"""Batches: who shares a run with whom, in which order, and that every answer is its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from contract.errors import ServerError
from contract.model import Answer
from service.batching import Batcher, Batching, Sharing, Wanted
from service.workers import Workers

CLASSES = 10
GRADCAM = Wanted((-1,), ("gradcam",))
FREE = Sharing(frozenset({"gradcam"}), run_s=1.0, map_s=0.0)


def picture(number: int, size: int = 4) -> npt.NDArray[np.uint8]:
    return np.full((1, size, size, 3), number, dtype=np.uint8)


@dataclass
class Recorder:
    """A model that answers a picture's number, and can be held up. runs: pictures' numbers, targets and maps of each run."""

    go: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    runs: list[tuple[list[int], list[list[int]], tuple[str, ...]]] = field(default_factory=list)

    def __call__(self, images: npt.NDArray[np.uint8], targets: npt.NDArray[np.int64], methods: tuple[str, ...], softmax: bool) -> Answer:
        numbers = images[:, 0, 0, 0].tolist()
        self.runs.append((numbers, targets.tolist(), methods))
        self.begun.set()
        assert self.go.wait(10)
        if 99 in numbers:
            raise ValueError("this picture cannot be run")
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
    def made(max_size: int = 4, delay_s: float = 0.0, sharing: Sharing = FREE) -> Batcher:
        return Batcher(thread, model, Batching(max_size, delay_s), sharing)

    return made


async def held_up(batcher: Batcher, model: Recorder) -> asyncio.Task[object]:
    """A first run is under way and will not end before `model.go`."""
    first = asyncio.ensure_future(batcher.submit(picture(0), Wanted()))
    await asyncio.to_thread(model.begun.wait, 10)
    return first


def start(batcher: Batcher, number: int, wanted: Wanted = Wanted(), size: int = 4) -> asyncio.Task[float]:  # noqa: B008
    async def ask() -> float:
        answer = (await batcher.submit(picture(number, size), wanted)).value
        assert answer.scores.shape == (1, CLASSES)
        assert (answer.classes is None) == (not wanted.methods)
        assert answer.maps.keys() == set(wanted.methods)
        for values in answer.maps.values():
            assert values[0, :, 0, 0].tolist() == [1000 * number + target for target in wanted.targets]
        return float(answer.scores[0, 0])

    return asyncio.ensure_future(ask())


async def asked(batcher: Batcher, model: Recorder, *wanted: Wanted) -> list[float]:
    """Pictures 1, 2, ... come while picture 0 is run: their answers, in their order."""
    first = await held_up(batcher, model)
    tasks = [start(batcher, number, one) for number, one in enumerate(wanted, 1)]
    await asyncio.sleep(0)
    model.go.set()
    await first
    return await asyncio.gather(*tasks)


def test_what_comes_while_a_run_is_under_way_shares_the_next(make: Make, model: Recorder) -> None:
    async def main() -> list[float]:
        return await asked(make(max_size=4), model, *[Wanted()] * 9)

    assert asyncio.run(main()) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [numbers for numbers, _, _ in model.runs] == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_an_idle_model_begins_at_once(make: Make, model: Recorder) -> None:
    async def main() -> float:
        model.go.set()
        return await asyncio.wait_for(start(make(delay_s=0.0), 7), 5)

    assert asyncio.run(main()) == 7


def test_maps_that_differ_in_kind_are_not_run_together_and_nobody_is_overtaken_for_ever(make: Make, model: Recorder) -> None:
    two = Wanted((3, -1), ("gradcam",))
    kinds = [two, GRADCAM, Wanted((-1,), ("layercam",)), Wanted((5, 6), ("gradcam",)), Wanted((-1,), ("gradcam",), softmax=True), GRADCAM]

    async def main() -> list[float]:
        return await asked(make(), model, *kinds)

    assert asyncio.run(main()) == [1, 2, 3, 4, 5, 6]
    assert [numbers for numbers, _, _ in model.runs] == [[0], [1, 4], [2, 6], [3], [5]]
    assert model.runs[1][1] == [[3, -1], [5, 6]], "each picture keeps its own classes"


def test_pictures_of_another_size_are_not_run_together(make: Make, model: Recorder) -> None:
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
        (Sharing(), [[0], [1, 3], [2, 4]]),
        (Sharing(frozenset({"gradcam"}), run_s=0.010, map_s=0.006), [[0], [1, 3], [2, 4]]),  # two maps cost more than a run
        (Sharing(frozenset({"gradcam"}), run_s=0.010, map_s=0.004), [[0], [1, 2, 3, 4]]),
        (Sharing(frozenset({"cam"}), run_s=1.0, map_s=0.0), [[0], [1, 3], [2, 4]]),
    ],
)
def test_scores_ride_along_with_maps_where_that_is_cheaper(
    make: Make, model: Recorder, sharing: Sharing, expected: list[list[int]]
) -> None:
    async def main() -> list[float]:
        return await asked(make(sharing=sharing), model, Wanted(), GRADCAM, Wanted(), GRADCAM)

    assert asyncio.run(main()) == [1, 2, 3, 4]
    assert [numbers for numbers, _, _ in model.runs] == expected


def test_who_has_left_is_not_run_and_takes_nothing_from_the_others(make: Make, model: Recorder) -> None:
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


def test_who_leaves_while_the_batch_runs_takes_nothing_from_the_others(make: Make, model: Recorder) -> None:
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


def test_a_picture_that_cannot_be_run_fails_alone(make: Make, model: Recorder) -> None:
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


def test_a_batch_is_held_back_for_company_and_goes_when_it_is_full(make: Make, model: Recorder) -> None:
    async def main() -> list[float]:
        model.go.set()
        batcher = make(max_size=2, delay_s=60)
        alone = start(batcher, 1)
        await asyncio.sleep(0.05)
        assert not model.runs
        return await asyncio.wait_for(asyncio.gather(alone, start(batcher, 2)), 5)

    assert asyncio.run(main()) == [1, 2]
    assert [numbers for numbers, _, _ in model.runs] == [[1, 2]]


def test_a_batch_that_does_not_fill_goes_when_its_time_is_over(make: Make, model: Recorder) -> None:
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


def test_closed_it_refuses_what_waits_and_answers_what_runs(make: Make, model: Recorder) -> None:
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


def test_a_turn_is_told_when_the_run_begins(make: Make, model: Recorder) -> None:
    async def main() -> list[str]:
        told: list[str] = []
        batcher = make(max_size=1)
        first = asyncio.ensure_future(batcher.submit(picture(1), Wanted(), lambda: told.append("first")))
        await asyncio.to_thread(model.begun.wait, 10)
        second = asyncio.ensure_future(batcher.submit(picture(2), Wanted(), lambda: told.append("second")))
        await asyncio.sleep(0.05)
        before = list(told)
        model.go.set()
        await asyncio.gather(first, second)
        assert told == ["first", "second"]
        return before

    assert asyncio.run(main()) == ["first"]
