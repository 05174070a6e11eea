"""Tasks of a course's notebooks, trained by tlcli: writes docs/notebooks.md, with the notebooks' figures, ours, and the commands.

    python benchmarks/notebooks.py DATA WEIGHTS [--only NAME] [--again NAME] [--out docs/notebooks.md]

DATA holds the data sets in folders of their names (`mnist`, `fashion-mnist`, `cifar10`, `cats-vs-dogs`), as `--data-dir` takes them.
WEIGHTS holds `mobilenetv2_100.imagenet.safetensors` and `cifar10_resnet20-12fca82f.th`. A row is one `tlcli finetune`, run as written in
the table, in a folder and with a cache of its own; its figure is the top-1 on the test split. Results are kept in a JSON file beside the
table, and rows are not trained again unless their command has changed or --again names them. Rows that take hours on two cores are in the
table with their command, and run only if --only names them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tlcli.contract.files.atomic_file import whole_file

Kept = dict[str, dict[str, Any]]
"""By the rows' names: `command`, `top1` in [0, 1], `images` of the test part, `minutes`."""

DATA, WEIGHTS = "DATA", "WEIGHTS"
"""Stand for the two folders in the commands."""

_MOBILENET = (
    f"--backbone mobilenetv2_100 --weights {WEIGHTS}/mobilenetv2_100.imagenet.safetensors --model-kwargs pad_type=same --mean 0.5 --std 0.5"
)
_SCRATCH = "--weights none --mode full"
_SMALL = "--batch-size 128 --val-fraction 0.1 --jitter 0 --amp on"


@dataclass(frozen=True)
class Row:
    """Task of a notebook.

    theirs: the notebook's figure.
    flags: of `tlcli finetune`.
    hours: True if it takes hours on two cores.
    """

    name: str
    task: str
    theirs: str
    flags: str
    hours: bool = False

    @property
    def command(self) -> str:
        """Return the command as it is typed."""
        return f"tlcli finetune {self.flags} --data-dir {DATA} --seed 0 --no-export --json"

    def arguments(self, data: Path, weights: Path) -> list[str]:
        """Return the arguments of `tlcli`, with the folders in their places."""
        places = {DATA: data, WEIGHTS: weights}
        found = []
        for word in shlex.split(self.command)[1:]:
            head, slash, rest = word.partition("/")
            found.append(f"{places[head]}{slash}{rest}" if head in places else word)
        return found


