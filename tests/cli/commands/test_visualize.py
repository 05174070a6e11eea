"""`tlcli visualize` writes what it says, in the order in which the network runs, and answers mistakes with one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from click.testing import CliRunner
from PIL import Image

from tests.helpers.training.tiny_training import BACKBONE, config, put_colours, put_image_of
from tlcli.cli.commands.visualize import command
from tlcli.contract.errors import ImageError, NotFoundError, SettingsError
from tlcli.training import finetune, load_run
from tlcli.training.models.spatial_layers import record, spatial_layers
from tlcli.training.visualize.layer_sheets import maps_sheet

pytestmark = pytest.mark.usefixtures("blank_figures")

NET = ("--backbone", BACKBONE, "--weights", "none", "--image-size", "32")


def invoke(*arguments: object) -> str:
    """Run the command and return its standard output. Its error is raised."""
    return CliRunner().invoke(command, [*map(str, arguments), "-q"], standalone_mode=False, catch_exceptions=False).stdout


def table(*arguments: object) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(invoke(*arguments, "--json"))
    return rows


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("visualize")
    put_image_of(folder / "image.png", "red", 1)
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    return finetune(config(put_colours(home / "colours", train=6, val=2, test=2), home / "run", epochs=1)).path


def test_every_sheet_is_there_and_the_listing_reads_as_the_network_runs(home: Path) -> None:
    rows = table(*NET, home / "image.png", "-o", home / "default")
    files = sorted((home / "default").iterdir())
    assert [row["file"] for row in rows] == list(map(str, files))
    assert [(row["sheet"], row["layer"], row["type"]) for row in rows if "downsample" not in (row["layer"] or "")] == [
        ("filters", "conv1.0", "Conv2d"), ("maps", "conv1.2", "ReLU"), ("maps", "act1", "ReLU"), ("maps", "maxpool", "MaxPool2d"),
        ("maps", "layer1", "Sequential"), ("maps", "layer2", "Sequential"), ("maps", "layer3", "Sequential"), ("overview", None, None),
    ]  # fmt: skip
    assert [file.name for file in files[:3]] == ["01-conv1.0.filters.png", "03-conv1.2.maps.png", "09-act1.maps.png"]
    assert files[-1].name == "overview.png"
    for file in files:
        with Image.open(file) as opened:
            assert opened.format == "PNG"
            assert 100 < opened.width <= 2400


def test_a_run_shows_its_own_network_looking_at_the_image_as_it_was_trained_to(run: Path, home: Path) -> None:
    (row, _) = table(run, home / "image.png", "--layer", "layer2", "--max-channels", 5, "-o", home / "of-run")
    network = load_run(run).network
    (layer,) = (one for one in spatial_layers(network) if one.label == "layer2")
    with Image.open(home / "image.png") as photo:
        image = network.config.preprocessing.apply(photo.convert("RGB"))
    inputs = network.normalise(torch.from_numpy(image)[None])
    outputs = timm.models.FeatureListNet(network.backbone, out_indices=(2,))(inputs)[0][0].numpy()
    np.testing.assert_allclose(record(network, image, [layer])["layer2"], outputs, atol=1e-5)
    drawn = maps_sheet(layer, record(network, image, [layer])["layer2"], most=5)
    with Image.open(row["file"]) as opened:
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(drawn.sheet.image))
    assert row["shape"] == [48, 4, 4]
    assert row["shown"] == sorted(np.argsort(-outputs.mean((1, 2)))[:5].tolist())


def test_without_a_image_only_filters_are_drawn(run: Path, home: Path) -> None:
    assert [row["sheet"] for row in table(run, "-o", home / "first")] == ["filters"]
    every = table(*NET, "--filters", "-o", home / "every")
    assert {row["sheet"] for row in every} == {"filters"}
    assert len(every) == 10
    asked = table(*NET, "--layer", "layer1.0.conv2", "-o", home / "asked")
    assert [(row["layer"], row["shape"]) for row in asked] == [("layer1.0.conv2", [32, 32, 3, 3])]


def test_weights_without_a_classifier_will_do(home: Path) -> None:
    state = timm.create_model(BACKBONE).state_dict()
    safetensors.torch.save_file({name: tensor for name, tensor in state.items() if not name.startswith("fc.")}, home / "body.safetensors")
    rows = table("--backbone", BACKBONE, "--weights", home / "body.safetensors", home / "image.png", "-o", home / "body")
    assert rows[-1]["sheet"] == "overview"


def test_layers_are_listed_and_nothing_is_drawn(home: Path, tmp_path: Path) -> None:
    rows = table(*NET, "--list-layers", "-o", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert [row["number"] for row in rows] == sorted(row["number"] for row in rows)
    assert {"number": 10, "layer": "maxpool", "type": "MaxPool2d", "shape": [32, 8, 8], "default": True} in rows
    drawn = table(*NET, home / "image.png", "-o", tmp_path / "drawn")
    assert [row["layer"] for row in drawn if row["sheet"] == "maps"] == [row["layer"] for row in rows if row["default"]]
    lines = invoke(*NET, "--list-layers").splitlines()
    assert lines[0].split() == ["number", "layer", "type", "shape", "default"]
    assert lines[11].split() == ["10", "maxpool", "MaxPool2d", "32", "x", "8", "x", "8", "yes"]


def test_all_means_each_output_once(home: Path) -> None:
    rows = [row for row in table(*NET, home / "image.png", "--layer", "all", "-o", home / "all") if row["sheet"] == "maps"]
    numbers = [Path(row["file"]).name.split("-")[0] for row in rows]
    assert numbers == sorted(set(numbers))
    assert len(rows) == max(row["number"] for row in table(*NET, "--list-layers"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (*NET, "IMAGE", "--layer", "layr1"),
            SettingsError,
            "--layer layr1: no such layer; near it: layer1.*; --list-layers lists them all",
        ),
        ((*NET, "no-such.png"), NotFoundError, "no-such.png: No such file"),
        ((*NET, __file__), ImageError, "test_visualize.py: .*are not an image"),
        (("no-such-run",), NotFoundError, "no-such-run: no such folder: give a run's folder"),
        ((), click.UsageError, "give a run's folder, or --backbone NAME"),
        ((*NET, "IMAGE", "IMAGE"), click.UsageError, "give a run's folder, or --backbone NAME"),
        (("RUN", "IMAGE", "--mean", "0.5", "--image-size", "64"), click.UsageError, "--mean, --image-size: determined by the run"),
        ((*NET, "--layer", "maxpool"), click.UsageError, "none of these layers is a convolution.*: give an IMAGE"),
    ],
)
def test_mistakes_get_one_line(
    arguments: tuple[str, ...], error: type[Exception], message: str, run: Path, home: Path, tmp_path: Path
) -> None:
    named = {"IMAGE": home / "image.png", "RUN": run}
    with pytest.raises(error, match=message):
        invoke(*(named.get(one, one) for one in arguments), "-o", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_earlier_sheets_are_kept(home: Path) -> None:
    (home / "kept").mkdir()
    (home / "kept" / "overview.png").write_text("mine")
    rows = table(*NET, home / "image.png", "-o", home / "kept")
    assert {Path(row["file"]).parent for row in rows} == {home / "kept-2"}
    assert (home / "kept" / "overview.png").read_text() == "mine"
