"""The model card: the hub reads its header, Markdown shows its tables, and the command line accepts its commands."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from tests.helpers.training.tiny_training import config, put_colours
from tlcli.__main__ import COMMANDS
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.description import Agreement, Description, Layer, MapAgreement, MapOutput, Parity, Provenance
from tlcli.training import Run, finetune, load_run
from tlcli.training.reports.citations import paper_of
from tlcli.training.reports.datasheet import describe_dataset, write_data_sheet
from tlcli.training.reports.model_card import model_card, write_model_card

pytestmark = pytest.mark.usefixtures("blank_figures")

NAMES = {"blue": "a|b *c* [x](y) --- ~~z~~", "green": "`g` <b>_r_<b> $e$ #1 &amp;", "red": "rot: \\ 'q' \"猫\""}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    home = tmp_path_factory.mktemp("home")
    data = put_colours(home / "my secret pets")
    for part in ("train", "val", "test"):
        for name, odd in NAMES.items():
            (data / part / name).rename(data / part / odd)
    (data / "val" / NAMES["red"] / "0.png").write_bytes((data / "train" / NAMES["red"] / "1.png").read_bytes())
    result = finetune(config(data, home / "run", epochs=2))
    loaded = load_run(result.path)
    write_data_sheet(result.path / "data_sheet.json", describe_dataset(loaded.dataset()))
    return loaded


def describe(run: Run, maps: bool = True) -> Description:
    layer = Layer(name="layer4", features="features", gradients="gradients", channels=8, height=7, width=7)
    shown = tuple(MapOutput(name=name, method=name, layer="layer4", height=7, width=7) for name in ("cam", "gradcam", "eigencam"))
    parity = Parity(images=9, source="x", logits=1.2e-5, maps={"cam": 2e-6, "gradcam": 3.5e-6}, top1_agreement=1.0)
    return Description(
        name="pets",
        labels=run.classes,
        preprocessing=Preprocessing(height=32, width=32),
        layers=(layer,) if maps else (),
        maps=shown if maps else (),
        switches=(),
        provenance=Provenance(created="", versions={}, backbone="test_resnet", head="linear", weights="none", parity=parity),
    )


@pytest.fixture(scope="module")
def card(run: Run) -> str:
    return model_card(run, describe(run))


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables that Markdown shows, as rows of cells."""
    found: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(text.split("---\n", 2)[2]):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and token.level == 4 and len(found[-1]) and token.children is not None:
            assert {child.type for child in token.children} <= {"text", "code_inline"}, token.content
            found[-1][-1].append("".join(child.content for child in token.children))
    return found


def table(text: str, *heads: str) -> list[list[str]]:
    return next(rows[1:] for rows in tables(text) if rows[0] == list(heads))


def test_the_hub_reads_its_header(run: Run, card: str) -> None:
    read = ModelCard(card).data
    assert (read.library_name, read.pipeline_tag, read.model_name) == ("tlcli", "image-classification", "pets")
    assert {"onnx", "image-classification", "test_resnet"} <= set(read.tags)
    assert read.metrics == ["accuracy", "f1"]
    assert read.base_model is None, "the run began with random weights"
    found = {(one.dataset_split, one.metric_type): one for one in read.eval_results}
    for part, scores in (("test", run.results.test), ("validation", run.results.val)):
        assert scores is not None
        assert found[part, "accuracy"].metric_value == pytest.approx(scores.top1, abs=1e-6)
        assert found[part, "f1"].metric_value == pytest.approx(scores.macro_f1, abs=1e-6)
        assert found[part, "loss"].metric_value == pytest.approx(scores.loss, abs=1e-6)
        assert found[part, "expected_calibration_error"].metric_value == pytest.approx(scores.calibration.ece, abs=1e-6)
        assert found[part, "accuracy"].dataset_name == "my secret pets"
        assert found[part, "accuracy"].dataset_type == "my-secret-pets"


