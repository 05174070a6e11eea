"""Who may change what a running server holds: nobody, its clients by name, or the folder as it changes."""

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
    """Loads and unloads on demand, or follows the folder, as `mode` says; `on_change` is awaited after each change."""

    def __init__(self, repository: Repository, mode: str, poll_s: float, on_change: Callable[[], Awaitable[None]]) -> None:
        self._repository = repository
        self._mode = mode
        self._poll_s = poll_s
        self._on_change = on_change

    async def load(self, name: str, parameters: Iterable[str] = ()) -> None:
        """Take what is in a model's folder now; see `Repository.load_model`.

        Args:
            name: the model's.
            parameters: their names; Triton's `config` and `file:` would have another model loaded than the folder's.

        Raises:
            RequestError: a parameter.
            SettingsError: this server does not let its clients.
            NotFoundError, ModelFileError, DeviceError: see `Repository.load_model`.
        """
        self._require_explicit("loads")
        _require_none(parameters)
        try:
            await self._repository.load_model(name)
        finally:
            await self._on_change()

    async def unload(self, name: str, parameters: Iterable[str] = ()) -> None:
        """Serve no version of a model any longer; see `Repository.unload_model`.

        Args:
            name: the model's.
            parameters: their names; `unload_dependents` is taken, since no model depends on another.

        Raises:
            RequestError: another parameter.
            SettingsError: this server does not let its clients.
            NotFoundError: no such model.
        """
        self._require_explicit("unloads")
        _require_none(name for name in parameters if name != _DEPENDENTS)
        try:
            await self._repository.unload_model(name)
        finally:
            await self._on_change()

    async def follow(self) -> None:
        """In mode `poll`: take what changes in the folder, until cancelled. In the others: return."""
        while self._mode == POLL:
            await asyncio.sleep(self._poll_s)
            try:
                await self._repository.refresh()
            except (TlcliError, OSError) as error:
                logger.error("the model repository cannot be followed now: %s", error)
            await self._on_change()

    def _require_explicit(self, what: str) -> None:
        if self._mode != EXPLICIT:
            raise SettingsError(
                f"this server {what} no model for its clients: it was started with model_control {self._mode}, not {EXPLICIT}"
            )


def _require_none(parameters: Iterable[str]) -> None:
    for name in parameters:
        raise RequestError(f"parameter {name!r:.60} is not offered: a model is loaded as it is in its folder; put the files there")
