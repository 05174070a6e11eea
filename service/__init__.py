"""A model repository served over gRPC, and the clients that ask. No PyTorch.

A name is imported when it is first asked for: `tlcli health` needs a connection, and neither NumPy nor the server.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tlcli.service.client.async_client import AsyncClient
    from tlcli.service.client.request_stream import ImageInput
    from tlcli.service.client.sync_client import Client
    from tlcli.service.launch import in_background, serve
    from tlcli.service.server import Server
    from tlcli.service.settings.server_settings import ServerSettings
    from tlcli.service.types.answer import (
        Classification,
        ClassMap,
        MapMethod,
        ModelInfo,
        ModelState,
        ModelStatus,
        Prediction,
        StreamAnswer,
        Timings,
    )
    from tlcli.service.types.query import MapFormat

__all__ = [
    "AsyncClient",
    "ClassMap",
    "Classification",
    "Client",
    "ImageInput",
    "MapFormat",
    "MapMethod",
    "ModelInfo",
    "ModelState",
    "ModelStatus",
    "Prediction",
    "Server",
    "ServerSettings",
    "StreamAnswer",
    "Timings",
    "in_background",
    "serve",
]

_ELSEWHERE = {
    "AsyncClient": "client.async_client",
    "Client": "client.sync_client",
    "MapFormat": "types.query",
    "ImageInput": "client.request_stream",
    "Server": "server",
    "ServerSettings": "settings.server_settings",
    "in_background": "launch",
    "serve": "launch",
}
"""The modules of what is not in `types.answer`."""

if not TYPE_CHECKING:  # a type checker would take any name for one that there is

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'types.answer')}"), name)
