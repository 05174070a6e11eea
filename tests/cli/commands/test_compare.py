"""`tlcli compare`: what differs, the figures of each run's own files, and whether a difference is chance."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy import stats
from sklearn import metrics

from tests.helpers.training.made_run import make_run
from tlcli.cli.commands.compare import command
from tlcli.training.metrics.scores import EpochRow


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tlcli", "compare", *map(str, arguments)]
    environment = dict(os.environ)  # without the COLUMNS that readline, where it is imported, puts into the process's own
    return subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)


def document(*arguments: object) -> dict[str, Any]:
    """Run the command in this process and return its JSON."""
    answer = CliRunner().invoke(command, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Runs on the same images, the second one better."""
    return (
        make_run(tmp_path / "weak", sure=1.0, seed=1, lr=0.01),
        make_run(tmp_path / "strong", sure=4.0, seed=2, lr=0.001, batch_size=64, output=tmp_path / "strong", name="pets"),
    )


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_figures_are_those_of_the_runs(two: tuple[Path, Path]) -> None:
    found = document(*two)
    assert found["differing"] == ["batch_size", "lr"]
    assert found["not_comparable_with_the_first"] == []
    for folder, row in zip(two, found["runs"], strict=True):
        rows = predictions(folder)
        truth, guess = [one["label"] for one in rows], [one["predicted"] for one in rows]
        assert row["run"] == folder.name
        assert row["val_top1"] == pytest.approx(metrics.accuracy_score(truth, guess))
        assert row["val_macro_f1"] == pytest.approx(metrics.f1_score(truth, guess, average="macro"))
        kept = json.loads((folder / "results.json").read_text())
        assert row["val_loss"] == kept["val"]["loss"]
        assert (row["val_ece"], row["test_ece"]) == (kept["val"]["calibration"]["ece"], kept["test"]["calibration"]["ece"])
        assert (row["best_epoch"], row["seconds"]) == (3, 100.0)
    assert [(row["batch_size"], row["lr"]) for row in found["runs"]] == [(32, 0.01), (64, 0.001)]


def test_the_difference_of_two_is_tested(two: tuple[Path, Path]) -> None:
    right = [np.array([one["label"] == one["predicted"] for one in predictions(folder)]) for folder in two]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p = stats.binomtest(only_first, only_first + only_second, 0.5).pvalue
    assert p < 0.05, "the runs of this test should differ"
    assert document(*two)["mcnemar"] == {
        "only_first": only_first,
        "only_second": only_second,
        "p": pytest.approx(p),
    }
    assert run(*two).stdout.splitlines()[-1] == (
        f"McNemar's exact test on the same 60 validation images: {only_first} correct in weak only,"
        f" {only_second} in strong only, p = {p:.3g}: significant at 0.05"
    )


def test_a_difference_that_may_be_chance_is_called_so(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / name, sure=3.0, seed=seed) for name, seed in (("a", 1), ("b", 2)))
    assert run(first, second).stdout.splitlines()[-1].endswith(": not significant at 0.05")
    again = make_run(tmp_path / "c", sure=3.0, seed=1)
    assert run(first, again).stdout.splitlines()[-1].endswith("p = 1: both are correct on the same images")


def test_images_are_paired_by_name(two: tuple[Path, Path]) -> None:
    """In whatever order each run lists them."""
    before = document(*two)["mcnemar"]
    header, *rows = (two[1] / "predictions.csv").read_text().splitlines()
    (two[1] / "predictions.csv").write_text("\n".join([header, *reversed(rows)]))
    assert document(*two)["mcnemar"] == before


def test_the_table_is_aligned_and_shows_no_more_than_what_differs(two: tuple[Path, Path]) -> None:
    head, *rows = run(*two).stdout.splitlines()[:3]
    assert head.split() == [
        "run", "batch_size", "lr", "val_top1", "val_macro_f1", "val_loss", "val_ece", "test_top1", "test_macro_f1", "test_loss", "test_ece",
        "best_epoch", "seconds",
    ]  # fmt: skip
    column = {name: (head.index(f" {name}") + 1, head.index(f" {name}") + len(name)) for name in head.split()[1:]}
    for row in rows:
        assert row[: column["batch_size"][0]].strip() in ("weak", "strong")
        assert row[column["lr"][0] :].split()[0] in ("0.01", "0.001"), "text begins where its column does"
        for name, (_, end) in column.items():
            if name != "lr":
                assert row[end] != " ", "numbers end where their column does"
                assert row[end + 1 : end + 2] in ("", " ")


def test_settings_that_were_left_open_are_told_as_they_came_out(tmp_path: Path) -> None:
    """`--lr 0.0003` is what the other run resolved its own to: they do not differ."""
    open_, given = make_run(tmp_path / "open"), make_run(tmp_path / "given", lr=0.0003, weight_decay=0.25)
    found = document(open_, given)
    assert found["differing"] == ["weight_decay"]
    assert [row["weight_decay"] for row in found["runs"]] == [0.05, 0.25]


def test_a_small_rate_and_all_the_classes_are_legible(tmp_path: Path) -> None:
    many = tuple(f"c{number}" for number in range(10))
    runs = [make_run(tmp_path / "a", lr=2e-05), make_run(tmp_path / "b", classes=("cat", "dog", "owl")), make_run(tmp_path / "c", many)]
    head, *rows = run(*runs).stdout.splitlines()[:4]
    assert head.split()[:4] == ["run", "classes", "num_classes", "lr"]
    assert [row.split()[1] for row in rows] == ["cat,dog,owl", "cat,dog,owl", "c0,c1,c2,c3,c4,c5,c6,c7"]
    assert "c7 and 2 more" in rows[2]
    assert rows[0].split()[3] == "2e-05"
    assert rows[0].split()[-1] == "100"


