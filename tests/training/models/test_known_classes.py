"""A network for other classes computes the same logits of the classes that it knows, whatever its head."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.training.tiny_training import BACKBONE
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.models.known_classes import with_classes
from tlcli.training.models.network import NetworkConfig, build


@pytest.mark.parametrize(
    ("backbone", "head", "size"),
    [
        (BACKBONE, "linear", 32),
        (BACKBONE, "mlp:8", 32),
        (BACKBONE, "original", 32),
        ("test_vit", "linear", 160),
        ("dla46_c", "linear", 64),
        ("simple_cnn", "linear", 32),
    ],
)
def test_the_logits_of_known_classes_do_not_change(backbone: str, head: str, size: int) -> None:
    torch.manual_seed(0)
    network = build(NetworkConfig(backbone=backbone, head=head, num_classes=3, preprocessing=Preprocessing(height=size, width=size)))
    with torch.no_grad():
        for parameter in network.last_layer.parameters():
            parameter.normal_()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    changed = with_classes(network, ("a", "b", "c"), ("x", "c", "y", "a"))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        before, after = network(images), changed(images)
    assert after.shape == (2, 4)
    torch.testing.assert_close(after[:, [3, 1]], before[:, [0, 2]], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())
    assert all(parameter.requires_grad for parameter in changed.parameters())
