"""Model repository: tracks the versions in the folder, loads them, and selects the version that serves a request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tlcli.contract.errors import DeviceError, ModelFileError, NotFoundError, ServerError, TlcliError, first_line
from tlcli.contract.model.repository_layout import MODEL_FILE, is_model_name, model_names
from tlcli.contract.process.malloc import trim_freed_memory
from tlcli.service.execution.admission import Admission
from tlcli.service.execution.runner import Runner, takes_steps
from tlcli.service.repository.version_policy import LABELS_FILE, VersionPolicy, read_labels
from tlcli.service.repository.version_state import FileState, FolderState, VersionState, list_models, list_versions
from tlcli.service.telemetry.metrics import NO_METRICS, Metrics, Queue
from tlcli.service.telemetry.request_record import current_request
from tlcli.service.types.answer import ModelState, ModelStatus

logger = logging.getLogger(__name__)

_IDLE_CHECK_S = 0.02
"""Seconds between checks for requests still in flight on a retired version."""

Open = Callable[[Path], Awaitable[Runner]]


@dataclass(frozen=True)
class ServedVersion:
    """Loaded version of a model that handles requests."""

    name: str
    version: int
    runner: Runner
    admission: Admission
    score_cams: Admission

    def queue(self, maps: Iterable[str]) -> Admission:
        """Return the admission control for a request with these maps. Score-CAMs have separate slots so that they do not block others."""
        return self.score_cams if takes_steps(maps) else self.admission

    @property
    def idle(self) -> bool:
        """Return True if no request is in flight."""
        return self.admission.idle and self.score_cams.idle and self.runner.idle


@dataclass(frozen=True)
class Entry:
    """Repository entry for one version of a model, served or not.

    state: load state of the version.
    reason: explanation of the state; empty while nothing is wrong.
    served: the loaded version; None if it is not served.
    files: identity of its files when it was loaded or failed to load.
    """

    name: str
    version: int
    state: ModelState = ModelState.LOADING
    reason: str = ""
    served: ServedVersion | None = None
    files: VersionState | None = None


@dataclass(frozen=True)
class Diff:
    """Difference between the entries of a model on the server and the versions in its folder that should be served.

    load: versions to load: new ones, changed ones, and unchanged ones that are not served.
    changed: versions in `load` that are new or whose files changed.
    keep: entries that are served and unchanged.
    retire: entries that should no longer be served.
    """

    load: tuple[int, ...]
    changed: tuple[int, ...]
    keep: Mapping[int, Entry]
    retire: Mapping[int, Entry]

    @classmethod
    def between(cls, held: Mapping[int, Entry], folder: Mapping[int, VersionState]) -> Diff:
        """Compare the current entries with the versions to serve.

        Args:
            held: entries on the server by version.
            folder: identity of the files of each version to serve.
        """
        keep = {
            version: held[version]
            for version, files in folder.items()
            if version in held and held[version].served is not None and held[version].files == files
        }
        return cls(
            load=tuple(version for version in folder if version not in keep),
            changed=tuple(version for version, files in folder.items() if version not in held or held[version].files != files),
            keep=keep,
            retire={version: entry for version, entry in held.items() if version not in folder},
        )

    @property
    def calls_for_update(self) -> bool:
        """Return True if polling should apply the difference.

        A version that failed to load is not retried until its files change. Until then, no version is retired.
        """
        return bool(self.changed or (self.retire and not self.load))


class Repository:
    """Repository that serves the versions of the models in a folder, chosen by a policy.

    Requests select a version by number or label. A version with a broken file is listed with the reason, and the other versions keep
    serving. If the latest version of a model is broken, the latest version that loaded is served instead. A replaced or unloaded version
    finishes its in-flight requests, then closes.

    Not thread-safe: use it from the event loop's thread only.
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
        """Create an empty repository. Call `discover` and `load` to fill it.

        Args:
            folder: folder that holds the models as `<name>/<version>/model.onnx`.
            open_runner: loads and warms up the model in a file.
            policy: policy that chooses the versions to serve.
            max_queue: maximum number of images that may wait for one version of a model.
            metrics: metrics that count loads.
            max_score_cams: maximum number of Score-CAMs that may wait or be in progress for one version of a model.
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
        self._last_states: dict[str, FolderState | None] = {}
        self._unreadable = ""
        self._unreadable_models: dict[str, str] = {}
        self._changing = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()
        self._loaded = False

    def discover(self) -> None:
        """Find the models in the folder without opening them.

        Raises:
            NotFoundError: the folder does not exist or holds no model.
        """
        for name in self._names():
            if (failure := self._read_labels(name)) is not None:
                logger.error("%s: versions have no labels: %s", name, failure)
            if chosen := self._chosen(name, list_versions(self._folder / name)):
                self._entries[name] = {version: Entry(name, version) for version in chosen}
        if not self._entries:
            raise NotFoundError(
                f"{self._folder}: no model found: expected <name>/<version>/{MODEL_FILE}, as `tlcli finetune` and `tlcli export` write it"
            )

    async def load(self) -> None:
        """Load and warm up the discovered versions, one after another.

        Raises:
            ModelFileError: no version can be served; the message lists the reason for each.
            DeviceError: the requested device cannot be used.
        """
        async with self._changing:
            for entry in self._all():
                self._entries[entry.name][entry.version] = await self._load(entry.name, entry.version)
        ready = [entry for entry in self._all() if entry.served is not None]
        failed = [entry for entry in self._all() if entry.served is None]
        if not ready:
            reasons = "; ".join(f"{entry.name} version {entry.version}: {entry.reason}" for entry in failed)
            raise ModelFileError(f"{self._folder}: none of its models can be served: {reasons}")
        for name, entries in self._entries.items():
            latest = self._latest_served(name)
            if latest is not None and latest.version != max(entries):
                logger.warning("%s: version %d is broken, serving version %d instead", name, max(entries), latest.version)
        self._loaded = True

    async def load_model(self, name: str) -> None:
        """Load the current content of a model's folder.

        New versions and changed files are loaded first and then activated together. Versions that the policy no longer chooses are retired.
        If a version fails to load, the versions that are already served stay.

        Raises:
            NotFoundError: the folder holds no such model.
            ModelFileError: a version cannot be served; the other versions are.
            DeviceError: the requested device cannot be used.
        """
        async with self._changing:
            try:
                failures = await self._update(name, self._require(name))
            except OSError as error:
                raise ModelFileError(f"{self._folder / name}: {error.strerror or error}") from error
        if failures:
            raise ModelFileError("; ".join(failures))

    async def unload_model(self, name: str) -> None:
        """Stop serving all versions of a model. In-flight requests still complete.

        Raises:
            NotFoundError: the model does not exist.
        """
        async with self._changing:
            entries = self._entries.get(name)
            if entries is None:
                raise self._unknown(name)
            for version, entry in entries.items():
                entries[version] = Entry(name, version, ModelState.UNLOADED, "it was unloaded")
                self._retire(entry)

    async def refresh(self) -> None:
        """Poll the folder and apply changes once they are complete, that is, once two consecutive calls see the same state.

        Deleted versions therefore stay served until a second call also finds them missing. Nothing changes if the repository cannot be read
        or holds no model, for example because it is not mounted. A model whose folder cannot be read does not change either.
        """
        async with self._changing:
            try:
                states = await asyncio.to_thread(self._folder_states)
            except OSError as error:
                self._log_unreadable(f"{self._folder}: {error.strerror or error}")
                return
            if not any(states.values()):
                self._log_unreadable(f"{self._folder}: no longer contains a model")
                return
            self._unreadable = ""
            last, self._last_states = self._last_states, states
            for name, state in states.items():
                if name in last and last[name] == state and self._is_outdated(name, state):
                    for failure in await self._update(name, state):
                        logger.error("%s: %s", name, failure)

    def _folder_states(self) -> dict[str, FolderState | None]:
        """Return the state of each model that is in the folder or on the server.

        The state is None for a deleted model. For an unreadable model it is the last known state.

        Raises:
            OSError: the repository cannot be read.
        """
        names = {*list_models(self._folder), *self._entries}
        states: dict[str, FolderState | None] = {}
        for name in sorted(names):
            try:
                state = self._state(name)
            except OSError as error:
                reason = str(error.strerror or error)
                if reason != self._unreadable_models.get(name):  # log once per failure, not on every call
                    logger.warning("%s: folder cannot be read, still serving its loaded versions: %s", name, reason)
                self._unreadable_models[name] = reason
                if name in self._last_states:
                    states[name] = self._last_states[name]
                continue
            self._unreadable_models.pop(name, None)
            if state.versions or name in self._entries:
                states[name] = state if state.versions else None
        return states

    def _state(self, name: str) -> FolderState:
        model = self._folder / name
        versions = ((version, VersionState.of(self._path(name, version))) for version in list_versions(model))
        return FolderState(tuple((version, files) for version, files in versions if files is not None), FileState.of(model / LABELS_FILE))

    def _log_unreadable(self, reason: str) -> None:
        if reason != self._unreadable:  # log once per failure, not on every call
            logger.error("model repository cannot be read, still serving its loaded models: %s", reason)
        self._unreadable = reason

    def _diff(self, name: str, state: FolderState | None) -> Diff:
        """Compare a model's entries with the state of its folder; None represents a deleted folder."""
        versions = {} if state is None else dict(state.versions)
        return Diff.between(self._entries.get(name, {}), {version: versions[version] for version in self._chosen(name, versions)})

    def _is_outdated(self, name: str, state: FolderState | None) -> bool:
        """Return True if polling should update a model because its versions or labels changed."""
        if state is not None and state.labels != self._labels_file.get(name):
            return True
        return self._diff(name, state).calls_for_update

    async def _update(self, name: str, state: FolderState | None) -> list[str]:
        """Load the new and changed versions of a model, activate them together, and retire versions that should no longer be served.

        If a version fails to load or the labels cannot be read, the versions that are already served stay.

        Args:
            name: name of the model.
            state: state of its folder; None if the folder was deleted.

        Returns:
            Messages that describe the failures; empty on success.
        """
        failures = [failure for failure in [self._read_labels(name)] if failure is not None]
        diff, held = self._diff(name, state), self._entries.get(name, {})
        loaded = {version: await self._load(name, version) for version in diff.load}
        failures += [f"{name} version {version}: {entry.reason}" for version, entry in loaded.items() if entry.served is None]
        replaced = {version: _unless_failed(entry, held.get(version)) for version, entry in loaded.items()}
        staying = {version: entry for version, entry in diff.retire.items() if failures and entry.served is not None}
        self._replace(name, {**diff.keep, **staying, **replaced})
        return failures

    def _replace(self, name: str, entries: Mapping[int, Entry]) -> None:
        """Replace a model's entries and retire the served versions that are not among the new ones."""
        held = self._entries.get(name, {})
        if entries:
            self._entries[name] = dict(sorted(entries.items()))
        else:
            self._entries.pop(name, None)
        staying = {id(entry.served) for entry in entries.values()}
        for entry in held.values():
            if id(entry.served) not in staying:
                self._retire(entry)

    async def _load(self, name: str, version: int) -> Entry:
        path = self._path(name, version)
        entry = Entry(name, version, files=VersionState.of(path))
        begun = time.monotonic()
        try:
            runner = await self._open(path)
        except DeviceError:
            raise  # the device setting is at fault, not this file
        except TlcliError as error:
            logger.error("%s version %d: not served: %s", name, version, error)
            self._metrics.failed_to_load(name)
            return replace(entry, state=ModelState.FAILED, reason=str(error))
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            logger.exception("%s version %d: not served: it loads but does not run", name, version)
            self._metrics.failed_to_load(name)
            return replace(entry, state=ModelState.FAILED, reason=f"{path}: it loads but does not run: {first_line(error)}")
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
        admission = Admission(name, self._max_queue, runner.image_s)
        score_cams = Admission(name, self._max_score_cams, runner.score_cam_s, "Score-CAMs")
        served = ServedVersion(name, version, runner, admission, score_cams)
        return replace(entry, state=ModelState.READY, served=served)

    def _retire(self, entry: Entry) -> None:
        """Schedule the close of a version after its in-flight requests. New requests must no longer find it."""
        if entry.served is not None:
            task = asyncio.ensure_future(_close_when_idle([entry.served]))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def find(self, name: str, version: str) -> ServedVersion:
        """Return the version that serves a request.

        Args:
            name: name of the model; may be empty if only one model is served.
            version: number or label; empty for the latest version that is served.

        Raises:
            NotFoundError: the model or version does not exist, or it was unloaded. For an unknown model or version, the message lists the
                existing ones.
            ModelFileError: the version exists but is broken.
            ServerError: the models are still loading.
        """
        if not self._loaded:
            raise ServerError("the server is still loading its models: retry in a moment")
        if not name:
            name = self._only_name()
        entries = self._entries.get(name)
        if entries is None:
            raise self._unknown(name)
        labels = self._labels.get(name, {})
        if version:
            number = str(labels.get(version, version))
            match = next((entry for entry in entries.values() if str(entry.version) == number), None)
            if match is None:
                raise NotFoundError(f"model {name!r} has no version {version!r}; it has: {', '.join(map(str, [*entries, *labels]))}")
        else:
            match = self._latest_served(name) or entries[max(entries)]
        if match.served is None and match.state is ModelState.UNLOADED:
            raise NotFoundError(f"model {name!r} version {match.version} is not loaded: {match.reason}")
        if match.served is None:
            raise ModelFileError(f"model {name!r} version {match.version} is broken and not served: {match.reason}")
        current_request().note_model(name, match.version)
        return match.served

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Return the status of every version of every model, sorted by name and number."""
        return tuple(ModelStatus(entry.name, str(entry.version), entry.state, entry.reason) for entry in self._all())

    def serving(self) -> dict[str, bool]:
        """Return a mapping from each model's name to True if any version of the model is served, and False otherwise."""
        return {name: self._latest_served(name) is not None for name in self._entries}

    def queues(self) -> list[Queue]:
        """Return the queue lengths of each served version. May be called from any thread."""
        return [
            Queue(entry.name, str(entry.version), entry.served.admission.used, entry.served.score_cams.used)
            for entry in self._all()
            if entry.served is not None
        ]

    def close(self) -> None:
        """Stop the models' threads once their current runs are done."""
        for task in self._retiring:
            task.cancel()
        for entry in self._all():
            if entry.served is not None:
                entry.served.runner.close()

    def _names(self) -> list[str]:
        """Return the names of the models in the folder. Unreadable models are logged and skipped.

        Raises:
            NotFoundError: the repository cannot be read.
        """
        try:
            names = list_models(self._folder)
        except (FileNotFoundError, NotADirectoryError):
            return model_names(self._folder)  # raises an error that tells the user what to do
        except OSError as error:
            raise NotFoundError(f"{self._folder}: {error.strerror or error}: expected a readable model repository") from error
        models = []
        for name in names:
            try:
                if list_versions(self._folder / name):
                    models.append(name)
            except OSError as error:
                logger.error("%s: not served: %s: %s", name, self._folder / name, error.strerror or error)
        return models

    def _require(self, name: str) -> FolderState:
        """Return the state of a model's folder.

        Raises:
            NotFoundError: the model does not exist.
            OSError: its folder cannot be read.
        """
        state = self._state(name) if is_model_name(name) else None
        if state is None or not state.versions:
            raise self._unknown(name)
        return state

    def _chosen(self, name: str, versions: Iterable[int]) -> list[int]:
        """Return the versions of a model that the policy chooses, in ascending order."""
        return self._policy.choose(versions, self._labels.get(name, {}).values())

    def _read_labels(self, name: str) -> str | None:
        """Read a model's labels. On failure, keep the previous labels and return the reason; return None on success."""
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
        return [entry for _, entries in sorted(self._entries.items()) for entry in entries.values()]

    def _latest_served(self, name: str) -> Entry | None:
        return next((entry for _, entry in sorted(self._entries[name].items(), reverse=True) if entry.served is not None), None)

    def _only_name(self) -> str:
        names = [name for name, served in self.serving().items() if served]
        if not names:
            raise NotFoundError("the request names no model, and this server serves none: load one, or see its log")
        if len(names) != 1:
            raise NotFoundError(f"the request names no model, and this server has several: {', '.join(names)}: name one of them")
        return names[0]


def _unless_failed(loaded: Entry, former: Entry | None) -> Entry:
    """Return the new entry unless it failed to load while a former one is served.

    In that case, return the former entry with the failure reason and the identity of the new files.
    """
    if loaded.served is not None or former is None or former.served is None:
        return loaded
    return replace(former, reason=f"a changed file could not be loaded, the former one answers: {loaded.reason}", files=loaded.files)


async def _close_when_idle(versions: list[ServedVersion]) -> None:
    """Wait until a version is idle, then close it in a thread, because freeing its memory may take a while.

    Args:
        versions: list that holds only this version. The thread removes it from the list to drop the last reference there.
    """
    name, number = versions[0].name, versions[0].version
    while not versions[0].idle:
        await asyncio.sleep(_IDLE_CHECK_S)
    await asyncio.to_thread(_close, versions)
    logger.info("%s version %d: unloaded", name, number)


def _close(versions: list[ServedVersion]) -> None:
    versions.pop().runner.close()
    trim_freed_memory()