def test_versions_that_differ_are_told(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    config = json.loads((second / "config.json").read_text())
    config["versions"]["torch"] = "3.0.0"
    (second / "config.json").write_text(json.dumps(config))
    assert document(first, second)["differing"] == ["torch version"]


def test_runs_on_other_images_are_not_compared(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b"),
        make_run(tmp_path / "c", dataset="/data/others", fingerprint="00" * 32),
    ]
    answer = run(*runs)
    says = "not comparable: c: validated on other images than a (the fingerprints of the data sets differ)"
    assert answer.stdout.splitlines()[-1] == says
    assert document(*runs)["not_comparable_with_the_first"] == ["c"]
    assert document(runs[0], runs[2])["mcnemar"] is None
    assert "all runs were validated on the same images" in run(runs[0], runs[1], make_run(tmp_path / "d")).stdout


def test_more_training_images_leave_validation_comparable(tmp_path: Path) -> None:
    """The data set's fingerprint is another, but it is the same folder, with the same validation images in it."""
    first, second = make_run(tmp_path / "a", seed=1), make_run(tmp_path / "b", seed=2, fingerprint="00" * 32)
    found = document(first, second)
    assert found["not_comparable_with_the_first"] == []
    assert found["mcnemar"] is not None
    other = make_run(tmp_path / "c", count=61, fingerprint="11" * 32)
    assert document(first, other)["not_comparable_with_the_first"] == ["c"]


def test_without_predictions_there_is_no_test(two: tuple[Path, Path]) -> None:
    (two[1] / "predictions.csv").unlink()
    answer = run(*two)
    assert answer.returncode == 0
    assert answer.stdout.splitlines()[-1].startswith("no significance test: it needs the predictions.csv of both")


def test_they_are_ordered_best_first(tmp_path: Path) -> None:
    for name, sure in (("b", 2.0), ("c", 4.0), ("a", 1.0)):
        make_run(tmp_path / name, sure=sure, lr=sure)
    runs = [tmp_path / name for name in "bca"]

    def order(*sort: str) -> list[str]:
        return [row["run"] for row in document(*runs, *sort)["runs"]]

    assert order() == ["b", "c", "a"]
    assert order("--sort", "val_top1") == ["c", "b", "a"]
    assert order("--sort", "val_loss") == ["c", "b", "a"]
    assert order("--sort", "lr") == ["a", "b", "c"]
    assert order("--sort", "run") == ["a", "b", "c"]


def test_runs_of_the_same_name_are_told_by_their_paths(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / parent / "pets") for parent in ("x", "y")]
    assert [row["run"] for row in document(*runs)["runs"]] == [str(path) for path in runs]


def test_curves_are_drawn_over_each_other(tmp_path: Path) -> None:
    rising = [EpochRow("head", n, 0.1, 1.0, 0.5, 1.0, n / 40, 1.0) for n in range(1, 31)]
    runs = [make_run(tmp_path / "$a$"), make_run(tmp_path / "b", epochs=rising)]
    answer = run(*runs, "--output", tmp_path / "out" / "curves.png")
    assert answer.returncode == 0, answer.stderr
    with Image.open(tmp_path / "out" / "curves.png") as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    for colour in ((0x1F, 0x5F, 0xBF), (0xD1, 0x49, 0x5B)):
        assert (np.abs(pixels - np.array(colour)) < 8).all(2).sum() > 300
    (runs[1] / "metrics.csv").unlink()
    refused = run(*runs, "--output", tmp_path / "other.png")
    assert "b: no metrics.csv, so there is no curve to draw" in refused.stderr
    assert not (tmp_path / "other.png").exists()


def test_mistakes_get_one_line(two: tuple[Path, Path], tmp_path: Path) -> None:
    unfinished = make_run(tmp_path / "unfinished")
    (unfinished / "results.json").unlink()
    damaged = make_run(tmp_path / "damaged")
    (damaged / "predictions.csv").write_text("name,label,predicted,score\na,b,c,high\n")
    broken = make_run(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    for arguments, code, said in (
        ((two[0],), 2, "give two or more runs"),
        ((), 2, "Missing argument"),
        ((two[0], tmp_path / "nowhere"), 1, "nowhere: no such folder: give a run's folder, such as one under runs/"),
        ((two[0], unfinished), 1, "unfinished: no finished run (results.json missing): `tlcli finetune --resume "),
        ((two[0], tmp_path), 1, "a folder of runs: give one of them: "),
        ((two[0], damaged), 2, "predictions.csv: cannot be read: score: Input should be a valid number"),
        ((two[0], broken), 2, "config.json: cannot be read: Invalid JSON"),
        ((*two, "--sort", "accuracy"), 2, "no column 'accuracy': expected one of run, batch_size, lr, val_top1,"),
        ((*two, "--output", tmp_path / "curves.svg"), 2, "curves.svg: expected a file name that ends with .png"),
    ):
        answer = run(*arguments)
        assert said in " ".join(answer.stderr.split()), answer.stderr
        assert answer.returncode == code
        assert "Traceback" not in answer.stderr
        assert not answer.stdout


def test_it_answers_without_pytorch(two: tuple[Path, Path]) -> None:
    runs = list(map(str, two))
    code = (
        f"import sys; from tlcli.cli.commands.compare import command; command.main({runs!r}, standalone_mode=False);"
        " print([name for name in ('torch', 'timm', 'matplotlib') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines()[-1] == "[]"
