"""Answers as printed: overlays that do not write over each other; flags that hold values."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from tlcli.cli import options
from tlcli.cli.answer_output import ImageAnswer, OverlayFolder, Ranked, columns
from tlcli.cli.console import Console, show


def test_overlays_of_images_of_the_same_name_are_all_kept(tmp_path: Path) -> None:
    folder = OverlayFolder(tmp_path)
    names = [Path(folder.write(Path(where) / "1.jpg", "cam", "a/b c", where.encode())).name for where in ("x", "y", "z")]
    assert names == ["1.cam.a-b-c.png", "1.cam.a-b-c.2.png", "1.cam.a-b-c.3.png"]
    assert [(tmp_path / name).read_bytes() for name in names] == [b"x", b"y", b"z"]


def test_overlays_of_an_earlier_call_are_kept(tmp_path: Path) -> None:
    first, second = (OverlayFolder(tmp_path / "overlays").write(Path("1.jpg"), "cam", "a", name) for name in (b"1", b"2"))
    assert (Path(first).parent.name, Path(second).parent.name) == ("overlays", "overlays-2")
    assert (Path(first).read_bytes(), Path(second).read_bytes()) == (b"1", b"2")


def test_overlays_of_long_names_are_written(tmp_path: Path) -> None:
    folder = OverlayFolder(tmp_path)
    written = [folder.write(Path("猫" * 80 + f"{end}.jpg"), "ablationcam@layer4.2.conv3", "l" * 200, b"") for end in "ab"]
    assert len(set(written)) == 2


def test_what_is_printed_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"path": "se\udcf1al\n.png", "overlays": ["\udcff.png"]}]
    show(rows, ["path", "overlays"], as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"path": r"se\xf1al\n.png", "overlays": [r"\xff.png"]}]
    show(rows, ["path"], as_json=False)
    assert r"se\xf1al\n.png" in capsys.readouterr().out.splitlines()


def test_the_table_has_the_columns_that_the_answers_fill(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [
        ImageAnswer("a.jpg", (Ranked("cat", 0, 0.75), Ranked("dog", 1, 0.25)), ("o.png",)),
        ImageAnswer("long name.jpg", (Ranked("dog", 1, 1.0),)),
    ]
    show([row for answer in answers for row in answer.rows()], columns(answers), as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "path           rank  label  class_id   score  overlays",
        "a.jpg             1  cat           0  0.7500  o.png",
        "a.jpg             2  dog           1  0.2500",
        "long name.jpg        dog           1  1.0000",
    ]


WIDE = [{"name": "a", "maps": "cam, gradcam, hirescam, layercam", "top1": 0.5}, {"name": "long-name", "maps": "cam", "top1": None}]


def test_the_widest_column_is_wrapped_to_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    show(WIDE, ["name", "maps", "top1"], as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "name       maps                     top1",
        "a          cam, gradcam,          0.5000",
        "           hirescam, layercam",
        "long-name  cam",
    ]


def test_a_table_that_cannot_fit_becomes_a_block_per_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    show(WIDE, ["name", "maps", "top1"], as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "name  a",
        "maps  cam, gradcam,",
        "      hirescam, layercam",
        "top1  0.5000",
        "",
        "name  long-name",
        "maps  cam",
    ]


def test_a_pipe_gets_one_line_per_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    show([{"name": "n" * 300, "maps": "m" * 300}], ["name", "maps"], as_json=False)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_quiet_hides_progress_and_shows_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    for message in ("exported", "warning: class dog has 2 images", "left out: a.txt: not an image"):
        console.say(message)
    with console.progress("Reading", 3) as advance:
        advance(3)
    assert capsys.readouterr().err.splitlines() == ["warning: class dog has 2 images", "left out: a.txt: not an image"]


@click.command()
@options.network_options
def probe(**flags: object) -> None:
    click.echo(repr({key: flags[key] for key in ("model_kwargs", "mean", "std")}))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model-kwargs", "pad_type=same", "--model-kwargs", "drop_rate=0.5"], {"model_kwargs": {"pad_type": "same", "drop_rate": 0.5}}),
        (["--model-kwargs", "features=true", "--model-kwargs", "n=3"], {"model_kwargs": {"features": True, "n": 3}}),
        (["--model-kwargs", "depths=2,2", "--model-kwargs", "n=3,"], {"model_kwargs": {"depths": (2, 2), "n": (3,)}}),
        (["--model-kwargs", "x=1,a", "--model-kwargs", "y=((1,),)"], {"model_kwargs": {"x": "1,a", "y": "((1,),)"}}),
        (["--mean", "0.5", "--std", "0.1,0.2,0.3"], {"mean": (0.5, 0.5, 0.5), "std": (0.1, 0.2, 0.3)}),
    ],
)
def test_flags_hold_what_was_meant(arguments: list[str], expected: dict[str, object]) -> None:
    answer = CliRunner().invoke(probe, arguments)
    assert answer.exit_code == 0, answer.output
    assert answer.output.strip() == repr({"model_kwargs": {}, "mean": None, "std": None, **expected})


@pytest.mark.parametrize("arguments", [["--mean", "a"], ["--std", "1,2"], ["--model-kwargs", "same"], ["--model-kwargs", "a b=1"]])
def test_flags_that_do_not_are_refused(arguments: list[str]) -> None:
    answer = CliRunner().invoke(probe, arguments)
    assert answer.exit_code == 2
    assert "expected" in answer.output
