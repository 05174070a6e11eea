"""Control of the models that a running server serves: a fixed set, explicit loads and unloads, or polling of the folder."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from tlcli.contract.errors import RequestError, SettingsError, TlcliError
from tlcli.service.repository.model_repository import Repository

logger = logging.getLogger(__name__)

FIXED, EXPLICIT, POLL = "fixed", "explicit", "poll"
MODES = (FIXED, EXPLICIT, POLL)

_DEPENDENTS = "unload_dependents"


class ModelControl:
    """Controller that loads and unloads models.

    In mode `explicit`, clients load and unload models. In mode `poll`, changes in the folder do. In mode `fixed`, the models never change.
    `on_change` is awaited after each load, unload or poll.
    """

    def __init__(self, repository: Repository, mode: str, poll_s: float, on_change: Callable[[], Awaitable[None]]) -> None:
        self._repository = repository
        self._mode = mode
        self._poll_s = poll_s
        self._on_change = on_change

    async def load(self, name: str, parameters: Iterable[str] = ()) -> None:
        """Load the current content of a model's folder; see `Repository.load_model`.

        Args:
            name: name of the model.
            parameters: names of the request's parameters; none are accepted, because Triton's `config` and `file:` would load a different
                model than the one in the folder.

        Raises:
            RequestError: a parameter was sent.
            SettingsError: the mode is not `explicit`.
            NotFoundError, ModelFileError, DeviceError: see `Repository.load_model`.
        """
        self._require_explicit("load")
        _require_none(parameters)
        try:
            await self._repository.load_model(name)
        finally:
            await self._on_change()

    async def unload(self, name: str, parameters: Iterable[str] = ()) -> None:
        """Stop serving all versions of a model; see `Repository.unload_model`.

        Args:
            name: name of the model.
            parameters: names of the request's parameters; `unload_dependents` is accepted, since no model depends on another.

        Raises:
            RequestError: any other parameter was sent.
            SettingsError: the mode is not `explicit`.
            NotFoundError: the model does not exist.
        """
        self._require_explicit("unload")
        _require_none(name for name in parameters if name != _DEPENDENTS)
        try:
            await self._repository.unload_model(name)
        finally:
            await self._on_change()

    async def follow(self) -> None:
        """Poll the folder and load its changes until cancelled. In modes other than `poll`, return immediately."""
        while self._mode == POLL:
            await asyncio.sleep(self._poll_s)
            try:
                await self._repository.refresh()
            except (TlcliError, OSError) as error:
                logger.error("model repository cannot be polled: %s: retrying in %g s", error, self._poll_s)
            await self._on_change()

    def _require_explicit(self, action: str) -> None:
        if self._mode != EXPLICIT:
            raise SettingsError(
                f"clients cannot {action} models with model_control {self._mode}: start the server with --model-control {EXPLICIT}"
            )


def _require_none(parameters: Iterable[str]) -> None:
    for name in parameters:
        raise RequestError(f"parameter {name!r:.60} is not supported: models are loaded only from their folders; copy the files there")
