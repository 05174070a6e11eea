"""`tlcli serve`: the gRPC server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlcli import options


@click.command("serve")
@click.argument("models", type=click.Path(path_type=Path, file_okay=False), default=Path("models"))
@options.host_option
@options.port_option(minimum=0)
@options.device_option
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Of ONNX Runtime, for each model.  [default: every core]")
@click.option("--max-batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Pictures in one run of a model.")
@click.option(
    "--max-queue-delay-ms",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="How long a picture waits for company while the model is idle.",
)
@click.option(
    "--max-queue-size",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Pictures that may wait for a model; others are refused, with the time after which to ask again.",
)
@click.option("--grace", "grace_s", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Seconds to finish in at a stop.")
def command(models: Path, **flags: Any) -> None:
    """Answer over gRPC for every model in a folder.

    MODELS is the model repository, MODELS/<name>/<version>/model.onnx.
    """
    from service import ServerSettings, serve

    serve(ServerSettings(models=models, **flags))
