"""`tlcli health`: check the health of a server. Containers run this command often, so it imports as little as possible."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tlcli.cli import options
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.service.client.connection import ConnectionOptions

PREFIX = "TLCLI_HEALTH_"
"""Prefix of the environment variables for the options."""


@click.command(
    "health",
    cls=Command,
    context_settings={"auto_envvar_prefix": PREFIX.rstrip("_")},
    epilog=f"Every flag can be set by an environment variable, such as {PREFIX}PORT, without changing an image's health check.",
)
@click.option("--model", default="", help="Check this model instead of the entire server.")
@click.option(
    "--timeout",
    "timeout_s",
    envvar=f"{PREFIX}TIMEOUT",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds to wait for the response.",
)
@options.server_options
def command(
    model: str,
    timeout_s: float,
    host: str,
    port: int | None,
    how: ConnectionOptions,
) -> None:
    """Check whether a running server is ready, for containers.

    Uses grpc.health.v1, as load balancers do. Prints one line; the exit code is 0 if the server reports SERVING, and 1 otherwise.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from tlcli.service.client.connection import Connection

    how["retries"] = 0  # the caller repeats health checks anyway
    connection = Connection(host, port, **how)
    name = f"{connection.address}{f', model {model!r}' if model else ''}"
    with connection.channel() as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=model), timeout=timeout_s, metadata=connection.metadata
            )
        except grpc.RpcError as error:
            click.echo(f"{name}: {_problem(error.code(), error.details(), timeout_s)}", err=True)
            sys.exit(1)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        click.echo(f"{name}: {health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)}", err=True)
        sys.exit(1)
    click.echo(f"{name}: SERVING")


def _problem(code: object, details: str | None, timeout_s: float) -> str:
    import grpc

    text = " ".join((details or "").split())
    if code is grpc.StatusCode.NOT_FOUND:
        return "no such model on the server: `tlcli models` lists those of a repository"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {timeout_s:g} s (--timeout)"
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"no server responds: check --host and --port, and --tls or --tls-ca if it uses TLS ({text})"
    return text or getattr(code, "name", str(code))
