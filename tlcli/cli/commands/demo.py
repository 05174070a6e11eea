"""`tlcli demo`: the whole road on images that the project draws itself."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tlcli.cli import options
from tlcli.cli.console import Console
from tlcli.cli.parsing import Command

if TYPE_CHECKING:
    from PIL.Image import Image

    from tlcli.service import Prediction

BACKBONE = "test_resnet"
"""Timm's smallest ResNet, half a million weights: it learns the shapes in a minute."""
EPOCHS = 9
SHEET = 9
"""Images on the sheet of answers."""


@click.command("demo", cls=Command)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("demo"), show_default=True, help="Folder for all of it."
)
@options.seed_option
@options.quiet_option
def command(output: Path, seed: int, quiet: bool) -> None:
    """All of it in one go, with nothing downloaded.

    Draws images of shapes, trains a small ResNet on them from nothing, exports it with its maps, checks the
    file, serves it, asks it over gRPC, and lays the map over the image.
    """
    from tlcli.cli.commands.export import report
    from tlcli.cli.finetune_settings import finetune_config
    from tlcli.exports import export_run
    from tlcli.training import finetune
    from tlcli.training.runs.load_run import load_run

    console = Console(quiet)
    began = time.monotonic()
    run_folder = _fresh(output / "runs" / "shapes")
    console.say(f"1. a small ResNet ({BACKBONE}) learns drawn shapes from random weights, {EPOCHS} epochs: nothing is downloaded")
    config = finetune_config(
        backbone=BACKBONE,
        model_kwargs={"output_stride": 8},  # maps of 8x8 instead of 2x2 for images of 64x64
        weights="none",
        dataset="shapes",
        mode="full",
        epochs=EPOCHS,
        image_size=64,
        crop_pct=1.0,
        batch_size=16,
        lr=4e-3,
        seed=seed,
        output=run_folder,
        name="shapes",
    )
    result = finetune(config, progress=console.progress, say=console.say)

    console.say("2. export to one ONNX file with the maps in its graph")
    models = output / "models"
    run = load_run(result.path)
    exported = export_run(run, name="shapes", repository=models, say=console.say)
    report(exported, console)

    console.say("3. serve it, and ask over gRPC")
    test = run.dataset().test
    assert test is not None, "the drawn data set has a test part"
    answers = _ask(models, [test.load(index) for index in range(0, len(test), len(test) // SHEET)][:SHEET], output, console)

    console.say(f"\ndone in {time.monotonic() - began:.0f} s. Look at:")
    for path in (*answers, *(run_folder / name for name in ("curves.png", "confusion_matrix.png", "mistakes.png"))):
        click.echo(path)
    console.say("\nnext, on your own images (a folder a class):\n  tlcli finetune --backbone resnet50 --dataset FOLDER")


def _ask(models: Path, images: list[Image], output: Path, console: Console) -> list[Path]:
    """Start a server of our own, ask it, stop it; the paths of what was drawn of its answers."""
    from tlcli.cli.answer_output import OverlayFolder
    from tlcli.contract.errors import ServerError
    from tlcli.service import Client

    image = output / "image.png"
    images[0].save(image)
    command = [sys.executable, "-m", "tlcli", "serve", str(models), "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        with Client("127.0.0.1", _port(server)) as client:
            client.wait_until_ready(timeout_s=60)
            answer = client.classify(image, model="shapes", top_k=3, cam="gradcam", map_format="overlay")
            others = [one.result() for one in client.classify_stream(images, model="shapes", cam="gradcam")]
    finally:
        server.send_signal(signal.SIGTERM)
        _, rest = server.communicate(timeout=60)
    if server.returncode != 0:
        raise ServerError(f"the demo's server ended with {server.returncode}: {rest}")
    for one in answer.predictions:
        console.say(f"   {one.label}: {one.score:.4f}")
    timings = answer.timings
    console.say(f"   decoding {timings.decode_time_ns / 1e6:.1f} ms, inference with its map {timings.infer_time_ns / 1e6:.1f} ms")
    best = answer.predictions[0]
    assert best.map is not None
    assert best.map.png is not None
    overlay = OverlayFolder(output / "overlays").write(image, best.map.method, best.label, best.map.png)
    sheet = output / "answers.png"
    _draw_sheet(images, [one.predictions[0] for one in others], sheet)
    return [image, Path(overlay), sheet]


def _draw_sheet(images: list[Image], best: list[Prediction], path: Path) -> None:
    """Each image above the map of its first class, enlarged, with that class and its score."""
    from PIL import Image, ImageDraw, ImageFont

    from tlcli.contract.files.atomic_file import whole_file
    from tlcli.contract.images.heatmap import overlay

    side, gap, line = 128, 6, 20
    sheet = Image.new("RGB", (len(images) * (side + gap) + gap, 2 * (side + gap) + gap + line), "white")
    write, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (image, one) in enumerate(zip(images, best, strict=True)):
        assert one.map is not None
        assert one.map.values is not None
        large = image.resize((side, side), Image.Resampling.LANCZOS)
        left = gap + number * (side + gap)
        sheet.paste(large, (left, gap))
        sheet.paste(overlay(large, one.map.values, (0, 0, side, side)), (left, 2 * gap + side))
        write.text((left + side / 2, 2 * (gap + side) + line / 2 + 2), f"{one.label} {one.score:.0%}", fill="black", font=font, anchor="mm")
    with whole_file(path) as temporary:
        sheet.save(temporary)


def _port(server: subprocess.Popen[str]) -> int:
    """The port that the server chose, from its log."""
    from tlcli.contract.errors import ServerError

    assert server.stderr is not None
    heard = []
    for line in server.stderr:
        heard.append(line)
        if found := re.search(r"listening on \S+:(\d+)", line):
            return int(found[1])
    raise ServerError(f"the demo's server did not start: {''.join(heard).strip()}")


def _fresh(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