ROWS = (
    Row(
        "mnist-lenet5",
        "MNIST, LeNet-5",
        "99.03 %",
        f"--backbone lenet5 --head original {_SCRATCH} --dataset mnist --epochs 10 --batch-size 128 --val-fraction 0.1",
    ),
    Row(
        "mnist-cnn",
        "MNIST, a small CNN",
        "98.28 %",
        f"--backbone simple_cnn {_SCRATCH} --dataset mnist --image-size 28 --epochs 5 {_SMALL}",
    ),
    Row(
        "cats-vs-dogs-frozen",
        "Cats and dogs, frozen; theirs VGG16",
        "91.94 % (validation)",
        f"{_MOBILENET} --dataset cats-vs-dogs",
    ),
    Row(
        "cifar10-cnn",
        "CIFAR-10, a small CNN",
        "69 %",
        f"--backbone simple_cnn {_SCRATCH} --dataset cifar10 --crop-scale 0.7 --epochs 4 {_SMALL}",
    ),
    Row(
        "fashion-cnn",
        "Fashion-MNIST, a small CNN",
        "93.08 %",
        f"--backbone simple_cnn {_SCRATCH} --dataset fashion-mnist --image-size 28 --crop-scale 0.8 --epochs 16"
        f" --label-smoothing 0 {_SMALL}",
    ),
    Row(
        "fashion-transfer",
        "Fashion-MNIST, 10,000 of its images, frozen RGB ImageNet weights",
        "not possible: grey images",
        f"{_MOBILENET} --dataset fashion-mnist --limit 1000 --val-fraction 0.1 --image-size 160",
    ),
    Row(
        "cifar10-resnet20",
        "CIFAR-10, ResNet-20 with weights of the original images",
        "",
        f"--backbone cifar_resnet20 --weights {WEIGHTS}/cifar10_resnet20-12fca82f.th --mode full --dataset cifar10 --crop-scale 0.6"
        f" --epochs 4 --head-epochs 1 --lr 1e-3 --layer-decay 1 {_SMALL}",
    ),
    Row(
        "cats-vs-dogs-full",
        "Cats and dogs, all layers; theirs VGG16",
        "97.95 % (validation)",
        f"{_MOBILENET} --dataset cats-vs-dogs --mode full --epochs 43 --head-epochs 40 --lr 1e-4 --amp on",
    ),
    Row(
        "cifar10-alexnet",
        "CIFAR-10, AlexNet",
        "53.24 % and 89 %",
        "--backbone alexnet --head original --mode full --dataset cifar10 --epochs 20 --batch-size 128",
        hours=True,
    ),
    Row(
        "cifar10-zfnet",
        "CIFAR-10, ZFNet",
        "80.7 %",
        f"--backbone zfnet --head original {_SCRATCH} --dataset cifar10 --image-size 128 --epochs 60 --batch-size 128 --lr 5e-4",
        hours=True,
    ),
    Row(
        "cifar100-vgg",
        "CIFAR-100, VGG, from nothing",
        "over 45 %",
        f"--backbone vgg16_bn {_SCRATCH} --dataset cifar100 --image-size 32 --epochs 100 --batch-size 128",
        hours=True,
    ),
    Row(
        "cifar100-resnet",
        "CIFAR-100, ResNet, from nothing",
        "48 to 58 %",
        f"--backbone cifar_resnet56 {_SCRATCH} --dataset cifar100 --epochs 100 --batch-size 128",
        hours=True,
    ),
    Row(
        "cifar100-resnet-pretrained",
        "CIFAR-100, ResNet, pretrained",
        "48 to 58 %",
        "--backbone resnet50.tv_in1k --mode full --dataset cifar100 --image-size 128 --batch-size 64",
        hours=True,
    ),
    Row(
        "cifar100-googlenet",
        "CIFAR-100, GoogLeNet",
        "under 15 %",
        "--backbone googlenet --mode full --dataset cifar100 --image-size 128 --batch-size 64",
        hours=True,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--only", choices=[row.name for row in ROWS], help="train no other row")
    parser.add_argument("--again", choices=[row.name for row in ROWS], help="train this row even if it is done")
    parser.add_argument("--out", type=Path, default=Path("docs/notebooks.md"))
    arguments = parser.parse_args()
    beside = arguments.out.with_suffix(".json")
    kept = read(beside)
    for row in ROWS:
        chosen = row.name in (arguments.only, arguments.again) or (arguments.only is None and not row.hours)
        if chosen and (row.name == arguments.again or done(row, kept) is None):
            print(f"\n{row.name}: {row.command}", flush=True)
            kept[row.name] = {"command": row.command, **run(row, arguments.data.absolute(), arguments.weights.absolute())}
            print(kept[row.name], flush=True)
            write(beside, json.dumps(kept, indent=1) + "\n")
        write(arguments.out, page(ROWS, kept))


def run(row: Row, data: Path, weights: Path) -> dict[str, Any]:
    """Train a row, in a folder and with a cache of its own."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "tlcli", *row.arguments(data, weights)]
        answer = subprocess.run(
            command, cwd=folder, env=os.environ | {"TLCLI_CACHE": f"{folder}/cache"}, stdout=subprocess.PIPE, check=True
        )
        minutes = (time.perf_counter() - began) / 60
        (found,) = json.loads(answer.stdout)
        results = json.loads((Path(folder) / found["run"] / "results.json").read_text(encoding="utf-8"))
    return {"top1": results["test"]["top1"], "images": results["test"]["count"], "minutes": round(minutes, 1)}


def read(beside: Path) -> Kept:
    """Read the results measured so far."""
    return json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}


def done(row: Row, kept: Kept) -> dict[str, Any] | None:
    """Return the results of the row's current command; None if it has not been run."""
    found = kept.get(row.name)
    return found if found is not None and found["command"] == row.command else None


def page(rows: Sequence[Row], kept: Kept) -> str:
    """Return the text of docs/notebooks.md."""
    lines = []
    for row in rows:
        found = done(row, kept)
        ours = "not run: hours on two cores" if row.hours else "not run yet"
        if found is not None:
            ours = f"{found['top1']:.2%}".replace("%", " %")
        lines.append(f"| {row.task} | {row.theirs or '–'} | {ours} | {found['minutes'] if found else ''} | `{row.command}` |")
    return "\n".join((*HEAD, *lines)) + "\n"


HEAD = (
    "# Tasks of a course",
    "",
    "Accuracies that the notebooks of a course reached, and those of one command of this project. Written by `benchmarks/notebooks.py`,",
    f"which runs the commands as written here: `{DATA}` is a folder with the data sets, `{WEIGHTS}` one with the two weight files that it",
    "names.",
    '"Ours" is the top-1 accuracy on the test split (10,000 images; 1,000 of cats and dogs), and so is "theirs" unless stated otherwise.',
    "CIFAR-10's images are JPEGs, which makes them a little harder. Minutes are those of the entire command, from reading the images to",
    "the report, with one PyTorch thread on a machine of two cores that ran other programs, too.",
    "",
    "| task | theirs | ours | minutes | command |",
    "|---|---|---|---|---|",
)


def write(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
