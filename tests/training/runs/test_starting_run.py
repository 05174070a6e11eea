"""A run starts from an earlier one: its network, the rows of known classes, and what is told about both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tests.helpers.training.tiny_training import BACKBONE, COLOURS, config, put_colours, put_image_of
from tests.training.reports.test_model_card import describe
from tests.training.runs.test_resume import CutAt, CutError, left_by
from tlcli.cli.commands import compare as compare_command
from tlcli.cli.finetune_settings import check_used
from tlcli.contract.errors import NotFoundError, SettingsError
from tlcli.exports import export_run
from tlcli.training import RunResult, finetune, load_run, resume
from tlcli.training.engine.head import StandardisedHead
from tlcli.training.models.known_classes import with_classes
from tlcli.training.reports.datasheet import read_data_sheet
from tlcli.training.reports.model_card import model_card
from tlcli.training.runs.reproduce_command import finetune_command
from tlcli.training.runs.split_file import read_fingerprints
from tlcli.training.runs.starting_run import find_starting_run, take_over
from tlcli.training.runs.summary import read_summary
from tlcli.training.settings.config import FinetuneConfig

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/old`, of the classes blue and red, and `more`: its images and others, with the class green."""
    home = tmp_path_factory.mktemp("home")
    more = put_colours(home / "more", train=8, val=4, test=0)
    for part in ("train", "val"):
        for colour in ("blue", "red"):
            count = 6 if part == "train" else 4
            for number in range(count):
                put_image_of(home / "few" / part / colour / f"{number}.png", colour, number + 1000 * len(part))
    (more / "val" / "red" / "known.png").write_bytes((home / "few" / "train" / "red" / "0.png").read_bytes())
    finetune(config(home / "few", home / "runs" / "old", mode="full", epochs=2, head="linear"))
    return home


@pytest.fixture(scope="module")
def old(home: Path) -> Path:
    return home / "runs" / "old"


def asked(data: Path, old: Path, output: Path | None = None, **settings: Any) -> FinetuneConfig:
    defaults = {"epochs": 2, "batch_size": 8, "workers": 0, "device": "cpu"}
    return FinetuneConfig(dataset=str(data), from_run=old, output=output, **{**defaults, **settings})


@pytest.fixture(scope="module")
def new(home: Path, old: Path) -> tuple[RunResult, list[str]]:
    logged: list[str] = []
    return finetune(asked(home / "more", old, home / "runs" / "new"), log=logged.append), logged


