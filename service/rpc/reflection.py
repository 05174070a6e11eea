"""Server reflection: clients that ask are told which calls there are, and what they take."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from tlcli.service.protocol.rpc_methods import OPEN_INFERENCE, SERVICES
from tlcli.service.rpc.descriptor_pools import Pools


def enable_reflection(server: Any) -> None:
    """On a `grpc.aio.Server` that has not started, or what takes handlers as it does."""
    names = (*(service.full_name for service in SERVICES), health.SERVICE_NAME, reflection.SERVICE_NAME)
    pools = Pools(OPEN_INFERENCE.file.pool, descriptor_pool.Default())
    reflection.enable_server_reflection(names, server, pools)  # type: ignore[arg-type]  # it asks no more of a pool than this has
