"""`tlcli serve`: the gRPC server."""

from __future__ import annotations

from pathlib import Path

import click

from tlcli import options


@click.command("serve")
@click.argument("models", type=click.Path(path_type=Path, file_okay=False), default=Path("models"))
@options.host_option
@options.port_option(minimum=0)
@options.device_option
@click.option("--threads", type=click.IntRange(min=0), default=0, help="Of ONNX Runtime, for each model.  [default: every core]")
@click.option("--grace", "grace_s", type=click.FloatRange(min=0), default=30.0, show_default=True, help="Seconds to finish in at a stop.")
def command(models: Path, host: str, port: int, device: str, threads: int, grace_s: float) -> None:
    """Answer over gRPC for every model in a folder.

    MODELS is the model repository, MODELS/<name>/<version>/model.onnx.
    """
    from service import ServerSettings, serve

    serve(ServerSettings(models=models, host=host, port=port, device=device, threads=threads, grace_s=grace_s))
