"""`tlcli finetune`: pictures and a pretrained backbone to a run, and the run to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tlcli import options
from tlcli.commands.export import model_name, report
from tlcli.console import Console, show


@click.command("finetune")
@options.network_options
@click.option("--head", default="linear", show_default=True, help="`linear`, `mlp:UNITS`, or `original`: the network's own hidden layers.")
@click.option(
    "--mode",
    type=click.Choice(["feature-extraction", "full"]),
    default="feature-extraction",
    show_default=True,
    help="Train the head on frozen features, or everything.",
)
@click.option(
    "--dataset", default="cats-vs-dogs", show_default=True, help="A known name (`tlcli datasets`), a folder, or a timm data set spec."
)
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Where known data sets are kept.  [default: the cache]")
@click.option("--classes", callback=lambda _, __, value: tuple(value.split(",")) if value else None, help="A subset, with commas.")
@click.option("--num-classes", type=click.IntRange(min=2), help="Must match what is there.")
@click.option("--limit", type=click.IntRange(min=2), help="Pictures a class in each part, for trying things out.")
@click.option(
    "--val-fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="Held out where there is no validation part."
)
@click.option("--epochs", type=click.IntRange(min=1), help="[default: chosen by the mode]")
@click.option("--head-epochs", type=click.IntRange(min=0), help="With --mode full: how many of them train the head alone.")
@click.option("--batch-size", type=click.IntRange(min=1))
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate of the head.")
@click.option("--weight-decay", type=click.FloatRange(min=0))
@click.option("--layer-decay", type=click.FloatRange(0, 1, min_open=True), help="With --mode full: each layer's rate over the one above.")
@click.option("--augment", type=click.IntRange(min=0), help="With --mode feature-extraction: augmented views of each picture.")
@click.option("--workers", type=click.IntRange(min=0), help="Processes that read pictures.")
@options.device_option
@options.seed_option
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="The run's folder.  [default: a fresh one under runs/]")
@click.option("--name", help="The model's name.  [default: the run's folder]")
@options.models_option
@click.option("--no-export", is_flag=True, help="Leave the export out.")
@options.json_option
@options.quiet_option
def command(backbone: str | None, models: Path, name: str | None, no_export: bool, as_json: bool, quiet: bool, **flags: Any) -> None:
    """Fine-tune a pretrained CNN on pictures, and export it.

    \b
    tlcli finetune --backbone vgg16
    tlcli finetune --backbone resnet50 --dataset cifar10 --mode full
    tlcli finetune --backbone resnet18 --weights FILE --dataset PATH/TO/FOLDER
    """
    from contract.layout import require_model_name
    from tlcli.settings import finetune_config

    if name is not None:
        require_model_name(name)
    config = finetune_config(backbone=backbone, name=name, **flags)
    console = Console(quiet)

    from training import finetune
    from training.run import load_run

    result = finetune(config, progress=console.progress, say=console.say)
    row: dict[str, Any] = {"run": str(result.path), **result.metrics}
    if not no_export:
        from exports import export_run

        exported = export_run(load_run(result.path), name=name or model_name(result.path.name), repository=models, say=console.say)
        report(exported, console)
        row["model"] = str(exported.path)
        console.say("\nnext:")
        folder = exported.path.parents[1]
        console.say(f"  tlcli predict {folder} PICTURE.jpg --cam gradcam")
        console.say(f"  tlcli serve {models}")
        console.say(f"  tlcli classify PICTURE.jpg --model {exported.name} --cam gradcam")
    else:
        console.say(f"\nnext:\n  tlcli export {result.path} --models {models}")
    show([row], list(row), as_json)
