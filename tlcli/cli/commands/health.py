"""`tlcli health`: for containers, which ask often: it imports as little as it can."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from tlcli.cli import options
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.service.client.connection import ConnectionOptions

PREFIX = "TLCLI_HEALTH_"
"""Of the environment variables."""


@click.command(
    "health",
    cls=Command,
    context_settings={"auto_envvar_prefix": PREFIX.rstrip("_")},
    epilog=f"Each flag may be an environment variable too ({PREFIX}PORT), so that an image's health check need not be rewritten.",
)
@click.option("--model", default="", help="Ask for this model, not for the server as a whole.")
@click.option(
    "--timeout",
    "timeout_s",
    envvar=f"{PREFIX}TIMEOUT",
    type=click.FloatRange(min=0, min_open=True),
    default=3.0,
    show_default=True,
    help="Seconds for the answer.",
)
@options.server_options
def command(
    model: str,
    timeout_s: float,
    host: str,
    port: int | None,
    how: ConnectionOptions,
) -> None:
    """Ask a running server whether it serves, for containers.

    By grpc.health.v1, as load balancers ask. Prints a line; the exit code is 0 if the server says SERVING, and 1 otherwise.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from tlcli.service.client.connection import Connection

    how["retries"] = 0  # who asks for health asks again
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

    told = " ".join((details or "").split())
    if code is grpc.StatusCode.NOT_FOUND:
        return "the server knows no model of this name: `tlcli models` lists those in a folder"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {timeout_s:g} s (--timeout)"
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"no server answers: say where it is with --host and --port, and --tls or --tls-ca if it has TLS ({told})"
    return told or getattr(code, "name", str(code))
