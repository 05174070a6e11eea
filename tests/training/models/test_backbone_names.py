"""Spellings of backbone names."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm

from tests.helpers.training.tiny_training import config, put_colours
from tlcli.contract.errors import SettingsError
from tlcli.training import finetune, load_run
from tlcli.training.models.backbone_names import resolve_backbone_name
from tlcli.training.models.list_backbones import list_backbones
from tlcli.training.models.network import create_backbone

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("resnet-50", "resnet50"), ("ResNet18", "resnet18"), ("VGG-16", "vgg16"), ("EfficientNet_B0", "efficientnet_b0"),
        ("ResNet-50.a1_in1k", "resnet50.a1_in1k"), ("timm/resnet18.a1_in1k", "resnet18.a1_in1k"), ("densenet-121", "densenet121"),
        ("mobilenet_v3_large", "mobilenetv3_large_100"),
        ("resnetv2_50x1_bitm", "resnetv2_50x1_bit.goog_in21k_ft_in1k"),
        ("vit_b_16", "vit_base_patch16_224"),
        ("resnet50", "resnet50"), ("vgg", "vgg"), ("resnt50", "resnt50"), ("", ""),
    ],
)  # fmt: skip
def test_an_unambiguous_spelling_is_resolved(written: str, meant: str) -> None:
    assert resolve_backbone_name(written) == meant


def test_timms_own_names_are_unchanged() -> None:
    changed = {name for name in timm.list_models() if resolve_backbone_name(name) != name}
    assert not changed


@pytest.mark.parametrize(
    ("written", "similar"), [("vgg", "vgg11, vgg13, vgg16"), ("resnt50", "resnet50"), ("eficientnet_b0", "efficientnet_b0")]
)
def test_an_unknown_name_is_reported_with_similar_names(written: str, similar: str) -> None:
    with pytest.raises(SettingsError, match=rf"unknown backbone '{written}': .*similar names: {similar}") as error:
        create_backbone(written, {})
    assert "\n" not in str(error.value)


def test_a_run_reports_the_resolved_name_and_warns_of_random_features(tmp_path: Path) -> None:
    put_colours(tmp_path / "colours", train=2, val=1, test=1)
    said: list[str] = []
    result = finetune(config(tmp_path / "colours", tmp_path / "run", backbone="Test-ResNet", epochs=1), log=said.append)
    assert "--backbone Test-ResNet: using test_resnet" in said
    assert any(line.startswith("warning: --weights none") and "--mode full" in line for line in said)
    assert load_run(result.path).network_config.backbone == "test_resnet"


def test_the_list_of_backbones_matches_the_table_of_every_timm_module() -> None:
    """Compares with the table in docs/networks.md: a module is listed if one of its models can be fine-tuned."""
    table = (Path(__file__).parents[3] / "docs" / "networks.md").read_text(encoding="utf-8").partition("## Every timm module")[2]
    rows = [[cell.strip() for cell in line.split("|")] for line in table.splitlines() if line.startswith("| ")][1:]
    trainable = {row[1] for row in rows if not row[4].endswith("not fine-tuned")}
    assert {row[1] for row in rows} == timm_modules()
    listed = {backbone.family for backbone in list_backbones()} & timm_modules()
    assert listed == trainable
    assert not any("failed" in cell or "**" in cell for row in rows for cell in row)


def family(name: str) -> str:
    return timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1]


def timm_modules() -> set[str]:
    """Return timm's own modules, without those of this project."""
    return {family(name) for name in timm.list_models() if timm.models.model_entrypoint(name).__module__.startswith("timm.")}
