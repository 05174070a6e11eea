"""The models that a server holds: what is in the folder, what of it could be loaded, and which answers a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tlcli.contract.errors import DeviceError, ModelFileError, NotFoundError, ServerError, TlcliError, first_line
from tlcli.contract.model.repository_layout import MODEL_FILE, is_model_name, model_names
from tlcli.contract.process.malloc import trim_freed_memory
from tlcli.service.execution.admission import Admission
from tlcli.service.execution.runner import Runner, takes_steps
from tlcli.service.repository.version_policy import LABELS_FILE, VersionPolicy, read_labels
from tlcli.service.repository.version_state import FileState, FolderState, VersionState, names_there, versions_there
from tlcli.service.telemetry.metrics import NO_METRICS, Metrics, Queue
from tlcli.service.telemetry.request_record import current_request
from tlcli.service.types.answer import ModelState, ModelStatus

logger = logging.getLogger(__name__)

_LOOK_S = 0.02
"""How often a version that is to go looks whether requests are left."""

Open = Callable[[Path], Awaitable[Runner]]


@dataclass(frozen=True)
class Served:
    """A version of a model that answers requests."""

    name: str
    version: int
    runner: Runner
    admission: Admission
    score_cams: Admission

    def queue(self, maps: Iterable[str]) -> Admission:
        """The places for a request that asks for these maps: Score-CAMs have their own, so that they keep nobody else's."""
        return self.score_cams if takes_steps(maps) else self.admission

    @property
    def idle(self) -> bool:
        """Whether no request is on its way to an answer."""
        return self.admission.idle and self.score_cams.idle and self.runner.idle


@dataclass(frozen=True)
class Entry:
    """A version of a model that is in the folder, served or not. files: as they were when it was loaded, or failed to."""

    name: str
    version: int
    state: ModelState = ModelState.LOADING
    reason: str = ""
    served: Served | None = None
    files: VersionState | None = None


