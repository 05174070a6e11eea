"""A model repository served over gRPC, and the client that asks. No PyTorch."""

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
