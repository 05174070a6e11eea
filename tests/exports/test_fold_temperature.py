"""A temperature in the file: scores are softmax(logits / T), ranks stay, maps stay up to their scale; and its fit on a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result

from tests.helpers.exports.small_networks import LABELS, PROVENANCE, blobs, make
from tests.helpers.training import tiny_training
from tlcli.__main__ import cli
from tlcli.contract.errors import SettingsError
from tlcli.contract.model.description import Description
from tlcli.contract.model.onnx_model import Model
from tlcli.exports import Exported, export
from tlcli.exports.run_temperature import logits_of
from tlcli.training import Run, finetune, load_run
from tlcli.training.metrics.temperature_scaling import fit_temperature
from tlcli.training.models.network import Network
from tlcli.training.runtime.progress import silent

pytestmark = pytest.mark.usefixtures("blank_figures")

IMAGES = blobs(4)


def put(network: Network, repository: Path, temperature: float = 1.0, methods: Sequence[str] | None = ("gradcam",)) -> Exported:
    return export(
        network, name="model", labels=LABELS, repository=repository, images=list(IMAGES), source="blobs", provenance=PROVENANCE,
        methods=methods, temperature=temperature,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("backbone", "head", "temperature", "methods"),
    [
        ("test_resnet", "linear", 3.0, None),
        ("test_resnet", "mlp:16", 0.4, ("gradcam", "xgradcam", "hirescam", "layercam")),
        ("lenet5", "original", 3.0, ("gradcam",)),
        ("dla46_c", "linear", 0.4, ("cam", "gradcam")),
    ],
)
def test_the_files_scores_are_the_softmax_of_logits_over_it(
    backbone: str, head: str, temperature: float, methods: Sequence[str] | None, tmp_path: Path
) -> None:
    network = make(backbone, head, spread=3.0).requires_grad_(False)
    assert isinstance(network.last_layer, torch.nn.Conv2d) == (backbone == "dla46_c")
    before = tiny_training.digest(network)
    exported = put(network, tmp_path, temperature, methods)
    assert tiny_training.digest(network) == before
    plain, model = Model.open(put(network, tmp_path, 1.0, methods).path, "cpu"), Model.open(exported.path, "cpu")
    assert (plain.description.temperature, model.description.temperature) == (1.0, temperature)

    names = plain.description.graph_maps
    expected, found = plain.run(IMAGES, [0, -1, -2], names), model.run(IMAGES, [0, -1, -2], names)
    scaled = torch.from_numpy(expected.logits).double() / temperature
    np.testing.assert_allclose(found.scores, scaled.softmax(1), atol=1e-5)
    np.testing.assert_array_equal(np.argsort(found.scores, 1), np.argsort(expected.scores, 1))
    np.testing.assert_array_equal(found.classes, expected.classes)  # type: ignore[arg-type]
    for name in names:
        scale = {"gradcam_plus_plus": None, "fem": 1.0, "ablationcam": 1.0}.get(name, 1 / temperature)
        if scale is not None:
            values = scale * expected.maps[name]
            np.testing.assert_allclose(found.maps[name], values, atol=1e-3 * np.abs(values).max(), err_msg=name)


def test_a_map_laid_over_a_image_is_the_same(tmp_path: Path) -> None:
    network = make("test_resnet")
    plain, warm = (Model.open(put(network, tmp_path, temperature).path, "cpu") for temperature in (1.0, 5.0))
    drawn = []
    for model in (plain, warm):
        values = model.run(IMAGES, [-1], ["gradcam"]).maps["gradcam"]
        drawn.append((values - values.min((2, 3), keepdims=True)) / np.ptp(values, (2, 3), keepdims=True))
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-4)


def test_a_file_from_before_there_was_one_has_none(tmp_path: Path) -> None:
    described = json.loads(put(make("test_resnet"), tmp_path).description.to_json())
    del described["temperature"]
    assert Description.from_metadata({"tlcli.description": json.dumps(described)}, "old").temperature == 1


@pytest.mark.parametrize("temperature", [0.0, -2.0, float("nan"), float("inf")])
def test_what_is_no_temperature_is_refused(temperature: float, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=rf"^--temperature {temperature:g}: expected a number above 0, or fit$"):
        put(make("test_resnet"), tmp_path, temperature)
    assert list(tmp_path.iterdir()) == []


# ---- of a run


@pytest.fixture(scope="module", params=["feature-extraction", "full"])
def sure(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return an overconfident run: a third of its validation images are of another class, and its logits are large."""
    folder = tmp_path_factory.mktemp("sure")
    dataset = tiny_training.put_colours(folder / "images", val=6)
    colours = list(tiny_training.COLOURS)
    for place, name in enumerate(colours):
        for number in (0, 1):
            tiny_training.put_image_of(dataset / "val" / name / f"{number}.png", colours[place - 1], 7000 + number)
    result = finetune(tiny_training.config(dataset, folder / "run", mode=request.param, epochs=6, lr=1e-2))
    state = safetensors.torch.load_file(result.path / "checkpoint.safetensors")
    for name in ("backbone.fc.weight", "backbone.fc.bias"):
        state[name] = 10 * state[name]
    safetensors.torch.save_file(state, result.path / "checkpoint.safetensors")
    results = json.loads((result.path / "results.json").read_text())
    results["network_output"] = [10 * value for value in results["network_output"]]
    (result.path / "results.json").write_text(json.dumps(results))
    return load_run(result.path)


def tlcli(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_it_is_fitted_on_the_runs_validation_part(sure: Run, tmp_path: Path) -> None:
    val = sure.dataset().val
    images = np.stack([sure.network.config.preprocessing.apply(val.load(index)) for index in range(len(val))])
    logits = logits_of(sure, val, silent)
    torch.testing.assert_close(logits, sure.network.predict(images), rtol=1e-4, atol=1e-3)

    answer = tlcli("export", sure.path, "--temperature", "fit", "--models", tmp_path, "--cam", "gradcam", "--check-images", 4)
    assert answer.exit_code == 0, answer.output
    (model,) = (Model.open(path, "cpu") for path in tmp_path.rglob("model.onnx"))
    found = model.description.temperature
    assert found == pytest.approx(fit_temperature(logits, torch.from_numpy(val.labels)))
    assert found > 2
    np.testing.assert_allclose(model.run(images).scores, (logits / found).softmax(1), atol=1e-5)

    (line,) = (line for line in answer.stderr.splitlines() if line.startswith("temperature"))
    assert line.startswith(f"temperature {found:.4g}, fitted on 18 validation images: expected calibration error on them ")
    after, before = (float(word.strip("%,")) for word in line.split() if "%" in word)
    assert after < before


def test_a_number_is_taken_as_it_is(sure: Run, tmp_path: Path) -> None:
    answer = tlcli("export", sure.path, "--temperature", "2", "--models", tmp_path, "--cam", "none", "--check-images", 1)
    assert answer.exit_code == 0, answer.output
    assert "temperature 2, as given: expected calibration error on them" in answer.stderr
    (path,) = tmp_path.rglob("model.onnx")
    assert Model.open(path, "cpu").description.temperature == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--temperature", "warm"), "'warm': expected a number above 0, or fit"),
        (("--temperature", "fit"), "--temperature fit needs the validation split of a run: use a number with --backbone"),
    ],
)
def test_the_command_says_what_it_takes(arguments: tuple[str, ...], said: str) -> None:
    answer = tlcli("export", "--backbone", "test_resnet", "--weights", "none", *arguments)
    assert answer.exit_code == 2
    assert said in answer.output