def test_known_classes_keep_their_rows_in_any_order(old: Path) -> None:
    network = load_run(old).network
    changed = with_classes(network, ("blue", "red"), ("red", "green", "blue"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = network(images), changed(images)
    torch.testing.assert_close(after[:, [2, 0]], before, rtol=0, atol=0)
    again = with_classes(network, ("blue", "red"), ("green", "red"))
    with torch.no_grad():
        torch.testing.assert_close(again(images)[:, 1], before[:, 1], rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_is_standardised_without_a_change_of_its_logits(bias: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 3, bias=bias)
    mean, spread = torch.randn(5).double(), torch.rand(5).double() + 0.1
    inputs = torch.randn(7, 5)
    expected = layer(inputs).detach()
    head = StandardisedHead(layer, mean, spread)
    head.unfold()
    torch.testing.assert_close(head(inputs), expected, rtol=1e-5, atol=1e-5)
    head.fold()
    torch.testing.assert_close(layer(inputs), expected, rtol=1e-5, atol=1e-5)


def test_the_head_begins_with_the_known_rows(home: Path, old: Path, tmp_path: Path) -> None:
    """With a learning rate near zero, the run ends where the earlier one did."""
    result = finetune(asked(home / "few", old, tmp_path / "same", lr=1e-12, epochs=1))
    before, after = load_run(old), load_run(result.path)
    for name, tensor in before.network.state_dict().items():
        torch.testing.assert_close(after.network.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    assert result.metrics["val_loss"] == pytest.approx(before.metrics["val_loss"], abs=1e-5)


def test_the_network_and_its_preprocessing_are_taken_over(new: tuple[RunResult, list[str]], old: Path) -> None:
    before, after = load_run(old), load_run(new[0].path)
    assert after.classes == ("blue", "green", "red")
    assert after.network_config == before.network_config.model_copy(update={"num_classes": 3})
    assert (after.config.backbone, after.config.image_size, after.config.from_run) == (BACKBONE, 32, old)
    kept = dict(before.network.backbone.named_parameters())
    head = {id(parameter) for parameter in after.network.classifier.parameters()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in after.network.backbone.named_parameters() if id(tensor) not in head)


def test_it_is_recorded_what_the_run_started_from(new: tuple[RunResult, list[str]], old: Path) -> None:
    result, logged = new
    assert f"{BACKBONE}: weights of the run {old}, all but the head frozen; input 32x32, head linear" in logged
    assert f"starting from {old}: 2 of 2 classes keep their weights, 1 new (green)" in logged
    sheet = read_data_sheet(result.path)
    assert sheet is not None
    assert sheet.origin is not None
    assert (sheet.origin.run, sheet.origin.kept, sheet.origin.new, sheet.origin.dropped) == ("old", ("blue", "red"), ("green",), ())
    assert sheet.origin.known == {"train": 12, "val": 1}
    leak = "1 of the 13 images of the validation part was in the training part of old, which this run started from"
    assert any(warning.startswith(leak) for warning in sheet.warnings)
    report = (result.path / "report.html").read_text(encoding="utf-8")
    assert "started from the run" in report
    run = load_run(result.path)
    card = model_card(run, describe(run))
    assert "it started from the run `old` (classes: 2 kept, 1 new)" in card
    assert str(old) not in card
    assert "--from runs/old" in card
    assert f"--from {old}" in finetune_command(json.loads((result.path / "config.json").read_text())["asked"])


def test_dropped_classes_are_told(home: Path, old: Path, tmp_path: Path) -> None:
    logged: list[str] = []
    result = finetune(asked(home / "more", old, tmp_path / "run", classes=("green", "red"), epochs=1), log=logged.append)
    assert f"starting from {old}: 1 of 2 classes keep their weights, 1 new (green), 1 dropped (blue)" in logged
    assert load_run(result.path).classes == ("green", "red")


@pytest.mark.parametrize("mode", ["full", "feature-extraction"])
def test_an_interrupted_run_resumes_bitwise_identical(home: Path, old: Path, tmp_path: Path, mode: str) -> None:
    whole = asked(home / "more", old, tmp_path / "whole", mode=mode, epochs=4, **({"head_epochs": 1} if mode == "full" else {}))
    expected = left_by(finetune(whole).path)
    cut = whole.model_copy(update={"output": tmp_path / "cut"})
    with pytest.raises(CutError):
        finetune(cut, callbacks=[CutAt(epoch=3)])
    resume(tmp_path / "cut")
    assert left_by(tmp_path / "cut") == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"backbone": "resnet18"},
            "--backbone resnet18 does not match {old}, whose backbone test_resnet is taken over: leave --backbone out,",
        ),
        ({"head": "mlp:8"}, "--head mlp:8 does not match {old}, whose head linear is taken over: leave --head out, or leave --from out"),
        ({"image_size": 64}, "--image-size 64 does not match {old}, whose image size 32 is taken over"),
        ({"mean": (0.1, 0.1, 0.1)}, "--mean 0.1,0.1,0.1 does not match {old}, whose mean"),
        ({"weights": "none"}, "--from cannot be combined with --weights none, because the weights are those of {old}: leave one"),
        ({"head_search": True}, "--head-search cannot be combined with --from, because the head is that of {old}: leave one"),
    ],
)
def test_contradicting_settings_are_refused_in_one_line(old: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        take_over(asked(Path("x"), old, **settings))
    assert str(error.value).startswith(message.format(old=old))
    assert "\n" not in str(error.value)


def test_the_same_settings_may_be_named_again(old: Path) -> None:
    named = take_over(asked(Path("x"), old, backbone="Test-ResNet", head="linear", image_size=32))
    assert take_over(named) == named
    with pytest.raises(SettingsError, match="--from cannot be combined with --weights pretrained"):
        check_used(named, ["weights"], finds_lr=False)


def test_a_model_names_its_run(home: Path, old: Path, new: tuple[RunResult, list[str]], tmp_path: Path) -> None:
    exported = export_run(load_run(new[0].path), name="colours", repository=home / "models", methods=[])
    assert exported.description.provenance.from_run == "old"
    for path in (home / "models" / "colours", exported.path):
        assert find_starting_run(path) == home / "runs" / "new"
    (tmp_path / "models").mkdir()
    moved = (home / "models" / "colours").rename(tmp_path / "models" / "colours")
    with pytest.raises(SettingsError) as error:
        find_starting_run(moved)
    says = f"--from {moved}: an exported model holds no weights to train, and its run new is not in {tmp_path / 'runs'}"
    assert str(error.value).startswith(says)
    assert str(error.value).endswith("name the run: --from PATH/TO/new")


def test_other_paths_are_refused(home: Path, old: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"^--from .*nowhere: no such folder"):
        take_over(asked(home, tmp_path / "nowhere"))
    with pytest.raises(NotFoundError, match=r"^--from .*: no run or model: give a run's folder"):
        take_over(asked(home, tmp_path))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("config.json", "checkpoint.safetensors"):
        (unfinished / name).write_bytes((old / name).read_bytes())
    with pytest.raises(NotFoundError, match=r"no finished run \(results.json missing\)"):
        take_over(asked(home, unfinished))


# ---- comparison


def compared(*runs: Path) -> tuple[dict[str, Any], str]:
    answers = [CliRunner().invoke(compare_command.command, [*map(str, runs), *more], catch_exceptions=False) for more in (["--json"], [])]
    return json.loads(answers[0].stdout), answers[1].stdout


def test_images_that_a_run_was_trained_on_are_left_out_of_the_comparison(old: Path, new: tuple[RunResult, list[str]]) -> None:
    """Both have the eight validation images of blue and red; one more, of the new run, was in the training split of the old one."""
    found, said = compared(old, new[0].path)
    assert found["left_out"] == 1
    assert "left out: 1 validation image of either run, whose content is in the training split of one of them" in said
    assert "top-1 on the images that both have not seen: old " in said
    assert "McNemar's exact test on the same 8 validation images: " in said
    right = []
    for path in (old, new[0].path):
        common = [row for row in read_summary(path).predictions if row.name.startswith(("val/blue", "val/red")) and "known" not in row.name]
        right.append({row.name for row in common if row.label == row.predicted})
    assert found["mcnemar"]["only_first"] == len(right[0] - right[1])
    assert found["mcnemar"]["only_second"] == len(right[1] - right[0])


def test_a_common_image_that_one_run_was_trained_on_is_left_out(home: Path, old: Path, tmp_path: Path) -> None:
    """A new run is trained on half of the old validation images."""
    data = put_colours(tmp_path / "data", train=4, val=4, test=0)
    for colour in COLOURS:
        for number in range(2):
            (data / "train" / colour / f"known{number}.png").write_bytes((data / "val" / colour / f"{number}.png").read_bytes())
    result = finetune(asked(data, old, tmp_path / "run", epochs=1))
    found, said = compared(old, result.path)
    assert found["left_out"] == 6
    assert "McNemar's exact test on the same 4 validation images" in said


def test_runs_without_recorded_contents_are_compared_by_name(old: Path, tmp_path: Path) -> None:
    copies = []
    for name in ("a", "b"):
        copy = tmp_path / name
        copy.mkdir()
        for file in old.iterdir():
            if file.is_file():
                (copy / file.name).write_bytes(file.read_bytes())
        split = json.loads((copy / "split.json").read_text())
        del split["fingerprints"]
        (copy / "split.json").write_text(json.dumps(split))
        copies.append(copy)
    assert read_fingerprints(copies[0]) is None
    found, said = compared(*copies)
    assert found["left_out"] is None
    assert "McNemar's exact test on the same 8 validation images" in said
