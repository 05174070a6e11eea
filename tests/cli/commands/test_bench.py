"""`tlcli bench` and `tlcli classify --jsonl` against a real server of a small model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.helpers.service.sample_images import encode, scene
from tests.helpers.service.toy_model import ToyModel
from tlcli.__main__ import cli
from tlcli.service import Client, ServerSettings, in_background


def tlcli(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(5):
        (folder / f"{number}.png").write_bytes(encode(scene((200, 40 * number, 60), (40, 40, 120, 120), seed=number)))
    return folder


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("models")
    ToyModel.make(seed=1).save(folder / "toy/1/model.onnx", "toy")
    with in_background(ServerSettings(models=folder, port=0)) as port:
        yield port


def test_closed_loops(images: Path, port: int, tmp_path: Path) -> None:
    plot = tmp_path / "load.png"
    answer = tlcli(
        "bench",
        images,
        "--port",
        port,
        "--clients",
        "1,4",
        "--seconds",
        0.5,
        "--warm-up",
        0,
        "--cam",
        "gradcam",
        "--json",
        "--output",
        plot,
    )
    assert answer.exit_code == 0, answer.output
    one, four = json.loads(answer.stdout)
    assert (one["clients"], four["clients"]) == (1, 4)
    for row in (one, four):
        assert row["answered_per_s"] > 10
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["p99_9_ms"]
        assert row["refused"] == 0
        assert row["codes"].keys() == {"OK"}
    assert one["p50_ms"] == pytest.approx(1000 / one["answered_per_s"], rel=0.5), "a single client asks one after the other"
    with Image.open(plot) as drawn:
        assert drawn.format == "PNG"


def test_open_loops_as_a_table(images: Path, port: int) -> None:
    answer = tlcli("bench", images, "--port", port, "--rate", "20,40", "--seconds", 0.5)
    assert answer.exit_code == 0, answer.output
    assert "20 requests/s" in answer.stdout
    assert "p99_9_ms" in answer.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--clients", "1,x"), "expected positive numbers separated by commas"),
        (("--clients", "0"), "expected positive numbers separated by commas"),
        (("--rate", "nan"), "expected positive numbers separated by commas"),
        (("--clients", "1", "--rate", "2"), "cannot be combined"),
        (("--model", "nobody"), "no model 'nobody'"),
        (("--cam", "nothing"), "nothing"),
    ],
)
def test_mistakes_are_a_line(images: Path, port: int, flags: tuple[str, ...], message: str) -> None:
    answer = tlcli("bench", images, "--port", port, "--seconds", 0.1, *flags)
    assert answer.exit_code != 0
    assert message in answer.output + str(answer.exception)


def test_a_line_a_image(images: Path, port: int, tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes((images / name).read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no image")
    answer = tlcli("classify", tmp_path, "--port", port, "--jsonl", "--top-k", 2, "--cam", "gradcam", "--output", tmp_path / "maps")
    assert answer.exit_code == 1, answer.output
    first, second, broken = map(json.loads, answer.stdout.splitlines())
    with Client(port=port) as client:
        for line, name in ((first, "0.png"), (second, "1.png")):
            expected = client.classify(tmp_path / name, top_k=2).predictions
            assert line["path"] == str(tmp_path / name)
            assert [one["label"] for one in line["predictions"]] == [one.label for one in expected]
            assert line["predictions"][0]["score"] == pytest.approx(expected[0].score, abs=1e-6)
            assert Path(line["overlays"][0]).is_file()
    assert broken["path"] == str(tmp_path / "broken.png")
    assert "no image" in broken["error"]
    assert tlcli("classify", tmp_path, "--port", port, "--json", "--jsonl").exception is not None
