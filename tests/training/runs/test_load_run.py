"""Run folders: their files, reading them back, and the errors if that fails."""

from __future__ import annotations

import csv
import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from tests.helpers.training.tiny_training import config, put_colours, put_image_of
from tlcli.contract.errors import DatasetError, NotFoundError, SettingsError, WeightsError
from tlcli.training import RunResult, finetune, load_run
from tlcli.training.metrics.scores import Results
from tlcli.training.runs.run_folder import absolute, make_folder, versions


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def result(home: Path) -> RunResult:
    put_colours(home / "colours")
    (home / "colours" / "train" / "red" / "broken.png").write_bytes(b"no image")
    return finetune(config(home / "colours", home / "run", epochs=2, seed=3))


def test_the_folder_holds_every_file_of_a_run(result: RunResult) -> None:
    assert sorted(path.name for path in result.path.iterdir()) == [
        "checkpoint.safetensors", "config.json", "confusion_matrix.png", "curves.png", "data_sheet.json", "metrics.csv", "mistakes.png",
        "predictions.csv", "reliability.png", "report.html", "results.json", "split.json", "timings.csv",
    ]  # fmt: skip
    kept = json.loads((result.path / "config.json").read_text())
    assert kept["asked"]["seed"] == 3
    assert kept["classes"] == ["blue", "green", "red"]
    assert kept["network"]["preprocessing"]["height"] == 32
    assert kept["plan"]["head_epochs"] == 2
    assert kept["versions"].keys() >= {"torch", "timm", "tlcli"}
    assert len(kept["weights_fingerprint"]) == len(kept["dataset_fingerprint"]) == 64
    rows = list(csv.DictReader((result.path / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert list(rows[0]) == ["stage", "epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1"]
    assert [list(row) for row in csv.DictReader((result.path / "timings.csv").open())] == [["epoch", "seconds"]] * 2


def test_the_loaded_network_gives_the_same_predictions(result: RunResult) -> None:
    """Compared with the predictions and scores that training wrote."""
    run = load_run(result.path)
    part = run.dataset().val
    assert not run.network.training
    images = np.stack([run.network_config.preprocessing.apply(part.load(index)) for index in range(len(part))])
    logits = run.network.predict(images)
    scores, predicted = logits.softmax(1).max(1)
    rows = list(csv.DictReader((result.path / "predictions.csv").open()))
    assert [row["name"] for row in rows] == list(part.names)
    assert [row["label"] for row in rows] == [run.classes[label] for label in part.labels]
    assert [row["predicted"] for row in rows] == [run.classes[index] for index in predicted]
    np.testing.assert_allclose([float(row["score"]) for row in rows], scores, atol=1e-5)
    assert run.results.val.top1 == float((predicted == torch.from_numpy(part.labels)).float().mean())
    assert run.metrics == result.metrics


def test_results_hold_the_outcome_of_training(result: RunResult) -> None:
    results = Results.model_validate_json((result.path / "results.json").read_text())
    assert results == result.results
    assert results.images == {"train": 36, "val": 12, "test": 12}
    assert results.left_out == 1
    assert results.test is not None
    assert sum(map(sum, results.test.confusion)) == 12
    assert results.seconds.keys() == {"data", "features", "head", "evaluation", "report"}


def test_a_run_means_the_same_in_any_working_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    asked = absolute(config(Path("colours"), Path("out"), weights="w.pth", data_dir=Path("data")))
    assert asked.dataset == str(home / "colours")
    assert asked.output == home / "out"
    assert asked.weights == str(home / "w.pth")
    assert asked.data_dir == home / "data"
    (home / "cifar10").mkdir()
    known = absolute(config(Path("cifar10"), weights="pretrained"))
    assert (known.dataset, known.weights) == ("cifar10", "pretrained")


def test_folders_are_named_after_backbone_data_set_and_mode(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = config(home / "colours", backbone="resnet18.a1_in1k", mode="full")
    assert [make_folder(asked).path for _ in range(2)] == [Path(f"runs/resnet18.a1_in1k-colours-full-{number}") for number in (1, 2)]
    assert make_folder(config(Path("hfds/a b/c"))).path == Path("runs/test_resnet-c-features-1")


def test_changed_images_are_detected(result: RunResult, home: Path) -> None:
    run = load_run(result.path)
    assert len(run.dataset().train) == 36
    put_image_of(home / "colours" / "val" / "red" / "new.png", "red", 99)
    with pytest.raises(DatasetError, match=r"colours: the images changed since .*run was trained \(see its split.json\)"):
        run.dataset()
    (home / "colours" / "val" / "red" / "new.png").unlink()


@pytest.fixture
def copy(result: RunResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(result.path, tmp_path / "copy"))


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere: no such folder: give a run's folder"):
        load_run(tmp_path / "nowhere")


def test_an_unfinished_run_names_the_missing_files(copy: Path) -> None:
    (copy / "results.json").unlink()
    with pytest.raises(NotFoundError, match=r"copy: no finished run \(results.json missing\): `tlcli finetune --resume .*copy` resumes it"):
        load_run(copy)


def test_unreadable_settings_are_named(copy: Path) -> None:
    kept = json.loads((copy / "config.json").read_text())
    kept["plan"]["head_epochs"] = "many"
    (copy / "config.json").write_text(json.dumps(kept))
    with pytest.raises(SettingsError, match=r"config.json: cannot be read by this version of tlcli: plan.head_epochs: .*integer"):
        load_run(copy)


def test_the_checkpoint_of_another_network_is_rejected(copy: Path) -> None:
    state = safetensors.torch.load_file(copy / "checkpoint.safetensors")
    state["backbone.fc.weight"] = torch.zeros(5, 96)
    safetensors.torch.save_file(state, copy / "checkpoint.safetensors")
    with pytest.raises(
        WeightsError, match=r"checkpoint.safetensors: does not fit the network in config.json.*backbone.fc.weight"
    ) as caught:
        load_run(copy)
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_is_rejected(copy: Path) -> None:
    content = (copy / "checkpoint.safetensors").read_bytes()
    (copy / "checkpoint.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsError, match=r"checkpoint.safetensors: does not fit the network in config.json, or is damaged"):
        load_run(copy)


def test_a_checkpoint_can_be_trained_further(result: RunResult, home: Path, tmp_path: Path) -> None:
    """The checkpoint of a run is an ordinary weights file."""
    weights = result.path / "checkpoint.safetensors"
    further = finetune(config(home / "colours", tmp_path / "further", weights=str(weights), mode="full", epochs=3))
    assert further.results.val.count == 12


def test_tlcli_has_no_version_if_run_from_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = metadata.version

    def version(package: str) -> str:
        if package == "tlcli":
            raise metadata.PackageNotFoundError(package)
        return plain(package)

    monkeypatch.setattr(metadata, "version", version)
    assert versions()["tlcli"] == "not installed"
    assert versions()["torch"] == plain("torch")


@pytest.fixture(scope="module")
def with_another_epsilon(home: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """Run of `fbnetc_100`, whose batch norms have a different epsilon if timm builds it with pretrained weights."""
    torch.manual_seed(0)
    published = timm.create_model("fbnetc_100", bn_eps=1e-3)
    for module in published.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.2, 0.4)  # type: ignore[union-attr]
    path = tmp_path_factory.mktemp("weights") / "fbnetc.safetensors"
    safetensors.torch.save_file(published.state_dict(), path)
    put_colours(home / "few", train=2, val=1, test=1)
    return finetune(config(home / "few", home / "fbnet", backbone="fbnetc_100", weights=str(path), epochs=1))


def epsilons(run_network: torch.nn.Module) -> set[float]:
    return {module.eps for module in run_network.modules() if isinstance(module, torch.nn.BatchNorm2d)}


def test_a_run_is_read_back_with_the_constants_of_pretrained_networks(with_another_epsilon: RunResult, tmp_path: Path) -> None:
    run = load_run(with_another_epsilon.path)
    assert run.network_config.pretrained
    assert epsilons(run.network) == {1e-3}
    older = Path(shutil.copytree(with_another_epsilon.path, tmp_path / "older"))  # from before either was recorded
    for name, recorded in (("config.json", ("network", "pretrained")), ("results.json", ("network_output",))):
        kept = json.loads((older / name).read_text())
        inner = kept
        for key in recorded[:-1]:
            inner = inner[key]
        del inner[recorded[-1]]
        (older / name).write_text(json.dumps(kept))
    assert epsilons(load_run(older).network) == {1e-3}


def test_a_network_that_computes_something_else_is_rejected(with_another_epsilon: RunResult, tmp_path: Path) -> None:
    other = Path(shutil.copytree(with_another_epsilon.path, tmp_path / "other"))
    kept = json.loads((other / "config.json").read_text())
    kept["network"]["pretrained"] = False
    (other / "config.json").write_text(json.dumps(kept))
    with pytest.raises(
        WeightsError, match=r"other: the loaded network is not the trained one \(relative difference of the logits"
    ) as refused:
        load_run(other)
    assert "\n" not in str(refused.value)


def test_random_weights_are_read_back_with_the_constants_of_random_networks(result: RunResult) -> None:
    run = load_run(result.path)
    assert run.network_config.pretrained is False
    assert run.results.network_output is not None
    assert len(run.results.network_output) == len(run.classes)
