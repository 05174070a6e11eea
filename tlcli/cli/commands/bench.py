"""`tlcli bench`: put a load on a running server, and see what it makes of it."""

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

_COLUMNS = ["load", "answered/s", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "p99.9 ms", "refused", "codes"]


class _Numbers(click.ParamType[Any]):
    """`1,2,4`: positive numbers."""

    name = "N,N,..."

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Raises: BadParameter: not such a list."""
        if not isinstance(value, str):
            return tuple(value)
        try:
            numbers = tuple(self._kind(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(0 < number < float("inf") for number in numbers):
            self.fail(f"{value!r}: expected positive numbers with commas between them, such as 1,2,4", param, ctx)
        return numbers


@click.command("bench", cls=Command)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", default="", help="The model's name; needed where the server holds several.")
@click.option("--version", default="", help="Its version.  [default: the latest]")
@click.option("--cam", "method", metavar="METHOD", help="Ask for this map's values too, for example gradcam.")
@click.option("--clients", type=_Numbers(int), help="Closed loops: each client asks when it has its answer.  [default: 1,2,4,8,16]")
@click.option("--rate", "rates", type=_Numbers(float), help="Open loops instead: so many requests a second, come what may.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="How long each step lasts.")
@click.option("--warm-up", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Seconds before that, not counted.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0.001), default=30.0, show_default=True, help="Of a request, in seconds.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw latency over throughput into this file.")
@options.server_options
@options.json_option
@options.quiet_option
def command(
    images: tuple[Path, ...],
    model: str,
    version: str,
    method: str | None,
    clients: tuple[int, ...] | None,
    rates: tuple[float, ...] | None,
    seconds: float,
    warm_up: float,
    timeout_s: float,
    plot: Path | None,
    host: str,
    port: int | None,
    how: ConnectionOptions,
    as_json: bool,
    quiet: bool,
) -> None:
    """Put a load on a running server: throughput, latencies, refusals.

    IMAGES are files and folders; they are sent in turn, as they are. Run it on another machine than the server's,
    or count what it takes itself.
    """
    from tlcli.contract.errors import SettingsError
    from tlcli.contract.images import decoding as reading
    from tlcli.contract.images.find_images import Skipped, describe
    from tlcli.service import Client
    from tlcli.service.client.connection import Connection
    from tlcli.service.client.load_test import Load
    from tlcli.service.client.request_stream import with_image
    from tlcli.service.protocol.codec import write_request
    from tlcli.service.types.query import MapQuery, Query

    if clients and rates:
        raise SettingsError("--clients and --rate: closed loops or open ones, not both")
    loads = [Load(rate=rate) for rate in rates] if rates else [Load(clients=int(count)) for count in clients or (1, 2, 4, 8, 16)]
    console = Console(quiet)
    query = Query(model=model, version=version, map=MapQuery(method) if method else None)
    options.check_images(images)
    skipped: list[Skipped] = []
    found = reading.find(images, skipped)
    for line in describe(skipped):
        console.say(line)
    messages = [write_request(with_image(query, path)).SerializeToString() for path in found]
    how["retries"] = 0  # or what is refused would not be seen
    with Client(host, port, **how) as client:
        client.classify(found[0], model=model, version=version, cam=method)  # says what is wrong, if anything is
    measured = []
    for load in loads:
        console.say(f"{_name(load)} for {seconds:g} s")
        measured.append(asyncio.run(_measure(Connection(host, port, **how), messages, load, seconds, warm_up, timeout_s)))
    show([_row(one) for one in measured], _COLUMNS, as_json)
    if plot is not None:
        _draw(plot, measured)


async def _measure(connection: Connection, messages: list[bytes], load: Load, seconds: float, warm_up: float, timeout_s: float) -> Measured:
    from tlcli.service.client.load_test import Target, measure

    async with Target(connection.aio_channel, messages, timeout_s, connection.metadata) as ask:
        return await measure(ask, load, seconds, warm_up)


def _name(load: Load) -> str:
    return f"{load.clients} client{'s' if load.clients > 1 else ''}" if load.clients else f"{load.rate:g} requests/s"


def _row(one: Measured) -> dict[str, Any]:
    from tlcli.service.client.load_test import PERCENTILES

    row: dict[str, Any] = {"load": _name(one.load), "answered/s": round(one.throughput, 2)}
    row.update({f"p{percent:g} ms": round(one.percentile_ms(percent), 2) if one.answered else None for percent in PERCENTILES})
    row["refused"] = len(one.refused_s)
    row["codes"] = ", ".join(f"{code} {count}" for code, count in sorted(one.codes.items()))
    return row


def _draw(path: Path, measured: list[Measured]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from tlcli.contract.files.atomic_file import whole_file

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    answered = [one for one in measured if one.answered]
    for percent in (50.0, 95.0, 99.0):
        axes.plot([one.throughput for one in answered], [one.percentile_ms(percent) for one in answered], marker="o", label=f"p{percent:g}")
    for one in answered:
        axes.annotate(_name(one.load), (one.throughput, one.percentile_ms(50)), textcoords="offset points", xytext=(6, -12), fontsize=8)
    axes.set(xlabel="answers a second", ylabel="latency, ms", ylim=(0, None), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix.lstrip(".") or "png", dpi=120)
    pyplot.close(figure)
