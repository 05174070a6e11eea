"""`tlcli clean`: planted errors are found, the page is one file, fixes make a new label file, and mistakes get one line."""

from __future__ import annotations

import csv
import hashlib
import html
import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.helpers.forked_commands import Tlcli
from tests.helpers.training.tiny_training import config, put_colours, put_image_of
from tlcli.__main__ import cli
from tlcli.training import finetune
from tlcli.training.reports.datasheet import read_data_sheet

NETWORK = ("--backbone", "test_resnet", "--weights", "none", "--image-size", "32")
WRONG = "train/red/90.png"
COPY = "test/green/91.png"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set with a blue image among the red ones, and a training image among the test images, saved again."""
    folder = put_colours(tmp_path_factory.mktemp("clean") / "data")
    put_image_of(folder / WRONG, "blue", 5000)
    shutil.copy(folder / "train/green/0.png", folder / COPY)
    with (folder / COPY).open("ab") as file:
        file.write(b"more")  # the pixels are those of the training image, the content is not
    return folder


@pytest.fixture(scope="module")
def findings(tlcli: Tlcli, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "out"
    answer = tlcli("clean", data, *NETWORK, "--output", folder, "--json")
    assert answer.returncode == 0, answer.stderr
    counts = {row["issue"]: row["count"] for row in json.loads(answer.stdout)}
    assert counts["near-duplicate"] >= 1
    assert set(counts) == {"label-error", "near-duplicate", "outlier", "dark", "blurred", "near-uniform", "odd-size"}
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_planted_errors_are_listed(findings: Path) -> None:
    rows = rows_of(findings / "findings.csv")
    (wrong,) = [row for row in rows if row["issue"] == "label-error" and row["path"] == WRONG]
    assert (wrong["label"], wrong["suggested_label"], wrong["split"], wrong["action"]) == ("red", "blue", "train", "")
    (copy,) = [row for row in rows if row["issue"] == "near-duplicate" and row["neighbour"] == COPY]
    assert (copy["path"], copy["confident"], copy["neighbour_split"]) == ("train/green/0.png", "yes", "test")


def test_the_page_is_one_file_that_loads_nothing(findings: Path) -> None:
    text = (findings / "clean.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text)
    assert "default-src 'none'" in html.unescape(text)
    assert text.count("data:image/jpeg;base64,") >= 4
    assert WRONG in text
    assert COPY in text


def test_fixes_make_a_new_label_file(tlcli: Tlcli, data: Path, findings: Path, tmp_path: Path) -> None:
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(data.rglob("*.png"))}
    table = tmp_path / "fixes.csv"
    table.write_text(
        f"path,action,value,suggested_label\n{WRONG},relabel,,blue\n{COPY},drop,,\ntrain/blue/1.png,move,val,\ntrain/blue/2.png,keep,,\n"
    )
    answer = tlcli("clean", data, "--apply", table, "--output", tmp_path / "cleaned", "--json")
    assert answer.returncode == 0, answer.stderr
    assert {row["action"]: row["count"] for row in json.loads(answer.stdout)} == {"relabel": 1, "move": 1, "drop": 1}
    labels = {str(Path(row["path"]).relative_to(data)): row for row in rows_of(tmp_path / "cleaned/labels.csv")}
    assert len(labels) == len(before) - 1
    assert (labels[WRONG]["label"], labels[WRONG]["split"]) == ("blue", "train")
    assert (labels["train/blue/1.png"]["label"], labels["train/blue/1.png"]["split"]) == ("blue", "val")
    assert COPY not in labels
    assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(data.rglob("*.png"))} == before
    result = finetune(config(tmp_path / "cleaned/labels.csv", tmp_path / "run", epochs=1))
    assert result.results.images == {"train": 36, "val": 13, "test": 12}
    assert [path.name for path in (tmp_path / "cleaned").iterdir()] == ["labels.csv"]


def test_a_run_is_cleaned_with_its_cached_features(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TLCLI_CACHE", str(tmp_path / "cache"))
    run = finetune(config(data, tmp_path / "run", epochs=1)).path
    before = {path.name for path in (tmp_path / "cache/features").iterdir()}
    answer = CliRunner().invoke(cli, ["clean", str(run), "--output", str(tmp_path / "out"), "--device", "cpu"])
    assert answer.exit_code == 0, answer.output
    assert {path.name for path in (tmp_path / "cache/features").iterdir()} == before
    rows = rows_of(tmp_path / "out/findings.csv")
    assert any(row["neighbour"] == COPY and row["issue"] == "near-duplicate" for row in rows)


def test_the_data_sheet_of_a_run_names_near_duplicates_across_parts(data: Path, tmp_path: Path) -> None:
    run = finetune(config(data, tmp_path / "run", epochs=1)).path
    sheet = read_data_sheet(run)
    assert sheet is not None
    assert (COPY, "train/green/0.png") in [(copy.image.name, copy.other.name) for copy in sheet.near_duplicates]
    assert any("nearly the same as" in warning and "too optimistic" in warning for warning in sheet.warnings)
    assert "Nearly the same in two parts" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,action\nx,drop\n", "no column path: expected the columns path, action and value"),
        (f"path,action\n{WRONG},delete\n", "line 2: unknown action 'delete': expected relabel, move, drop, or nothing"),
        ("path,action\nno.png,drop\n", "line 2: 'no.png' is not an image of"),
        (f"path,action,value\n{WRONG},relabel,bleu\n", "line 2: relabel to 'bleu': expected a class in the column value: blue, green, red"),
        (f"path,action,value\n{WRONG},move,training set\n", "line 2: move to 'training set': expected train, val, test"),
        (f"path,action\n{WRONG},\n", "no row has an action: write relabel, move or drop"),
        (f"path,action,value\n{WRONG},relabel,blue\n{WRONG},relabel,green\n", "line 3: 'green' contradicts 'blue' in an earlier line"),
        (f"path,action,value\n{WRONG},drop,\n{WRONG},relabel,green\n", "line 3: the image is dropped and changed in two lines"),
    ],
)
def test_wrong_fixes_get_one_line(tlcli: Tlcli, data: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "fixes.csv").write_text(text)
    answer = tlcli("clean", data, "--apply", tmp_path / "fixes.csv", "--output", tmp_path / "out", "--quiet")
    assert answer.returncode != 0
    assert message in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "unknown data set 'nowhere'"),
        (("data", "--apply", "no.csv"), "no.csv: no such file: expected a table of fixes"),
        (("data", "--apply", "fixes.csv", "--backbone", "resnet18"), "--backbone: has no effect with --apply"),
        (("data", "--weights", "no.pth"), "no.pth"),
        (("data", "--data-dir", "."), "--data-dir does not apply to data"),
    ],
)
def test_wrong_invocations_get_one_line(tlcli: Tlcli, data: Path, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    words = [str(data) if word == "data" else word for word in arguments]
    answer = tlcli("clean", *words, "--output", tmp_path / "out")
    assert answer.returncode != 0
    assert message.replace("to data", f"to {data}") in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "out").exists()
