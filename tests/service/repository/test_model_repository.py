"""Repository of a running server: versions, labels, changes in the folder, and requests in flight."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tests.helpers.service.toy_model import SIZE, ToyModel
from tlcli.contract.errors import ModelFileError, NotFoundError, SettingsError
from tlcli.service.execution.batching import Batching, MapRequest
from tlcli.service.execution.runner import Runner
from tlcli.service.repository.model_repository import Diff, Entry, Repository, ServedVersion
from tlcli.service.repository.version_policy import VersionPolicy
from tlcli.service.repository.version_state import FileState, VersionState
from tlcli.service.types.answer import ModelState

IMAGE = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
open_runner = partial(Runner.open, device="cpu", threads=1, batching=Batching(2))


def save(folder: Path, version: int, seed: int | None = None, name: str = "toy") -> None:
    """Save a version; the seed is the version's number by default."""
    ToyModel.make(seed=seed or version).save(folder / name / str(version) / "model.onnx", name)


def logits(seed: int) -> np.ndarray:
    return ToyModel.make(seed=seed).answer(IMAGE[0]).logits


async def ask(served: ServedVersion) -> np.ndarray:
    return (await served.runner.submit(IMAGE, MapRequest())).value.logits[0]


async def loaded(folder: Path, policy: str = "all") -> Repository:
    repository = Repository(folder, open_runner, VersionPolicy.parse(policy), max_queue=8)
    repository.discover()
    await repository.load()
    return repository


def states(repository: Repository) -> dict[str, str]:
    return {f"{one.name}/{one.version}": one.state.value for one in repository.statuses()}


async def settled(repository: Repository) -> None:
    """Refresh twice: a change is loaded when two calls in a row see it."""
    await repository.refresh()
    await repository.refresh()


@pytest.mark.parametrize(
    ("policy", "labelled", "expected"),
    [
        ("all", (), [1, 2, 5, 12]),
        ("latest", (), [12]),
        ("latest:2", (), [5, 12]),
        ("latest:9", (), [1, 2, 5, 12]),
        ("latest", (2,), [2, 12]),
        ("1, 5", (), [1, 5]),
        ("7", (), []),
        ("7", (5, 8), [5]),
    ],
)
def test_a_policy_chooses_versions(policy: str, labelled: tuple[int, ...], expected: list[int]) -> None:
    assert VersionPolicy.parse(policy).choose([12, 1, 5, 2], labelled) == expected


@pytest.mark.parametrize("text", ["", "newest", "latest:", "latest:0", "latest:two", "1,,2", "1;2", "-1", "01", "all:2"])
def test_an_invalid_policy_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="latest:N"):
        VersionPolicy.parse(text)


def test_the_difference_between_entries_and_folder() -> None:
    old, new = (VersionState(FileState(size, 0, 0)) for size in (1, 2))
    served = cast("ServedVersion", object())
    held = {
        1: Entry("toy", 1, ModelState.READY, served=served, files=old),  # deleted
        2: Entry("toy", 2, ModelState.READY, served=served, files=old),  # unchanged
        3: Entry("toy", 3, ModelState.READY, served=served, files=old),  # changed
        4: Entry("toy", 4, ModelState.FAILED, files=old),  # broken, and unchanged
    }
    diff = Diff.between(held, {2: old, 3: new, 4: old, 5: old})
    assert (diff.load, diff.changed) == ((3, 4, 5), (3, 5))
    assert (diff.keep, diff.retire) == ({2: held[2]}, {1: held[1]})
    assert diff.calls_for_update
    assert not Diff.between(held, {1: old, 2: old, 3: old, 4: old}).calls_for_update, "a broken version is not loaded again"
    assert not Diff.between(held, {4: old}).calls_for_update, "older versions serve in place of a broken one"
    assert Diff.between(held, {3: old}).calls_for_update


def test_versions_answer_by_number_or_label_and_the_latest_by_default(tmp_path: Path) -> None:
    for version in (1, 2, 3):
        save(tmp_path, version)
    (tmp_path / "toy/labels.toml").write_text("stable = 1\n")

    async def main() -> None:
        repository = await loaded(tmp_path, "latest:1")
        assert states(repository) == {"toy/1": "ready", "toy/3": "ready"}
        for version, expected in {"": 3, "3": 3, "1": 1, "stable": 1}.items():
            served = repository.find("toy", version)
            assert served.version == expected
            np.testing.assert_allclose(await ask(served), logits(expected), atol=1e-5)
        with pytest.raises(NotFoundError, match="no version '2'; it has: 1, 3, stable"):
            repository.find("toy", "2")
        repository.close()

    asyncio.run(main())


@pytest.mark.parametrize("content", ["stable = 'three'", "stable = 0", "stable = true", "3 = 3", "stable", "a.b = 1", "\xff"])
def test_unreadable_labels_are_refused_and_the_versions_stay_served(tmp_path: Path, content: str) -> None:
    save(tmp_path, 1)
    (tmp_path / "toy/labels.toml").write_text("stable = 1\n")

    async def main() -> None:
        repository = await loaded(tmp_path)
        (tmp_path / "toy/labels.toml").write_bytes(content.encode("latin-1"))
        with pytest.raises(ModelFileError, match=r"labels\.toml"):
            await repository.load_model("toy")
        assert repository.find("toy", "stable").version == 1
        repository.close()
        again = await loaded(tmp_path)
        assert again.find("toy", "").version == 1
        again.close()

    asyncio.run(main())


