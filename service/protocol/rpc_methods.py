"""Methods of our gRPC services, read from the .proto files, and the handlers built from them.

Both servers and proxies that forward calls use this module. A proxy needs neither servicers nor models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from tlcli.service.pb.inference import open_inference_pb2
from tlcli.service.pb.tlcli.v1 import classifier_pb2

CLASSIFIER: ServiceDescriptor = classifier_pb2.DESCRIPTOR.services_by_name["Classifier"]
OPEN_INFERENCE: ServiceDescriptor = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
SERVICES = (CLASSIFIER, OPEN_INFERENCE)

_SERIALIZE = methodcaller("SerializeToString")

Metadata = Sequence[tuple[str, str | bytes]]
Behaviour = Callable[..., Any]
"""Function that handles a call. It takes the request as bytes, or as an iterator of bytes, and a `Context`, and returns a message.

For a stream, it writes its messages to the context instead of returning one.
"""


class Context(Protocol):
    """Context of a call, provided by gRPC or by another program that received the call."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        """End the call with the given status."""
        ...

    async def write(self, message: Any) -> None:
        """Send one message of a stream."""
        ...

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """Set the metadata to send after the response."""
        ...

    def code(self) -> grpc.StatusCode:
        """Return the status code set so far, or a number if none is set."""
        ...

    def time_remaining(self) -> float | None:
        """Return the seconds until the call's deadline, or None if no deadline is known."""
        ...


def path_of(method: MethodDescriptor) -> str:
    """Return the gRPC path of a method: `/package.Service/Method`."""
    return f"/{method.containing_service.full_name}/{method.name}"


def handler(service: ServiceDescriptor, behaviours: Mapping[str, Behaviour]) -> grpc.GenericRpcHandler[Any, Any]:
    """Build the gRPC handler of a service.

    Args:
        service: service whose methods are each unary in both directions or streaming in both directions.
        behaviours: functions that implement the methods, by method name.

    Raises:
        KeyError: `behaviours` lacks a method of the service.
    """
    return grpc.method_handlers_generic_handler(
        service.full_name, {method.name: _handler(method, behaviours[method.name]) for method in service.methods}
    )


def _handler(method: MethodDescriptor, behaviour: Behaviour) -> grpc.RpcMethodHandler[Any, Any]:
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(behaviour, response_serializer=_SERIALIZE)
    return grpc.unary_unary_rpc_method_handler(behaviour, response_serializer=_SERIALIZE)
