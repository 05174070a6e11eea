"""Server reflection, which lets clients list the methods and messages of the server."""

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
    """Add reflection to a `grpc.aio.Server` that has not started, or to an object that accepts handlers in the same way."""
    names = (*(service.full_name for service in SERVICES), health.SERVICE_NAME, reflection.SERVICE_NAME)
    pools = _DescriptorPools(OPEN_INFERENCE.file.pool, descriptor_pool.Default())
    reflection.enable_server_reflection(names, server, pools)  # type: ignore[arg-type]  # it calls no other method of a pool


class _DescriptorPools:
    """Combined view of several descriptor pools with the `DescriptorPool` methods that gRPC's reflection calls.

    Lookups by name return the entry of the first pool that has it.
    """

    def __init__(self, *pools: DescriptorPool) -> None:
        self._pools = pools

    def FindFileByName(self, name: str) -> FileDescriptor:  # noqa: N802
        """Return a file descriptor by name.

        Raises:
            KeyError: no pool has the file.
        """
        return self._first(lambda pool: pool.FindFileByName(name))

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802
        """Return the descriptor of the file that defines a symbol.

        Raises:
            KeyError: no pool has the symbol.
        """
        return self._first(lambda pool: pool.FindFileContainingSymbol(symbol))

    def FindMessageTypeByName(self, name: str) -> Descriptor:  # noqa: N802
        """Return a message descriptor by name.

        Raises:
            KeyError: no pool has the message.
        """
        return self._first(lambda pool: pool.FindMessageTypeByName(name))

    def FindExtensionByNumber(self, message: Descriptor, number: int) -> FieldDescriptor:  # noqa: N802
        """Return an extension of a message by its number.

        Raises:
            KeyError: the message's pool has no such extension.
        """
        return self._pool_of(message).FindExtensionByNumber(message, number)

    def FindAllExtensions(self, message: Descriptor) -> Sequence[FieldDescriptor]:  # noqa: N802
        """Return all extensions of a message from its own pool."""
        return self._pool_of(message).FindAllExtensions(message)

    def _pool_of(self, message: Descriptor) -> DescriptorPool:
        """Return the pool that the message belongs to. Other pools raise an error for the message."""
        return message.file.pool

    def _first(self, find: Callable[[DescriptorPool], T]) -> T:
        for pool in self._pools[:-1]:
            try:
                return find(pool)
            except KeyError:
                continue
        return find(self._pools[-1])
