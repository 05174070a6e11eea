"""The models that a server holds: what is in the folder, what of it could be loaded, and which answers a request."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

from contract.errors import DeviceError, ModelFileError, NotFoundError, ServerError, TlcliError, first_line
from contract.layout import MODEL_FILE, model_names, versions
from service.admission import Admission
from service.answers import ModelState, ModelStatus
from service.batching import Batching
from service.runner import Runner

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A version of a model that answers requests."""

    name: str
    version: int
    runner: Runner
    admission: Admission


@dataclass(frozen=True)
class Entry:
    """A version of a model that is in the folder, served or not."""

    name: str
    version: int
    state: ModelState = ModelState.LOADING
    reason: str = ""
    served: Served | None = None


class Repository:
    """Every version of every model below a folder is loaded: a request may name any of them.

    A file that is broken is listed with the reason, and the others serve on. Where the latest version of a
    model is broken, the latest that loaded answers for it.

    Used from the event loop's thread only.
    """

    def __init__(self, folder: Path, device: str, threads: int, batching: Batching, max_queue: int) -> None:
        """max_queue: pictures that may wait for one version of a model."""
        self._folder = folder
        self._device = device
        self._threads = threads
        self._batching = batching
        self._max_queue = max_queue
        self._entries: dict[str, dict[int, Entry]] = {}
        self._loaded = False

    def discover(self) -> None:
        """List what is in the folder, without opening it.

        Raises:
            NotFoundError: no such folder, or no model in it.
        """
        for name in model_names(self._folder):
            self._entries[name] = {version: Entry(name, version) for version in versions(self._folder / name)}
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
        for entry in self._all():
            self._entries[entry.name][entry.version] = await self._load(entry)
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

    async def _load(self, entry: Entry) -> Entry:
        path = self._folder / entry.name / str(entry.version) / MODEL_FILE
        begun = time.monotonic()
        try:
            runner = await Runner.open(path, self._device, self._threads, self._batching)
        except DeviceError:
            raise  # what the user asked for, not this file, is at fault
        except TlcliError as error:
            logger.error("%s version %d: not served: %s", entry.name, entry.version, error)
            return replace(entry, state=ModelState.FAILED, reason=str(error))
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            logger.exception("%s version %d: not served: it loads and does not run", entry.name, entry.version)
            return replace(entry, state=ModelState.FAILED, reason=f"{path}: it loads and does not run: {first_line(error)}")
        description = runner.model.description
        logger.info(
            "%s version %d: ready on %s, %d labels, input %d x %d, maps: %s, loaded and warmed up in %.2f s",
            entry.name,
            entry.version,
            runner.model.device,
            len(description.labels),
            description.preprocessing.width,
            description.preprocessing.height,
            ", ".join(description.methods) or "none",
            time.monotonic() - begun,
        )
        admission = Admission(entry.name, self._max_queue, runner.picture_s)
        return replace(entry, state=ModelState.READY, served=Served(entry.name, entry.version, runner, admission))

    def find(self, name: str, version: str) -> Served:
        """The version that answers.

        Args:
            name: the model's; may be empty where one model only is served.
            version: its number; empty for the latest that is served.

        Raises:
            NotFoundError: no such model or version; the message names those there are.
            ModelFileError: it is there and broken.
            ServerError: not everything is loaded yet.
        """
        if not self._loaded:
            raise ServerError("the server is still loading its models: ask again in a moment")
        if not name:
            name = self._only_name()
        found = self._entries.get(name)
        if found is None:
            raise NotFoundError(f"no model {name!r} on this server; it has: {', '.join(self._entries)}")
        if version:
            wanted = next((entry for entry in found.values() if str(entry.version) == version), None)
            if wanted is None:
                raise NotFoundError(f"model {name!r} has no version {version!r}; it has: {', '.join(map(str, found))}")
        else:
            wanted = self._latest_served(name) or found[max(found)]
        if wanted.served is None:
            raise ModelFileError(f"model {name!r} version {wanted.version} is broken and not served: {wanted.reason}")
        return wanted.served

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every version of every model, sorted by name and number."""
        return tuple(ModelStatus(entry.name, str(entry.version), entry.state, entry.reason) for entry in self._all())

    def serving(self) -> dict[str, bool]:
        """Each model's name, and whether a version of it answers."""
        return {name: self._latest_served(name) is not None for name in self._entries}

    def close(self) -> None:
        """Stop the models' threads, after the runs under way."""
        for entry in self._all():
            if entry.served is not None:
                entry.served.runner.close()

    def _all(self) -> list[Entry]:
        return [entry for found in self._entries.values() for entry in found.values()]

    def _latest_served(self, name: str) -> Entry | None:
        return next((entry for _, entry in sorted(self._entries[name].items(), reverse=True) if entry.served is not None), None)

    def _only_name(self) -> str:
        names = [name for name, answers in self.serving().items() if answers]
        if len(names) != 1:
            raise NotFoundError(f"the request names no model, and this server has several: {', '.join(names)}: name one of them")
        return names[0]
