"""gRPC and HTTP server for a model repository, with Python clients. This package does not need PyTorch.

Names are imported on first use, so `tlcli health`, which needs only a connection, imports neither NumPy nor the server.
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

_MODULES = {
    "AsyncClient": "client.async_client",
    "Client": "client.sync_client",
    "MapFormat": "types.query",
    "ImageInput": "client.request_stream",
    "Server": "server",
    "ServerSettings": "settings.server_settings",
    "in_background": "launch",
    "serve": "launch",
}
"""Submodules that define the public names. Names not listed here are in `types.answer`."""

if not TYPE_CHECKING:  # hidden from type checkers, which would accept any name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'types.answer')}"), name)