@pytest.mark.parametrize("name", ["on", "a: b", "# c", "1.5", "- x", 'q"q', "tab\tnew\nline\x7f\u2028\ufeff", "猫 🐈"])
def test_any_name_of_a_data_set_is_valid_yaml(name: str, run: Run) -> None:
    odd = dataclasses.replace(run, config=run.config.model_copy(update={"dataset": name}))
    header = model_card(odd, describe(run)).split("---\n")[1]
    (model,) = yaml.safe_load(header)["model-index"]
    assert {result["dataset"]["name"] for result in model["results"]} == {name}


def test_tables_show_the_classes_literally(run: Run, card: str) -> None:
    assert set(run.classes) == set(NAMES.values())
    assert run.results.test is not None
    expected = [
        [one.label, str(one.count), *("–" if value is None else f"{value:.4f}" for value in (one.precision, one.recall, one.f1))]
        for one in run.results.test.classes
    ]
    assert table(card, "class", "images", "precision", "recall", "F1") == expected
    assert table(card, "class", "train", "val", "test") == [[label, "12", "4", "4"] for label in run.classes]
    maps = table(card, "name", "method", "layer", "size", "computed")
    assert [row[0] for row in maps] == ["cam", "gradcam", "eigencam"]
    assert [row[4].startswith("in the graph") for row in maps] == [True, True, False]
    settings = dict(table(card, "setting", "value"))
    assert (settings["backbone"], settings["epochs"], settings["image_size"]) == ("test_resnet", "2", "32")
    assert "mixup" not in settings, "nobody asked for it"


def test_the_card_has_every_section(run: Run, card: str) -> None:
    titles = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert titles == [
        "Intended use and limits", "Training data", "Training procedure", "Evaluation", "Calibration", "Usage",
        "Class activation maps", "Citation",
    ]  # fmt: skip
    assert "\n# pets\n" in card
    assert "1 of the 12 images of the validation part is in the training part too" in card
    assert run.dataset_fingerprint in card
    assert "logits differ by at most 1.2e-05, the maps by at most 3.5e-06" in card
    parameters = sum(tensor.numel() for tensor in run.network.parameters())
    assert f"{parameters / 1e6:.1f} million parameters" in card


def test_the_card_does_not_reveal_local_paths(run: Run, card: str) -> None:
    assert str(run.path.parent) not in card
    assert str(Path.home()) not in card
    elsewhere = run.config.model_copy(update={"weights": "/home/me/private/w.safetensors"})
    text = model_card(dataclasses.replace(run, config=elsewhere), describe(run))
    assert "w.safetensors" in text
    assert "private" not in text


def test_the_command_line_accepts_the_cards_commands(card: str) -> None:
    lines = [line for block in re.findall("```sh\n(.*?)```", card, re.DOTALL) for line in block.splitlines()]
    assert [shlex.split(line)[1] for line in lines] == ["finetune", "predict", "serve", "classify"]
    for line in lines:
        program, name, *arguments = shlex.split(line)
        assert program == "tlcli"
        assert name in COMMANDS
        command = importlib.import_module(f"tlcli.cli.commands.{name}").command
        with command.make_context(name, arguments) as context:
            assert context.params


def test_a_card_is_overwritten_until_a_user_edits_it(run: Run, tmp_path: Path) -> None:
    path = write_model_card(tmp_path / "pets", run, describe(run))
    assert path == tmp_path / "pets" / "README.md"
    assert write_model_card(tmp_path / "pets", run, describe(run, maps=False)) == path
    assert path.read_text(encoding="utf-8") == model_card(run, describe(run, maps=False))
    own = re.sub("<!-- Made by tlcli.*?-->", "", path.read_text(encoding="utf-8"))
    path.write_text(own, encoding="utf-8")
    assert write_model_card(tmp_path / "pets", run, describe(run)) is None
    assert path.read_text(encoding="utf-8") == own


def test_a_temperature_is_described(run: Run) -> None:
    card = model_card(run, describe(run).model_copy(update={"temperature": 1.75}))
    assert "The exported file divides its logits by a temperature of 1.75: its predictions are the same" in card


def test_a_model_without_maps_says_so(run: Run) -> None:
    card = model_card(run, describe(run, maps=False))
    assert "The file was exported without maps." in card
    assert "--cam" not in card
    assert "cam=" not in card