class Repository:
    """The versions of the models below a folder that a policy chooses: a request may name any of them, by number or by label.

    A file that is broken is listed with the reason, and the others serve on. Where the latest version of a
    model is broken, the latest that loaded answers for it. A version that is replaced or unloaded answers
    the requests that it has, and goes.

    Used from the event loop's thread only.
    """

    def __init__(
        self,
        folder: Path,
        open_runner: Open,
        policy: VersionPolicy,
        max_queue: int,
        metrics: Metrics = NO_METRICS,
        *,
        max_score_cams: int = 16,
    ) -> None:
        """
        Args:
            open_runner: loads and warms up a file.
            max_queue: images that may wait for one version of a model.
            metrics: count loads.
            max_score_cams: Score-CAMs of one version of a model that may be in progress or wait.
        """
        self._max_score_cams = max_score_cams
        self._folder = folder
        self._open = open_runner
        self._policy = policy
        self._max_queue = max_queue
        self._metrics = metrics
        self._entries: dict[str, dict[int, Entry]] = {}
        self._labels: dict[str, Mapping[str, int]] = {}
        self._labels_file: dict[str, FileState | None] = {}
        self._seen: dict[str, FolderState | None] = {}
        self._unreadable = ""
        self._unreadable_models: dict[str, str] = {}
        self._changing = asyncio.Lock()
        self._going: set[asyncio.Task[None]] = set()
        self._loaded = False

    def discover(self) -> None:
        """List what is in the folder, without opening it.

        Raises:
            NotFoundError: no such folder, or no model in it.
        """
        for name in self._names():
            if (failure := self._take_labels(name)) is not None:
                logger.error("%s: its versions have no labels: %s", name, failure)
            if chosen := self._chosen(name, versions_there(self._folder / name)):
                self._entries[name] = {version: Entry(name, version) for version in chosen}
        if not self._entries:
            raise NotFoundError(
                f"{self._folder}: no model here: <name>/<version>/{MODEL_FILE} was expected; `tlcli finetune` and `tlcli export` make one"
            )

    async def load(self) -> None:
        """Load and warm up what `discover` found, one after another.

        Raises:
            ModelFileError: none of it can be served; the message names each reason.
            DeviceError: the device that was asked for cannot be used.
        """
        async with self._changing:
            for entry in self._all():
                self._entries[entry.name][entry.version] = await self._load(entry.name, entry.version)
        ready = [entry for entry in self._all() if entry.served is not None]
        failed = [entry for entry in self._all() if entry.served is None]
        if not ready:
            reasons = "; ".join(f"{entry.name} version {entry.version}: {entry.reason}" for entry in failed)
            raise ModelFileError(f"{self._folder}: none of its models can be served: {reasons}")
        for name, found in self._entries.items():
            standing_in = self._latest_served(name)
            if standing_in is not None and standing_in.version != max(found):
                logger.warning("%s: version %d is broken, version %d answers in its place", name, max(found), standing_in.version)
        self._loaded = True

    async def load_model(self, name: str) -> None:
        """Take what is in a model's folder now: new versions and changed files are loaded, and then take over; what the policy
        no longer chooses goes.

        A version that fails to load leaves those that serve in place.

        Raises:
            NotFoundError: no such model in the folder.
            ModelFileError: a version cannot be served; the others are.
            DeviceError: the device that was asked for cannot be used.
        """
        async with self._changing:
            try:
                failures = await self._update(name)
            except OSError as error:
                raise ModelFileError(f"{self._folder / name}: {error.strerror or error}") from error
        if failures:
            raise ModelFileError("; ".join(failures))

    async def unload_model(self, name: str) -> None:
        """Serve no version of a model any longer. Requests that are under way are answered.

        Raises:
            NotFoundError: no such model.
        """
        async with self._changing:
            found = self._entries.get(name)
            if found is None:
                raise self._unknown(name)
            for version, entry in found.items():
                found[version] = Entry(name, version, ModelState.UNLOADED, "it was unloaded")
                self._let_go(entry)

    async def refresh(self) -> None:
        """Look at the folder, and take what has changed and is whole: what has not changed since the last look.

        What is gone is served until a second look finds it gone too. A repository without any model, such as an unmounted one, and one that
        cannot be read change nothing, and so does a model's folder that cannot be read.
        """
        async with self._changing:
            try:
                there = await asyncio.to_thread(self._look)
            except OSError as error:
                self._cannot_read(f"{self._folder}: {error.strerror or error}")
                return
            if not any(there.values()):
                self._cannot_read(f"{self._folder}: no model in it any longer")
                return
            self._unreadable = ""
            before, self._seen = self._seen, there
            for name, state in there.items():
                if name in before and before[name] == state and self._differs(name, state):
                    for failure in await self._update(name, _numbers(state)):
                        logger.error("%s: %s", name, failure)

    def _look(self) -> dict[str, FolderState | None]:
        """Each model that is there or held; None for one that is gone, the last state for one that cannot be read.

        Raises:
            OSError: the repository cannot be read.
        """
        names = {*names_there(self._folder), *self._entries}
        states: dict[str, FolderState | None] = {}
        for name in sorted(names):
            try:
                state = self._state(name)
            except OSError as error:
                why = str(error.strerror or error)
                if why != self._unreadable_models.get(name):  # not at every look
                    logger.warning("%s: cannot be read, what was there serves on: %s", name, why)
                self._unreadable_models[name] = why
                if name in self._seen:
                    states[name] = self._seen[name]
                continue
            self._unreadable_models.pop(name, None)
            if state.versions or name in self._entries:
                states[name] = state if state.versions else None
        return states

    def _state(self, name: str) -> FolderState:
        model = self._folder / name
        found = ((version, VersionState.of(self._path(name, version))) for version in versions_there(model))
        return FolderState(tuple((version, files) for version, files in found if files is not None), FileState.of(model / LABELS_FILE))

    def _cannot_read(self, why: str) -> None:
        if why != self._unreadable:  # not at every look
            logger.error("the model repository cannot be followed now, what was there serves on: %s", why)
        self._unreadable = why

    def _differs(self, name: str, state: FolderState | None) -> bool:
        """Whether what is held of a model is not what is in its folder."""
        held, there = self._entries.get(name, {}), {} if state is None else dict(state.versions)
        chosen = self._chosen(name, _numbers(state))
        if any(version not in held or held[version].files != there[version] for version in chosen):
            return True
        if state is not None and state.labels != self._labels_file.get(name):
            return True
        standing_in = any(held[version].served is None for version in chosen)
        return bool(held.keys() - set(chosen)) and not standing_in

    async def _update(self, name: str, there: Sequence[int] | None = None) -> list[str]:
        """Load new and changed versions, let all take over together, and return what failed.

        Args:
            name: the model's.
            there: its versions; None: those that are there now.

        Raises:
            NotFoundError, ModelFileError: none is there, or the folder cannot be read.
        """
        there = self._require(name) if there is None else there
        failures = [failure for failure in [self._take_labels(name)] if failure is not None]
        chosen = self._chosen(name, there)
        held = self._entries.get(name, {})
        fresh: dict[int, Entry] = {}
        for version in chosen:
            old = held.get(version)
            if old is not None and old.served is not None and old.files == VersionState.of(self._path(name, version)):
                continue
            new = await self._load(name, version)
            if new.served is None:
                failures.append(f"{name} version {version}: {new.reason}")
                if old is not None and old.served is not None:
                    new = replace(old, reason=f"a changed file could not be loaded, the former one answers: {new.reason}", files=new.files)
            fresh[version] = new
        kept = {version: entry for version, entry in held.items() if version in chosen or (failures and entry.served is not None)}
        self._entries[name] = dict(sorted({**kept, **fresh}.items()))
        if not self._entries[name]:
            del self._entries[name]
        staying = {id(entry.served) for entry in self._entries.get(name, {}).values()}
        for entry in held.values():
            if id(entry.served) not in staying:
                self._let_go(entry)
        return failures

    async def _load(self, name: str, version: int) -> Entry:
        path = self._path(name, version)
        entry = Entry(name, version, files=VersionState.of(path))
        begun = time.monotonic()
        try:
            runner = await self._open(path)
        except DeviceError:
            raise  # what the user asked for, not this file, is at fault
        except TlcliError as error:
            logger.error("%s version %d: not served: %s", name, version, error)
            self._metrics.failed_to_load(name)
            return replace(entry, state=ModelState.FAILED, reason=str(error))
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            logger.exception("%s version %d: not served: it loads and does not run", name, version)
            self._metrics.failed_to_load(name)
            return replace(entry, state=ModelState.FAILED, reason=f"{path}: it loads and does not run: {first_line(error)}")
        took_s = time.monotonic() - begun
        self._metrics.loaded(name, took_s)
        description = runner.model.description
        logger.info(
            "%s version %d: ready on %s, %d labels, input %d x %d, maps: %s, loaded and warmed up in %.2f s",
            name,
            version,
            runner.how,
            len(description.labels),
            description.preprocessing.width,
            description.preprocessing.height,
            ", ".join(description.methods) or "none",
            took_s,
        )
        places = Admission(name, self._max_queue, runner.image_s)
        score_cams = Admission(name, self._max_score_cams, runner.score_cam_s, "Score-CAMs")
        served = Served(name, version, runner, places, score_cams)
        return replace(entry, state=ModelState.READY, served=served)

    def _let_go(self, entry: Entry) -> None:
        """Close a version that no new request can find, after those that it has."""
        if entry.served is not None:
            task = asyncio.ensure_future(_finish([entry.served]))
            self._going.add(task)
            task.add_done_callback(self._going.discard)

    def find(self, name: str, version: str) -> Served:
        """The version that answers.

        Args:
            name: the model's; may be empty where one model only is served.
            version: its number or a label of it; empty for the latest that is served.

        Raises:
            NotFoundError: no such model or version, or one that was unloaded; the message names those there are.
            ModelFileError: it is there and broken.
            ServerError: not everything is loaded yet.
        """
        if not self._loaded:
            raise ServerError("the server is still loading its models: ask again in a moment")
        if not name:
            name = self._only_name()
        found = self._entries.get(name)
        if found is None:
            raise self._unknown(name)
        labels = self._labels.get(name, {})
        if version:
            number = str(labels.get(version, version))
            wanted = next((entry for entry in found.values() if str(entry.version) == number), None)
            if wanted is None:
                raise NotFoundError(f"model {name!r} has no version {version!r}; it has: {', '.join(map(str, [*found, *labels]))}")
        else:
            wanted = self._latest_served(name) or found[max(found)]
        if wanted.served is None and wanted.state is ModelState.UNLOADED:
            raise NotFoundError(f"model {name!r} version {wanted.version} is not loaded: {wanted.reason}")
        if wanted.served is None:
            raise ModelFileError(f"model {name!r} version {wanted.version} is broken and not served: {wanted.reason}")
        current_request().note_model(name, wanted.version)
        return wanted.served

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every version of every model, sorted by name and number."""
        return tuple(ModelStatus(entry.name, str(entry.version), entry.state, entry.reason) for entry in self._all())

    def serving(self) -> dict[str, bool]:
        """Each model's name, and whether a version of it answers."""
        return {name: self._latest_served(name) is not None for name in self._entries}

    def queues(self) -> list[Queue]:
        """How many images wait for each version that is served; may be asked from any thread."""
        return [
            Queue(one.name, str(one.version), one.served.admission.taken, one.served.score_cams.taken)
            for one in self._all()
            if one.served is not None
        ]

    def close(self) -> None:
        """Stop the models' threads, after the runs under way."""
        for task in self._going:
            task.cancel()
        for entry in self._all():
            if entry.served is not None:
                entry.served.runner.close()

    def _names(self) -> list[str]:
        """Models that are there; one that cannot be read is left out, with a line in the log.

        Raises:
            NotFoundError: the repository cannot be read.
        """
        try:
            names = names_there(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            return model_names(self._folder)  # which says what to do
        except OSError as error:
            raise NotFoundError(f"{self._folder}: {error.strerror or error}: expected a model repository that can be read") from error
        found = []
        for name in names:
            try:
                if versions_there(self._folder / name):
                    found.append(name)
            except OSError as error:
                logger.error("%s: not served: %s: %s", name, self._folder / name, error.strerror or error)
        return found

    def _require(self, name: str) -> list[int]:
        """The versions in a model's folder.

        Raises:
            NotFoundError, ModelFileError: no such model, or its folder cannot be read.
        """
        try:
            there = versions_there(self._folder / name) if is_model_name(name) else []
        except OSError as error:
            raise ModelFileError(f"{self._folder / name}: {error.strerror or error}") from error
        if not there:
            raise self._unknown(name)
        return there

    def _chosen(self, name: str, there: Iterable[int]) -> list[int]:
        """Those of a model's versions that are to be served."""
        return self._policy.choose(there, self._labels.get(name, {}).values())

    def _take_labels(self, name: str) -> str | None:
        """Read a model's labels; what is wrong with them, if anything is: then the former ones stay."""
        path = self._folder / name
        self._labels_file[name] = FileState.of(path / LABELS_FILE)
        try:
            self._labels[name] = read_labels(path)
        except ModelFileError as error:
            return str(error)
        return None

    def _path(self, name: str, version: int) -> Path:
        return self._folder / name / str(version) / MODEL_FILE

    def _unknown(self, name: str) -> NotFoundError:
        return NotFoundError(f"no model {name!r} on this server; it has: {', '.join(sorted(self._entries))}")

    def _all(self) -> list[Entry]:
        return [entry for _, found in sorted(self._entries.items()) for entry in found.values()]

    def _latest_served(self, name: str) -> Entry | None:
        return next((entry for _, entry in sorted(self._entries[name].items(), reverse=True) if entry.served is not None), None)

    def _only_name(self) -> str:
        names = [name for name, answers in self.serving().items() if answers]
        if not names:
            raise NotFoundError("the request names no model, and this server has none that answers: load one, or see its log")
        if len(names) != 1:
            raise NotFoundError(f"the request names no model, and this server has several: {', '.join(names)}: name one of them")
        return names[0]


def _numbers(state: FolderState | None) -> list[int]:
    return [] if state is None else [version for version, _ in state.versions]


async def _finish(going: list[Served]) -> None:
    """Wait until a version is idle, and close it; its memory is given back in a thread, for it may take a while."""
    name, version = going[0].name, going[0].version
    while not going[0].idle:
        await asyncio.sleep(_LOOK_S)
    await asyncio.to_thread(_close, going)
    logger.info("%s version %d: unloaded", name, version)


def _close(going: list[Served]) -> None:
    going.pop().runner.close()
    trim_freed_memory()
