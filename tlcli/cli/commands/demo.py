"""`tlcli demo`: run the entire workflow on generated images."""

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
"""Smallest ResNet in timm, with half a million weights. It learns the shapes in a minute."""
EPOCHS = 9
SHEET = 9
"""Number of images on the answer sheet."""


@click.command("demo", cls=Command)
@options.folder_option("demo", "Folder for the run, the model and the results.")
@options.seed_option
@options.quiet_option
def command(output: Path, seed: int, quiet: bool) -> None:
    """Train, export, serve and classify on drawn images; nothing is downloaded.

    Draws images of shapes, trains a small ResNet on them from random weights, exports it with its maps, checks the file, serves it,
    classifies an image over gRPC, and draws the map over the image.
    """
    from tlcli.cli.commands.export import report
    from tlcli.cli.finetune_settings import finetune_config
    from tlcli.exports import export_run
    from tlcli.training import finetune
    from tlcli.training.runs.load_run import load_run

    console = Console(quiet)
    began = time.monotonic()
    run_folder = _fresh(output / "runs" / "shapes")
    console.say(f"1. train a small ResNet ({BACKBONE}) on drawn shapes from random weights, {EPOCHS} epochs: nothing is downloaded")
    config = finetune_config(
        backbone=BACKBONE,
        # Maps are 8x8 instead of 2x2 for 64x64 images. Max pooling places them on the shape: docs/log.md, "The pointing game".
        model_kwargs={"output_stride": 8, "global_pool": "max"},
        head="original",  # keeps the network's own pooling
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
    result = finetune(config, progress=console.progress, log=console.say)

    console.say("2. export it to one ONNX file with maps in its graph")
    models = output / "models"
    run = load_run(result.path)
    exported = export_run(run, name="shapes", repository=models, say=console.say)
    report(exported, console)

    console.say("3. serve it, and classify images over gRPC")
    test = run.dataset().test
    assert test is not None, "the drawn data set has a test split"
    answers = _classify(models, [test.load(index) for index in range(0, len(test), len(test) // SHEET)][:SHEET], output, console)

    console.say(f"\ndone in {time.monotonic() - began:.0f} s; see:")
    for path in (*answers, *(run_folder / name for name in ("curves.png", "confusion_matrix.png", "mistakes.png"))):
        click.echo(path)
    console.say("\nnext, on your own images (one folder per class):\n  tlcli finetune --backbone resnet50 --dataset FOLDER")


def _classify(models: Path, images: list[Image], output: Path, console: Console) -> list[Path]:
    """Start a server, classify the images, and stop the server. Return the paths of the images written."""
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
            others = [streamed.result() for streamed in client.classify_stream(images, model="shapes", cam="gradcam")]
    finally:
        server.send_signal(signal.SIGTERM)
        _, rest = server.communicate(timeout=60)
    if server.returncode != 0:
        raise ServerError(f"the demo's server exited with {server.returncode}: {rest}")
    for prediction in answer.predictions:
        console.say(f"   {prediction.label}: {prediction.score:.4f}")
    timings = answer.timings
    console.say(f"   decoding {timings.decode_time_ns / 1e6:.1f} ms, inference with its map {timings.infer_time_ns / 1e6:.1f} ms")
    best = answer.predictions[0]
    assert best.map is not None
    assert best.map.png is not None
    overlay = OverlayFolder(output / "overlays").write(image, best.map.method, best.label, best.map.png)
    sheet = output / "answers.png"
    _draw_sheet(images, [classified.predictions[0] for classified in others], sheet)
    return [image, Path(overlay), sheet]


def _draw_sheet(images: list[Image], best: list[Prediction], path: Path) -> None:
    """Draw a sheet with each image, enlarged, above the map of its top-1 class, labelled with that class and its score."""
    from PIL import Image, ImageDraw, ImageFont

    from tlcli.contract.files.atomic_file import whole_file
    from tlcli.contract.images.heatmap import overlay

    side, gap, line = 128, 6, 20
    sheet = Image.new("RGB", (len(images) * (side + gap) + gap, 2 * (side + gap) + gap + line), "white")
    write, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (image, prediction) in enumerate(zip(images, best, strict=True)):
        assert prediction.map is not None
        assert prediction.map.values is not None
        large = image.resize((side, side), Image.Resampling.LANCZOS)
        left = gap + number * (side + gap)
        sheet.paste(large, (left, gap))
        sheet.paste(overlay(large, prediction.map.values, (0, 0, side, side)), (left, 2 * gap + side))
        text, place = f"{prediction.label} {prediction.score:.0%}", (left + side / 2, 2 * (gap + side) + line / 2 + 2)
        write.text(place, text, fill="black", font=font, anchor="mm")
    with whole_file(path) as temporary:
        sheet.save(temporary)


def _port(server: subprocess.Popen[str]) -> int:
    """Read the port that the server chose from its log.

    Raises:
        ServerError: the server did not start.
    """
    from tlcli.contract.errors import ServerError

    assert server.stderr is not None
    lines = []
    for line in server.stderr:
        lines.append(line)
        if match := re.search(r"listening on \S+:(\d+)", line):
            return int(match[1])
    raise ServerError(f"the demo's server did not start: {''.join(lines).strip()}")


def _fresh(path: Path) -> Path:
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
