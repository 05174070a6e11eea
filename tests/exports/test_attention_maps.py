"""Attention rollout and LeGrad of exported files equal those of the float64 reference; only networks with the right attention have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.exports.test_exporter import operators
from tests.helpers.exports.reference import Reference, relative_difference
from tests.helpers.exports.small_networks import blobs, make, write_case
from tlcli.contract.errors import ExportError
from tlcli.contract.maps.method_names import OF_ATTENTION
from tlcli.exports import parity
from tlcli.exports.trace.attention import find_attention
from tlcli.exports.trace.explainer import Explainer
from tlcli.exports.trace.map_methods import AttentionInputs, CamInputs, legrad, rollout
from tlcli.training.models.network import Network
from tlcli.training.models.target_layers import resolve_layers

SIZE = (64, 96)
TARGETS = np.array([[0, -1], [3, -2]])
POSITIONS = tuple(range(1, 25))


def plain(backbone: str, head: str = "original") -> Network:
    """Return a network as the exporter prepares it, with plain attention and residual branches that count."""
    network = make(backbone, head, size=SIZE, depth=3)
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    for name, parameter in network.named_parameters():
        if "gamma" in name:
            parameter.data.fill_(0.5)
        if "qkv.weight" in name:
            parameter.data.mul_(4)  # random weights attend to everything alike
    return network.requires_grad_(False)


@pytest.mark.parametrize(
    ("backbone", "head", "layer", "prefix", "rows"),
    [
        ("test_vit", "original", "blocks.2.norm1", 1, (0,)),
        ("test_vit", "original", "blocks.1", 1, (0,)),
        ("test_vit2", "linear", "norm", 1, POSITIONS),
    ],
)
def test_maps_equal_the_reference(backbone: str, head: str, layer: str, prefix: int, rows: tuple[int, ...], tmp_path: Path) -> None:
    network = plain(backbone, head)
    found = find_attention(network, resolve_layers(network, [layer]))
    assert found is not None
    assert found.rows == rows
    case = write_case(network, tmp_path / "model.onnx", methods=["gradcam", *OF_ATTENTION], layers=[layer])
    images = blobs(2, *SIZE)
    reference = Reference(network, layer, (prefix, 4, 6))
    for softmax, tolerance in ((False, 1e-4), (True, 5e-4)):
        answer = case.model.run(images, TARGETS, ["gradcam", *OF_ATTENTION], softmax=softmax)
        assert answer.classes is not None
        for method in ("gradcam", *OF_ATTENTION):
            expected = reference.maps(method, images, answer.classes, softmax)
            assert expected.std() > 0
            assert relative_difference(answer.maps[method], expected) < tolerance, (method, softmax)
    np.testing.assert_array_equal(answer.maps["rollout"][:, 0], answer.maps["rollout"][:, 1])
    measured = parity.measure(network, case.model, list(images), "blobs")
    assert max(measured.maps.values()) < parity.MAPS_TOLERANCE


def test_they_cost_nothing_unless_selected(tmp_path: Path) -> None:
    network = plain("test_vit")
    model, without = (
        write_case(network, tmp_path / str(len(methods)) / "model.onnx", methods=methods).model
        for methods in (["gradcam", *OF_ATTENTION], ["gradcam"])
    )
    for wanted in ((), ("gradcam",)):
        more, fewer = operators(model, wanted, tmp_path), operators(without, wanted, tmp_path)
        for kind in ("MatMul", "Gemm", "Softmax", "ReduceMean", "ReduceSum", "Mul", "Add", "Relu", "Conv"):
            assert more[kind] == fewer[kind], (wanted, kind)
    assert operators(model, ["rollout"], tmp_path)["MatMul"] == operators(model, (), tmp_path)["MatMul"] + 3, "one product a block"


@pytest.mark.parametrize(
    ("backbone", "head"), [("test_resnet", "linear"), ("test_convnext", "linear"), ("swin_tiny_patch4_window7_224", "linear")]
)
def test_other_networks_have_no_such_maps(backbone: str, head: str) -> None:
    size = (224, 224) if "swin" in backbone else (64, 64)
    kwargs = {"embed_dim": 24} if "swin" in backbone else {}
    network = make(backbone, head, size=size, **kwargs).requires_grad_(False)
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    assert find_attention(network, resolve_layers(network, None)) is None
    with pytest.raises(ExportError, match=r"rollout needs a vision transformer .* is not, at .*: choose from .*gradcam"):
        Explainer(network, ["rollout"])


def test_fused_attention_shows_no_weights() -> None:
    network = make("test_vit", "original", size=SIZE).requires_grad_(False)
    assert find_attention(network, resolve_layers(network, None)) is None


def test_the_formulas_by_hand() -> None:
    """Two blocks of one head and three tokens, the first of which has no position."""
    first = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
    second = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    gradient = torch.tensor([[1.0, -2, 3], [0, 4, -6], [0, 2, 3]])
    attention = AttentionInputs(
        (first[None, None], second[None, None]), (gradient[None, None, None], -gradient[None, None, None]), (0,), 1, 1, 2
    )
    ones = torch.ones(1, 1, 1, 2)
    inputs = CamInputs(ones, ones[:, None], ones[..., 0], None, torch.ones(1, 1), attention=attention)
    # the first row of (second + 1) / 2 is (1/2, 0, 1/2), and times (first + 1) / 2 it is (1/4 + 1/4, 1/4, 1/4)
    assert rollout(inputs).tolist() == [[[[0.25, 0.25]]]]
    # column sums of the positive parts are 6 and 6, of the negative ones 2 and 6: over three rows and two blocks
    torch.testing.assert_close(legrad(inputs), torch.tensor([[[[8 / 6, 12 / 6]]]]))
    with pytest.raises(ValueError, match="needs attention"):
        legrad(CamInputs(ones, ones[:, None], ones[..., 0], None, torch.ones(1, 1)))
