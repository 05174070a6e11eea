"""`tlcli bench`: load-test a running server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tlcli.cli import options
from tlcli.cli.console import Console, show
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from tlcli.service.client.connection import Connection, ConnectionOptions
    from tlcli.service.client.load_test import Load, Measured

_COLUMNS = ["load", "answered_per_s", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99_9_ms", "refused", "codes"]


class _Numbers(click.ParamType[Any]):
    """Parameter type for a comma-separated list of positive numbers, such as 1,2,4."""

    name = "N,N,..."

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse the list of numbers.

        Raises:
            BadParameter: the value is not a list of positive numbers.
        """
        if not isinstance(value, str):
            return tuple(value)
        try:
            numbers = tuple(self._kind(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(0 < number < float("inf") for number in numbers):
            self.fail(f"{value!r}: expected positive numbers separated by commas, such as 1,2,4", param, ctx)
        return numbers


@click.command("bench", cls=Command)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", default="", help="Name of the model; required if the server holds several.")
@click.option("--version", default="", help="Version of the model.  [default: the latest]")
@click.option("--cam", metavar="METHOD", help="Request the values of this map, too, such as gradcam.")
@click.option("--clients", type=_Numbers(int), help="Closed loop: numbers of concurrent clients to try.  [default: 1,2,4,8,16]")
@click.option("--rate", "rates", type=_Numbers(float), help="Open loop instead: requests per second to try, Poisson arrivals.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="Duration of each step.")
@click.option(
    "--warm-up", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Seconds of warm-up before each step, not measured."
)
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0.001), default=30.0, show_default=True, help="Seconds to wait for a response."
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Draw latency over throughput to this image file.")
@options.server_options
@options.json_option
@options.quiet_option
def command(
    images: tuple[Path, ...],
    model: str,
    version: str,
    cam: str | None,
    clients: tuple[int, ...] | None,
    rates: tuple[float, ...] | None,
    seconds: float,
    warm_up: float,
    timeout_s: float,
    output: Path | None,
    host: str,
    port: int | None,
    how: ConnectionOptions,
    as_json: bool,
    quiet: bool,
) -> None:
    """Load-test a running server: throughput, latency, rejected requests.

    IMAGES are files and folders; they are sent in turn, unchanged. Run it on another machine than the server's: on the same one it
    competes with the server for CPU cores.

    \b
    tlcli bench FOLDER --clients 1,8,32 --cam gradcam
    """
    from tlcli.contract.errors import SettingsError
    from tlcli.service import Client
    from tlcli.service.client.connection import Connection
    from tlcli.service.client.load_test import Load
    from tlcli.service.client.request_stream import with_image
    from tlcli.service.protocol.codec import write_request
    from tlcli.service.types.query import MapQuery, Query

    if clients and rates:
        raise SettingsError("--clients (closed loop) and --rate (open loop) cannot be combined: use only one of them")
    loads = [Load(rate=rate) for rate in rates] if rates else [Load(clients=int(count)) for count in clients or (1, 2, 4, 8, 16)]
    console = Console(quiet)
    query = Query(model=model, version=version, map=MapQuery(cam) if cam else None)
    options.check_images(images)
    paths = options.find_images(images, console)
    messages = [write_request(with_image(query, path)).SerializeToString() for path in paths]
    how["retries"] = 0  # rejected requests must be counted, not retried
    with Client(host, port, **how) as client:
        client.classify(paths[0], model=model, version=version, cam=cam)  # raises an error if the request is invalid
    measured = []
    for load in loads:
        console.say(f"{_name(load)} for {seconds:g} s")
        measured.append(asyncio.run(_measure(Connection(host, port, **how), messages, load, seconds, warm_up, timeout_s)))
    rows = [_row(step) for step in measured]
    legible = [_legible(row, step.load) for row, step in zip(rows, measured, strict=True)]
    show(rows if as_json else legible, _COLUMNS, as_json)
    if output is not None:
        _draw(output, measured)


async def _measure(connection: Connection, messages: list[bytes], load: Load, seconds: float, warm_up: float, timeout_s: float) -> Measured:
    from tlcli.service.client.load_test import Target, measure

    async with Target(connection.aio_channel, messages, timeout_s, connection.metadata) as ask:
        return await measure(ask, load, seconds, warm_up)


def _name(load: Load) -> str:
    return f"{load.clients} client{'s' if load.clients > 1 else ''}" if load.clients else f"{load.rate:g} requests/s"


def _row(step: Measured) -> dict[str, Any]:
    """Return the measured values of one step, including the response counts by gRPC code."""
    from tlcli.service.client.load_test import PERCENTILES

    row: dict[str, Any] = {
        "clients": step.load.clients or None,
        "rate": step.load.rate or None,
        "answered_per_s": round(step.throughput, 2),
    }
    row |= {
        f"p{percent:g}_ms".replace(".", "_"): round(step.percentile_ms(percent), 2) if step.answered else None for percent in PERCENTILES
    }
    return {**row, "refused": len(step.refused_s), "codes": dict(sorted(step.codes.items()))}


def _legible(row: dict[str, Any], load: Load) -> dict[str, Any]:
    """Format a row for the table, with the load and the gRPC codes in one cell each."""
    return {**row, "load": _name(load), "codes": ", ".join(f"{code} {count}" for code, count in row["codes"].items())}


def _draw(path: Path, measured: list[Measured]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from tlcli.contract.files.atomic_file import whole_file

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    answered = [step for step in measured if step.answered]
    throughput = [step.throughput for step in answered]
    for percent in (50.0, 95.0, 99.0):
        axes.plot(throughput, [step.percentile_ms(percent) for step in answered], marker="o", label=f"p{percent:g}")
    for step in answered:
        place = (step.throughput, step.percentile_ms(50))
        axes.annotate(_name(step.load), place, textcoords="offset points", xytext=(6, -12), fontsize=8)
    axes.set(xlabel="answers per second", ylabel="latency, ms", ylim=(0, None), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "png", dpi=120)
    pyplot.close(figure)
