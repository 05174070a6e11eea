"""`benchmarks/notebooks.py`: the page says what was run, and the commands that take hours begin to train."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.notebooks import ROWS, Row, done, page, read
from tlcli.__main__ import cli

DOCS = Path(__file__).parents[2] / "docs"

OVERRIDES = "--weights none --image-size 64 --epochs 1 --head-epochs 0 --batch-size 64 --workers 0".split()  # noqa: SIM905
"""So that a step takes seconds, and nothing is downloaded: in place of what the command says."""


def overridden(arguments: list[str]) -> list[str]:
    """The arguments with the values of `OVERRIDES`; a flag may come only once."""
    kept = list(arguments)
    for flag in OVERRIDES[::2]:
        if flag in kept:
            place = kept.index(flag)
            del kept[place : place + 2]
    return [*kept, *OVERRIDES]


CLASSES = {"cifar10": 10, "cifar100": 100}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets of the right names and numbers of classes: images of noise, two to train and validate on and one to test."""
    folder = tmp_path_factory.mktemp("drawn")
    draw = np.random.default_rng(0)
    for name, classes in CLASSES.items():
        for number in range(classes):
            for part, count in (("train", 2), ("test", 1)):
                for image in range(count):
                    path = folder / name / part / f"{number:02}" / f"{image}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row.hours], ids=lambda row: row.name)
def test_what_takes_hours_begins_to_train(row: Row, drawn: Path, tmp_path: Path) -> None:
    answer = CliRunner().invoke(cli, [*overridden(row.arguments(drawn, drawn)), "--output", str(tmp_path / "run")])
    assert answer.exit_code == 0, answer.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    (classes,) = (count for name, count in CLASSES.items() if f"--dataset {name} " in row.command)
    assert results["test"]["count"] == classes
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2


def test_rows_have_names_of_their_own_and_a_seed() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all("--seed 0" in row.command for row in ROWS)


def test_a_figure_belongs_to_the_command_that_was_run() -> None:
    row = Row("a", "A", "50 %", "--dataset mnist")
    kept = {"a": {"command": row.command, "top1": 0.98765, "images": 10_000, "minutes": 1.5}}
    assert f"| A | 50 % | 98.77 % | 1.5 | `{row.command}` |" in page([row], kept)
    changed = Row("a", "A", "50 %", "--dataset mnist --epochs 9")
    assert done(changed, kept) is None
    assert f"| A | 50 % | not run yet |  | `{changed.command}` |" in page([changed], kept)


def test_folders_take_their_places_in_the_command() -> None:
    row = Row("a", "A", "", "--weights WEIGHTS/file.th --dataset DATASET")
    arguments = row.arguments(Path("/here is/data"), Path("/there"))
    assert arguments[:5] == ["finetune", "--weights", "/there/file.th", "--dataset", "DATASET"]
    assert arguments[arguments.index("--data-dir") + 1] == "/here is/data"


def test_the_page_is_what_the_script_writes() -> None:
    text = (DOCS / "notebooks.md").read_text(encoding="utf-8")
    assert text == page(ROWS, read(DOCS / "notebooks.json"))
    assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp)/", text)
