"""The calls of our gRPC services, as the .proto files declare them, and what an edge needs of one.

A server's handlers are made of this, and so are those of a proxy that passes calls on: it needs no edge and no model for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from tlcli.service.pb.inference import open_inference_pb2
from tlcli.service.pb.tlcli.v1 import classifier_pb2

CLASSIFIER: ServiceDescriptor = classifier_pb2.DESCRIPTOR.services_by_name["Classifier"]
OPEN_INFERENCE: ServiceDescriptor = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
SERVICES = (CLASSIFIER, OPEN_INFERENCE)

Metadata = Sequence[tuple[str, str | bytes]]
Behaviour = Callable[..., Any]
"""Answers a call: from bytes, or an iterator of them, and a `Context`, to a message; a stream's writes its messages to the context."""


class Context(Protocol):
    """What answering a call takes of its context: gRPC's own, or that of something else that took the call."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call with this status."""
        ...

    async def write(self, message: Any) -> None:
        """Send one message of a stream."""
        ...

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """What goes behind the answer."""
        ...

    def code(self) -> grpc.StatusCode:
        """The status set so far; a number while there is none."""
        ...

    def time_remaining(self) -> float | None:
        """Seconds to the call's deadline; None where it has none, or it is not known."""
        ...


def path_of(method: MethodDescriptor) -> str:
    """As gRPC sends it: `/package.Service/Method`."""
    return f"/{method.containing_service.full_name}/{method.name}"


def handler(service: ServiceDescriptor, behaviours: Mapping[str, Behaviour]) -> grpc.GenericRpcHandler[Any, Any]:
    """What a server offers a service with.

    Args:
        service: its calls take and give one message, or stream both ways.
        behaviours: of each call, by its name.

    Raises:
        KeyError: a call of the service is missing.
    """
    return grpc.method_handlers_generic_handler(
        service.full_name, {one.name: _handler(one, behaviours[one.name]) for one in service.methods}
    )


def _handler(method: MethodDescriptor, behaviour: Behaviour) -> grpc.RpcMethodHandler[Any, Any]:
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(behaviour, response_serializer=_serialize)
    return grpc.unary_unary_rpc_method_handler(behaviour, response_serializer=_serialize)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
