"""Server reflection: clients that ask are told which calls there are, and what they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from tlcli.service.protocol.rpc_methods import OPEN_INFERENCE, SERVICES

T = TypeVar("T")


def enable_reflection(server: Any) -> None:
    """On a `grpc.aio.Server` that has not started, or what takes handlers as it does."""
    names = (*(service.full_name for service in SERVICES), health.SERVICE_NAME, reflection.SERVICE_NAME)
    pools = _DescriptorPools(OPEN_INFERENCE.file.pool, descriptor_pool.Default())
    reflection.enable_server_reflection(names, server, pools)  # type: ignore[arg-type]  # it asks no more of a pool than this has


class _DescriptorPools:
    """What gRPC's reflection asks of a `DescriptorPool`, under the names it has there; the first pool that knows an answer gives it."""

    def __init__(self, *pools: DescriptorPool) -> None:
        self._pools = pools

    def FindFileByName(self, name: str) -> FileDescriptor:  # noqa: N802
        """Raises: KeyError: no pool has it."""
        return self._first(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        """Raises: KeyError: no pool has it."""
        return self._first(lambda pool: pool.FindFileContainingSymbol(symbol))

    def FindMessageTypeByName(self, name: str) -> Descriptor:  # noqa: N802
        """Raises: KeyError: no pool has it."""
        return self._first(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Descriptor, number: int) -> FieldDescriptor:  # noqa: N802
        """Raises: KeyError: the message's pool has none."""
        return self._of(message).FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Descriptor) -> Sequence[FieldDescriptor]:  # noqa: N802
        """Those of the message's pool."""
        return self._of(message).FindAllExtensions(message)

    def _of(self, message: Descriptor) -> DescriptorPool:
        """The pool that a message lives in: others take it for an error."""
        return message.file.pool

    def _first(self, find: Callable[[DescriptorPool], T]) -> T:
        for pool in self._pools[:-1]:
            try:
                return find(pool)
            except KeyError:
                continue
        return find(self._pools[-1])
