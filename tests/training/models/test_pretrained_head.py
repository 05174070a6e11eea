"""A classifier for another number of classes replaces a network's own, and the other weights stay."""

from __future__ import annotations

import timm
import torch

from tlcli.training.models.pretrained_head import renew_classifier


def test_a_second_classifier_is_replaced_with_the_first() -> None:
    """VOLO also classifies each token."""
    backbone = timm.create_model("volo_d1_224", num_classes=10)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    renew_classifier(backbone, 3)
    after = backbone.state_dict()
    assert after["head.weight"].shape[0] == after["aux_head.weight"].shape[0] == 3
    assert all(torch.equal(value, after[name]) for name, value in before.items() if not name.startswith(("head.", "aux_head.")))
