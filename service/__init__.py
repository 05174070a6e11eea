"""A model repository served over gRPC, and the clients that ask. No PyTorch.

A name is imported when it is first asked for: `tlcli health` needs a connection, and neither NumPy nor the server.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.answers import Classification, ClassMap, MapMethod, ModelInfo, ModelState, ModelStatus, Prediction, StreamAnswer, Timings
    from service.async_client import AsyncClient
    from service.client import Client
    from service.launch import in_background, serve
    from service.outgoing import Picture
    from service.query import MapFormat
    from service.server import Server
    from service.settings import ServerSettings

__all__ = [
    "AsyncClient",
    "ClassMap",
    "Classification",
    "Client",
    "MapFormat",
    "MapMethod",
    "ModelInfo",
    "ModelState",
    "ModelStatus",
    "Picture",
    "Prediction",
    "Server",
    "ServerSettings",
    "StreamAnswer",
    "Timings",
    "in_background",
    "serve",
]

_ELSEWHERE = {
    "AsyncClient": "async_client",
    "Client": "client",
    "MapFormat": "query",
    "Picture": "outgoing",
    "Server": "server",
    "ServerSettings": "settings",
    "in_background": "launch",
    "serve": "launch",
}
"""The modules of what is not in `answers`."""

if not TYPE_CHECKING:  # a type checker would take any name for one that there is

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"service.{_ELSEWHERE.get(name, 'answers')}"), name)
