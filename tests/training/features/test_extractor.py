"""Feature extraction gives the same features with both engines."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.features import extractor
from tlcli.training.models.network import Network, NetworkConfig, build

IMAGES = torch.randint(0, 256, (5, 32, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def network(backbone: str = "test_resnet", head: str = "linear") -> Network:
    torch.manual_seed(0)
    config = NetworkConfig(backbone=backbone, head=head, num_classes=3, preprocessing=Preprocessing(height=32, width=40))
    return build(config)


class Sessions:
    """Counter of the ONNX Runtime sessions opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        plain = onnxruntime.InferenceSession

        def session(*args: object, **kwargs: object) -> object:
            self.made += 1
            return plain(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(onnxruntime, "InferenceSession", session)


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    return Sessions(monkeypatch)


@pytest.mark.parametrize(("backbone", "head"), [("test_resnet", "linear"), ("test_efficientnet", "mlp:4"), ("cifar_resnet20", "original")])
def test_onnx_runtime_computes_what_pytorch_does(sessions: Sessions, backbone: str, head: str) -> None:
    net = network(backbone, head)
    run = extractor.build_extractor(net, extractor.MIN_IMAGES_FOR_ONNX)
    assert sessions.made == 1
    with torch.inference_mode():
        expected = net.embed(net.features(net.normalise(IMAGES))).numpy()
    for count in (1, 2, 5):
        np.testing.assert_allclose(run(IMAGES[:count]), expected[:count], atol=1e-5 * np.abs(expected).max())


def test_pytorch_runs_a_small_number_of_images(sessions: Sessions) -> None:
    net = network()
    run = extractor.build_extractor(net, extractor.MIN_IMAGES_FOR_ONNX - 1)
    assert sessions.made == 0
    with torch.inference_mode():
        assert (run(IMAGES) == net.embed(net.features(net.normalise(IMAGES))).numpy()).all()


def test_pytorch_is_used_if_onnx_runtime_disagrees(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracer records a single path through a network, and an operator may be translated wrongly."""
    net = network()
    right = extractor._graph

    def wrong(module: torch.nn.Module) -> bytes:
        with torch.no_grad():
            weight = next(net.parameters())
            weight.add_(0.01)
            graph = right(module)  # type: ignore[arg-type]
            weight.sub_(0.01)
        return graph

    monkeypatch.setattr(extractor, "_graph", wrong)
    run = extractor.build_extractor(net, extractor.MIN_IMAGES_FOR_ONNX)
    with torch.inference_mode():
        assert (run(IMAGES) == net.embed(net.features(net.normalise(IMAGES))).numpy()).all()


def test_pytorch_is_used_if_the_network_cannot_be_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    plain = net.embed

    def embed(features: torch.Tensor) -> torch.Tensor:
        return plain(features) + torch.special.i0e(features).mean((-2, -1)) * 0  # an operator that ONNX does not have

    monkeypatch.setattr(net, "embed", embed)
    run = extractor.build_extractor(net, extractor.MIN_IMAGES_FOR_ONNX)
    with torch.inference_mode():
        assert (run(IMAGES) == net.embed(net.features(net.normalise(IMAGES))).numpy()).all()


def test_the_network_is_unchanged() -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trainable = [parameter.requires_grad for parameter in net.parameters()]
    extractor.build_extractor(net, extractor.MIN_IMAGES_FOR_ONNX)(IMAGES)
    assert all((tensor == before[name]).all() for name, tensor in net.state_dict().items())
    assert [parameter.requires_grad for parameter in net.parameters()] == trainable
    assert not net.training
