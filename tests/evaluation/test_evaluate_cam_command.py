"""`tlcli evaluate-cam`: its report, and one line for each mistake."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.helpers.evaluation import corner_model
from tests.helpers.forked_commands import Tlcli
from tlcli.__main__ import cli
from tlcli.evaluation.cam_report import draw
from tlcli.evaluation.measure_maps import ImageResult, Measurement, Settings


def test_tables_a_summary_and_a_figure(tlcli: Tlcli, model: Path, tmp_path: Path) -> None:
    data = corner_model.put_images(tmp_path / "data", count=3)
    (data / "dark" / "0.png").write_bytes(b"broken")
    answer = tlcli("evaluate-cam", model, data, "--cam-class", "own", "--steps", 4, "--output", tmp_path / "out", "--json")
    assert answer.returncode == 0, answer.stderr
    assert f"left out: {data / 'dark' / '0.png'}: " in answer.stderr
    printed = json.loads(answer.stdout)
    assert [row["method"] for row in printed] == ["gradcam", "layercam", "random", "centre"]
    with (tmp_path / "out" / "table.csv").open() as file:
        for kept, row in zip(csv.DictReader(file), printed, strict=True):
            assert float(kept["deletion"]) == pytest.approx(row["deletion"], rel=1e-5)
            assert float(kept["road_se"]) == pytest.approx(row["road_se"], rel=1e-5)
    with (tmp_path / "out" / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 4
    assert {(row["class"], row["explained"]) for row in rows} == {("dark", "dark"), ("bright", "bright")}
    mean = np.mean([float(row["energy"]) for row in rows if row["method"] == "gradcam"])
    assert mean == pytest.approx(printed[0]["energy"], rel=1e-4)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["table"] == printed
    assert (summary["images"], len(summary["left_out"]), len(summary["curves"]["insertion"]["centre"])) == (5, 1, 5)
    with Image.open(tmp_path / "out" / "plot.png") as opened:
        assert opened.width > 1000


def test_one_image_has_no_standard_error(tlcli: Tlcli, model: Path, tmp_path: Path) -> None:
    data = corner_model.put_images(tmp_path / "data", count=1)
    answer = tlcli("evaluate-cam", model, data, "--limit", 1, "--metrics", "energy", "--output", tmp_path / "out", "--json", "-q")
    assert answer.returncode == 0
    assert not answer.stderr
    assert json.loads(answer.stdout)[0]["energy_se"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--metrics", "pointing"], 1, "--metrics pointing needs boxes or masks of the objects, and there is neither a boxes.json nor"),
        (["--metrics", "auc"], 1, "unknown metric 'auc': expected one or more of deletion, insertion, road,"),
        (["--cam", "smoothgrad"], 1, "model 'quarter' has no map method 'smoothgrad'; it has: gradcam, layercam, ablationcam"),
        (["--cam", ","], 2, "an empty name"),
        (["--cam-class", "own"], 1, "the model has no class light; it has: dark, bright: rename the folders"),
        (["--limit", "0"], 2, "--limit"),
    ],
)
def test_mistakes_get_one_line(tlcli: Tlcli, arguments: list[str], code: int, said: str, model: Path, tmp_path: Path) -> None:
    data = corner_model.put_images(tmp_path / "data", count=1, boxes=False)
    (data / "bright").rename(data / "light")
    answer = tlcli("evaluate-cam", model, data, "--output", tmp_path / "out", *arguments)
    assert answer.returncode == code
    assert said in " ".join(answer.stderr.split())
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "explained"), [("bright", {"bright"}), ("0", {"dark"}), ("-1", {"dark", "bright"}), ("-2", {"dark", "bright"})]
)
def test_a_class_is_explained_by_label_id_or_rank(model: Path, tmp_path: Path, name: str, explained: set[str]) -> None:
    data = corner_model.put_images(tmp_path / "data", count=1)
    arguments = ["evaluate-cam", model, data, "--cam", "gradcam", "--metrics", "energy", "--cam-class", name, "--output", tmp_path / "out"]
    answer = CliRunner().invoke(cli, list(map(str, arguments)))
    assert answer.exit_code == 0, answer.output
    rows = list(csv.DictReader((tmp_path / "out" / "images.csv").open()))
    assert {row["explained"] for row in rows} == explained
    if name == "-2":  # the other one of two classes
        assert all(row["explained"] != row["class"] for row in rows)


def test_what_is_not_there(tlcli: Tlcli, model: Path, tmp_path: Path) -> None:
    assert "no model found" in tlcli("evaluate-cam", tmp_path / "nothing", tmp_path).stderr
    assert "unknown data set" in tlcli("evaluate-cam", model, "no-such-set").stderr


@pytest.mark.parametrize("methods", [1, 16])
@pytest.mark.parametrize("metrics", [("deletion", "road"), ("pointing",), ("insertion", "increase")])
def test_a_figure_of_any_size(methods: int, metrics: tuple[str, ...], tmp_path: Path) -> None:
    settings = Settings(tuple(f"gradcam@layer{number}" for number in range(methods)), metrics)
    values = {name: {column.name: 0.5 for column in settings.columns} for name in settings.names}
    found = Measurement(settings, [ImageResult("a/1.png", "a", 0, 0.5, values)])
    found.curves = {kind: {name: np.linspace(1, 0, 5) for name in settings.names} for kind in ("deletion", "insertion") if kind in metrics}
    draw(found, "a $title$", tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as opened:
        pixels = np.asarray(opened.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert max(opened.size) < 4000


def test_an_earlier_report_is_kept(tlcli: Tlcli, model: Path, tmp_path: Path) -> None:
    data = corner_model.put_images(tmp_path / "data", count=1)
    arguments = (model, data, "--limit", 2, "--cam", "gradcam", "--metrics", "energy", "--output", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "table.csv").write_text("mine")
    answer = tlcli("evaluate-cam", *arguments)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "out" / "table.csv").read_text() == "mine"
    assert f"written: {tmp_path / 'out-2' / 'table.csv'}" in answer.stderr
