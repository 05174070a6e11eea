"""Maps of the exported file equal those that pytorch-grad-cam computes of the network in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.exports.pytorch_grad_cam import like_pytorch_grad_cam, pytorch_grad_cam_maps
from tests.helpers.exports.small_networks import Case, Exports, blobs
from tlcli.contract.model.explain import explain

CLASS_IDS = np.array([[0, 3], [4, 1]])
IMAGES = blobs(2)

SAME = ("gradcam", "xgradcam", "hirescam", "gradcam_elementwise", "layercam", "fem", "eigencam", "eigengradcam")
"""Grad-CAM++, Ablation-CAM and Score-CAM have the same formula under conditions only."""


def agree(case: Case, layer: str, method: str, class_ids: np.ndarray, softmax: bool = False) -> None:
    """Compare maps. Theirs are float32 in [0, 1]; they differ by more than rounding only where a ReLU's input is almost zero."""
    assert [one.name for one in case.model.description.layers] == [layer]
    ours = explain(case.model, IMAGES[: len(class_ids)], class_ids, [method], softmax=softmax).maps[method]
    theirs = pytorch_grad_cam_maps(method, case.network, layer, IMAGES[: len(class_ids)], class_ids, softmax)
    signs = (1, -1) if method.startswith("eigen") else (1,)
    candidates = np.stack([like_pytorch_grad_cam(sign * ours, 64, 96) for sign in signs])
    assert candidates.shape[1:] == theirs.shape == (*class_ids.shape, 64, 96)
    assert (theirs.max((-2, -1)) > 0.99).mean() >= 0.5  # a map that is rectified away shows little
    difference = np.abs(candidates - theirs).max((-2, -1)).min(0)
    assert difference.max() < 2e-3, difference


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("method", SAME)
def test_a_layer_in_the_middle(method: str, softmax: bool, exported: Exports) -> None:
    agree(exported("test_resnet", "mlp:16", "layer2"), "layer2", method, CLASS_IDS, softmax)


@pytest.mark.parametrize("method", [method for method in SAME if method != "fem"])
def test_the_last_layer(method: str, exported: Exports) -> None:
    """FEM is left out: it needs positions two sigma above the mean, which six positions hardly have."""
    agree(exported("resnet18", "mlp:256"), "layer4", method, CLASS_IDS)


def test_grad_cam_plus_plus_where_its_epsilon_is_small(exported: Exports) -> None:
    """It adds 1e-6 to a denominator of squared gradients: a last layer of large weights makes these large."""
    agree(
        exported("test_resnet", "mlp:16", "layer2", methods=("gradcam_plus_plus",), spread=300.0), "layer2", "gradcam_plus_plus", CLASS_IDS
    )


def test_ablation_cam_where_the_score_is_positive(exported: Exports) -> None:
    """It divides by y, not by |y|; and the layer has to be a rectified one."""
    case = exported("test_resnet", "mlp:16", "layer2")
    answer = case.model.run(IMAGES)
    assert (answer.logits.max(1) > 0).all()
    agree(case, "layer2", "ablationcam", answer.logits.argmax(1)[:, None])