def test_a_new_version_takes_over_and_the_old_one_closes(tmp_path: Path) -> None:
    save(tmp_path, 1)

    async def main() -> None:
        repository = await loaded(tmp_path, "latest")
        first = repository.find("toy", "")
        save(tmp_path, 2)
        assert repository.find("toy", "").version == 1, "nothing is taken unasked"
        await repository.load_model("toy")
        assert states(repository) == {"toy/2": "ready"}
        np.testing.assert_allclose(await ask(repository.find("toy", "")), logits(2), atol=1e-5)
        with pytest.raises(NotFoundError):
            repository.find("toy", "1")
        await gone(first)
        repository.close()

    asyncio.run(main())


async def gone(served: ServedVersion) -> None:
    """Wait until the version's thread is closed."""
    for _ in range(100):
        await asyncio.sleep(0.02)
        try:
            await asyncio.wait_for(served.runner.submit(IMAGE, MapRequest()), 5)
        except Exception:  # noqa: BLE001
            return
    pytest.fail("it still answers")


def test_a_failed_load_keeps_the_old_version_and_reports_the_reason(tmp_path: Path) -> None:
    save(tmp_path, 1)

    async def main() -> None:
        repository = await loaded(tmp_path)
        (tmp_path / "toy/2").mkdir()
        (tmp_path / "toy/2/model.onnx").write_bytes(b"this is no model")
        with pytest.raises(ModelFileError, match=r"toy version 2: .*cannot load it"):
            await repository.load_model("toy")
        assert states(repository) == {"toy/1": "ready", "toy/2": "failed"}
        np.testing.assert_allclose(await ask(repository.find("toy", "")), logits(1), atol=1e-5)
        with pytest.raises(ModelFileError, match="broken"):
            repository.find("toy", "2")

        (tmp_path / "toy/1/model.onnx").write_bytes(b"nor is this")  # a file that is overwritten
        with pytest.raises(ModelFileError):
            await repository.load_model("toy")
        np.testing.assert_allclose(await ask(repository.find("toy", "1")), logits(1), atol=1e-5)
        assert "could not be loaded, the former one answers" in repository.statuses()[0].reason

        save(tmp_path, 2)
        save(tmp_path, 1, seed=9)
        await repository.load_model("toy")
        assert states(repository) == {"toy/1": "ready", "toy/2": "ready"}
        np.testing.assert_allclose(await ask(repository.find("toy", "1")), logits(9), atol=1e-5)
        np.testing.assert_allclose(await ask(repository.find("toy", "")), logits(2), atol=1e-5)
        repository.close()

    asyncio.run(main())


def test_a_model_is_unloaded_and_loaded_again(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 1, name="other")

    async def main() -> None:
        repository = await loaded(tmp_path)
        await repository.unload_model("toy")
        assert states(repository) == {"other/1": "ready", "toy/1": "unloaded"}
        assert repository.serving() == {"other": True, "toy": False}
        with pytest.raises(NotFoundError, match="is not loaded: it was unloaded"):
            repository.find("toy", "1")
        assert repository.find("", "").name == "other", "the only one that answers"
        await repository.load_model("toy")
        np.testing.assert_allclose(await ask(repository.find("toy", "")), logits(1), atol=1e-5)
        for name in ("nobody", "../toy", "", "toy/1"):
            with pytest.raises(NotFoundError):
                await repository.load_model(name)
            with pytest.raises(NotFoundError):
                await repository.unload_model(name)
        repository.close()

    asyncio.run(main())


def test_requests_finish_on_the_version_they_started_on(tmp_path: Path, held_up: threading.Event) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)

    async def main() -> None:
        repository = await loaded(tmp_path)
        held_up.clear()
        old = [asyncio.ensure_future(ask(repository.find("toy", "1"))) for _ in range(5)]
        await asyncio.sleep(0.05)
        await repository.unload_model("toy")
        with pytest.raises(NotFoundError):
            repository.find("toy", "1")
        held_up.set()
        for values in await asyncio.wait_for(asyncio.gather(*old), 10):
            np.testing.assert_allclose(values, logits(1), atol=1e-5)
        repository.close()

    asyncio.run(main())


def test_an_image_that_is_being_decoded_counts_as_in_flight(tmp_path: Path) -> None:
    save(tmp_path, 1)

    async def main() -> None:
        repository = await loaded(tmp_path)
        served = repository.find("toy", "1")
        slot = served.admission.acquire()
        await repository.unload_model("toy")
        await asyncio.sleep(0.2)
        np.testing.assert_allclose(await ask(served), logits(1), atol=1e-5)
        slot.release()
        await gone(served)
        repository.close()

    asyncio.run(main())