def test_the_pretrained_weights_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    began = dataclasses.replace(run, config=run.config.model_copy(update={"weights": "pretrained"}))
    published = {"hf_hub_id": "timm/", "architecture": "resnet18", "tag": "a1_in1k"}
    monkeypatch.setattr(run.network.backbone, "pretrained_cfg", published)
    assert ModelCard(model_card(began, describe(run))).data.base_model == "timm/resnet18.a1_in1k"
    monkeypatch.setattr(run.network.backbone, "pretrained_cfg", {})
    assert ModelCard(model_card(began, describe(run))).data.base_model is None


def test_a_run_without_test_part_or_data_sheet_has_a_card(run: Run, tmp_path: Path) -> None:
    bare = dataclasses.replace(run, path=tmp_path, results=run.results.model_copy(update={"test": None}))
    for name in ("config.json", "results.json"):
        (tmp_path / name).write_bytes((run.path / name).read_bytes())
    card = model_card(bare, describe(run))
    assert [one.dataset_split for one in ModelCard(card).data.eval_results] == ["validation"] * 4
    assert "The epoch was selected on these same images" in card


@pytest.mark.parametrize(
    ("backbone", "paper"),
    [
        ("vgg16_bn", "1409.1556"),
        ("resnet18.a1_in1k", "1512.03385"),
        ("resnext50_32x4d", "1611.05431"),
        ("seresnet50", "1709.01507"),
        ("wide_resnet50_2", "1605.07146"),
        ("cifar_resnet20", "1512.03385"),
        ("mobilenetv2_100", "1801.04381"),
        ("tf_efficientnetv2_s", "2104.00298"),
        ("efficientnet_b0", "1905.11946"),
        ("convnextv2_tiny", "2301.00808"),
        ("convnext_tiny", "2201.03545"),
        ("inception_resnet_v2", "1602.07261"),
        ("test_resnet", None),
    ],
)
def test_a_backbones_paper_is_found_by_its_name(backbone: str, paper: str | None) -> None:
    found = paper_of(backbone)
    assert found is None if paper is None else found is not None and found.endswith(f"arXiv:{paper}")


def test_the_cost_of_reduced_precision_is_described(run: Run, card: str) -> None:
    assert "## Reduced precision" not in card
    described = describe(run)
    agreement = Agreement(
        images=1234,
        source="my_pets, validation part",
        top1_before=0.985,
        top1=0.9825,
        agreement=0.9925,
        finite=1.0,
        time=0.4,
        maps={"gradcam": MapAgreement(images=200, rank_correlation=0.97684, rank_correlation_median=None)},
        calibration="256 images of my_pets, training part",
    )
    provenance = described.provenance.model_copy(update={"agreement": agreement})
    text = model_card(run, described.model_copy(update={"precision": "int8", "provenance": provenance}))
    section = text.split("## Reduced precision")[1].split("##")[0].replace("\\", "")
    assert "convolutions compute in int8" in section
    assert "Ranges come from 256 images of my_pets, training part." in section
    assert "On 1,234 images (my_pets, validation part) 98.25 % are right, in float32 98.50 %; the first class is the same" in section
    assert "for 99.25 %" in section
    assert table(text, "map", "mean", "median") == [["gradcam", "0.9768", "–"]]


def test_a_kept_epoch_of_the_head_alone_is_not_called_training_of_all_layers(run: Run) -> None:
    full = dataclasses.replace(run, config=run.config.model_copy(update={"mode": "full"}))
    for stage, sentence in (
        ("full", "All of its layers were trained"),
        ("head", "Training all of its layers did no better than its head alone"),
    ):
        results = (run.path / "results.json").read_text()
        try:
            (run.path / "results.json").write_text(run.results.model_copy(update={"best_stage": stage}).model_dump_json())
            card = model_card(full, describe(run))
        finally:
            (run.path / "results.json").write_text(results)
        assert sentence in card
        assert ("so the backbone's weights are unchanged" in card) == (stage == "head")