def test_changes_of_a_polled_folder_are_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1)

    async def main() -> None:
        repository = await loaded(tmp_path, "latest")
        await settled(repository)
        first = repository.find("toy", "")
        assert repository.find("toy", "") is first, "an unchanged version is not loaded again"

        ToyModel.make(seed=2).save(tmp_path / "elsewhere.onnx", "toy")
        whole = (tmp_path / "elsewhere.onnx").read_bytes()
        target = tmp_path / "toy/2/model.onnx"
        target.parent.mkdir()
        for length in (0, 100, len(whole) // 2, len(whole)):  # a copy in progress
            target.write_bytes(whole[:length])
            os.utime(target, ns=(length + 1, length + 1))
            await repository.refresh()
            assert states(repository) == {"toy/1": "ready"}, "not before two polls see the same"
        await repository.refresh()
        assert states(repository) == {"toy/2": "ready"}
        np.testing.assert_allclose(await ask(repository.find("toy", "")), logits(2), atol=1e-5)

        target.write_bytes(b"broken")
        await settled(repository)
        np.testing.assert_allclose(await ask(repository.find("toy", "")), logits(2), atol=1e-5)

        (tmp_path / "toy/3").mkdir()
        (tmp_path / "toy/3/model.onnx").write_bytes(b"broken too")
        await settled(repository)
        assert states(repository) == {"toy/2": "ready", "toy/3": "failed"}, "what serves stays where its successor cannot"
        caplog.clear()
        await settled(repository)
        assert not caplog.records, "a broken file is tried once"

        save(tmp_path, 3)
        save(tmp_path, 1, name="another")
        (tmp_path / "toy/labels.toml").write_text("canary = 3\nstable = 1\n")
        await settled(repository)
        assert states(repository) == {"another/1": "ready", "toy/1": "ready", "toy/3": "ready"}
        assert repository.find("toy", "stable").version == 1

        shutil.rmtree(tmp_path / "toy")
        await settled(repository)
        assert states(repository) == {"another/1": "ready"}
        assert repository.statuses()[0].state is ModelState.READY
        repository.close()

    asyncio.run(main())


def test_deleted_versions_are_served_until_a_second_poll_finds_them_missing(tmp_path: Path) -> None:
    async def main() -> None:
        for name in ("toy", "other"):
            save(tmp_path, 1, name=name)
        save(tmp_path, 2)
        repository = await loaded(tmp_path)
        away = tmp_path.parent / f"{tmp_path.name}-away"
        away.mkdir()
        for name in ("other", "toy/2"):
            for held in (2, 0):  # gone for one look; then for good
                await settled(repository)
                (tmp_path / name).rename(away / "it")
                before = states(repository)
                await repository.refresh()
                assert states(repository) == before
                if held:
                    (away / "it").rename(tmp_path / name)
                    await settled(repository)
                    assert states(repository) == before
                else:
                    await repository.refresh()
                    assert len(states(repository)) == len(before) - 1
                    shutil.rmtree(away / "it")
        assert repository.find("toy", "").version == 1
        repository.close()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["empty", "gone", "error", "lost+found"])
def test_an_unreadable_repository_changes_nothing(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        save(tmp_path / "models", 1)
        repository = await loaded(tmp_path / "models")
        await settled(repository)
        if how == "error":
            monkeypatch.setattr("tlcli.service.repository.version_state.os.scandir", failing)
        else:
            (tmp_path / "models").rename(tmp_path / "away")
            if how != "gone":
                (tmp_path / "models").mkdir()
            if how == "lost+found":
                (tmp_path / "models/lost+found").mkdir()
        for _ in range(4):
            await repository.refresh()
        assert repository.find("toy", "").version == 1
        assert sum("model repository cannot be read" in record.getMessage() for record in caplog.records) == 1
        monkeypatch.undo()
        if how != "error":
            shutil.rmtree(tmp_path / "models", ignore_errors=True)
            (tmp_path / "away").rename(tmp_path / "models")
        save(tmp_path / "models", 2)
        await settled(repository)
        assert repository.find("toy", "").version == 2
        repository.close()

    def failing(path: Path) -> None:
        raise OSError(5, "Input/output error")

    asyncio.run(main())


def test_an_unreadable_model_folder_keeps_its_versions_and_the_others_are_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        for name in ("toy", "other"):
            save(tmp_path, 1, name=name)
        repository = await loaded(tmp_path)
        await settled(repository)
        plain = os.scandir

        def scandir(path: Path) -> Any:
            if path == tmp_path / "toy":
                raise PermissionError(13, "Permission denied")
            return plain(path)

        monkeypatch.setattr("tlcli.service.repository.version_state.os.scandir", scandir)
        save(tmp_path, 2, name="other")
        for _ in range(3):
            await repository.refresh()
        assert repository.find("toy", "").version == 1
        assert repository.find("other", "").version == 2
        assert caplog.text.count("toy: folder cannot be read, still serving its loaded versions: Permission denied") == 1, (
            "logged once, not at every call"
        )
        with pytest.raises(ModelFileError, match=r"toy: Permission denied"):
            await repository.load_model("toy")
        assert repository.find("toy", "").version == 1
        repository.close()

    asyncio.run(main())
