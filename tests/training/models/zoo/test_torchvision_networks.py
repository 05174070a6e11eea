"""torchvision's networks as backbones: the same logits, weight files and preprocessing as in torchvision."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

from tests.helpers.training import tiny_training, web_server
from tlcli.contract.errors import HubError, SettingsError, WeightsError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.training.engine.optimizer import layered_optimizer
from tlcli.training.fine_tuning import finetune
from tlcli.training.models.list_backbones import Backbone, list_backbones
from tlcli.training.models.network import Network, NetworkConfig, build, create_backbone
from tlcli.training.models.pretrained_preprocessing import resolve_preprocessing
from tlcli.training.models.weights import fingerprint, load_backbone
from tlcli.training.models.zoo.torchvision_networks import BACKBONES
from tlcli.training.runs.load_run import load_run
from tlcli.training.settings.config import FinetuneConfig

SIZE = 96
SMALL = ("alexnet", "googlenet", "mnasnet0_5", "shufflenet_v2_x0_5", "squeezenet1_1")
"""One network of each kind."""
REFUSED = ("squeezenet1_1", "original")


def torchvisions(name: str) -> nn.Module:
    """Build torchvision's network as for its official weights, with random weights, none of them at its default.

    Convolutions preserve the scale of the input, so that the logits depend on it; GoogLeNet's own initialization hardly does.
    """
    torch.manual_seed(0)
    official = {"transform_input": True, "aux_logits": True, "init_weights": True} if name == "googlenet" else {}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **official)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.weight, 1, 0.1)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def loaded(name: str, weights: Path | str, **settings: Any) -> nn.Module:
    return load_backbone(FinetuneConfig(backbone=name, weights=str(weights), **settings))[0].eval()


def network(name: str, head: str, size: int = SIZE) -> Network:
    torch.manual_seed(0)
    return build(NetworkConfig(backbone=name, head=head, num_classes=3, preprocessing=Preprocessing(height=size, width=size)))


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_a_torchvision_file_gives_torchvisions_logits_to_the_bit(name: str, inputs: Tensor, tmp_path: Path) -> None:
    source = torchvisions(name)
    path = tmp_path / "official.pth"
    torch.save(source.state_dict(), path)
    found = loaded(name, path, head="original")
    path.unlink()
    assert found.num_classes == 1000
    expected = source(inputs)
    assert (expected[0] - expected[1]).std() > 0.01 * expected.std() > 0
    assert torch.equal(found(inputs), expected)
    assert torch.equal(found.forward_head(found.forward_features(inputs)), expected)  # type: ignore[operator]
    # Names and values are the file's, except for the auxiliary classifiers.
    kept = {key: value for key, value in source.state_dict().items() if not key.startswith("aux")}
    assert fingerprint(found.state_dict()) == fingerprint(kept)


@torch.no_grad()
def test_features_are_the_last_map_and_pre_logits_the_classifiers_input(inputs: Tensor) -> None:
    for name in BACKBONES:
        backbone: Any = create_backbone(name, {}).eval()
        features = backbone.forward_features(torch.zeros(1, *backbone.default_cfg["input_size"]))
        assert tuple(features.shape[1:]) == (backbone.num_features, *backbone.default_cfg["pool_size"])
        features = backbone.forward_features(inputs)
        embedding = backbone.forward_head(features, pre_logits=True)
        assert embedding.shape == (2, backbone.head_hidden_size)
        if not name.startswith("squeezenet"):
            assert torch.equal(backbone.get_classifier()(embedding), backbone(inputs))
        backbone.reset_classifier(0)
        assert torch.allclose(backbone(inputs), embedding)
        backbone.reset_classifier(4)
        assert backbone(inputs).shape == (2, 4)
        assert backbone.num_classes == 4


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "head"), [(name, head) for name in SMALL for head in ("linear", "mlp:8", "original") if (name, head) != REFUSED]
)
def test_the_three_steps_equal_the_forward_pass(name: str, head: str, inputs: Tensor) -> None:
    built = network(name, head)
    features = built.features(inputs)
    embedding = built.embed(features)
    torch.testing.assert_close(built.classify(embedding), built(inputs))
    assert built(inputs).shape == (2, 3)
    if head == "original":
        torch.testing.assert_close(built(inputs), built.backbone(inputs))
        assert embedding.shape[1] == built.backbone.head_hidden_size
    if head == "linear":
        torch.testing.assert_close(embedding, features.mean((2, 3)))


def test_only_alexnets_own_head_keeps_its_hidden_layers() -> None:
    kept, dropped = network("alexnet", "original"), network("alexnet", "linear")
    assert {name.split(".")[2] for name in kept.state_dict() if "classifier" in name} == {"1", "4", "6"}
    assert not [name for name in dropped.state_dict() if "classifier" in name]
    assert dropped.classifier.weight.shape == (3, 256)  # type: ignore[union-attr]


def test_squeezenets_own_head_is_rejected() -> None:
    """Its classifier is followed by a ReLU and the pooling; no linear layer on an embedding is equivalent."""
    with pytest.raises(
        SettingsError, match=r"squeezenet1_1: its own head does not end with one linear layer.*: fine-tune with --head linear"
    ) as caught:
        network(*REFUSED)
    assert "\n" not in str(caught.value)


def test_alexnet_without_its_hidden_layers_fits_heads_that_do_not_use_them(inputs: Tensor, tmp_path: Path) -> None:
    source = torchvisions("alexnet")
    torch.save({name: tensor for name, tensor in source.state_dict().items() if name.startswith("features.")}, tmp_path / "found.pth")
    found: Any = loaded("alexnet", tmp_path / "found.pth", head="linear")
    assert found.num_classes == 0
    with torch.no_grad():
        assert torch.equal(found.forward_features(inputs), source.features(inputs))  # type: ignore[operator]
    with pytest.raises(WeightsError, match=r"does not fit alexnet: 4 tensors missing \(classifier.1.weight"):
        loaded("alexnet", tmp_path / "found.pth", head="original")


def test_googlenet_trained_without_input_transform(inputs: Tensor, tmp_path: Path) -> None:
    """The file has no auxiliary classifiers and no batch counters of batch norms, like the official one."""
    source: Any = torchvisions("googlenet")
    source.transform_input = False
    state = {key: value for key, value in source.state_dict().items() if not key.startswith("aux") and "num_batches" not in key}
    torch.save(state, tmp_path / "found.pth")
    with torch.no_grad():
        plain = loaded("googlenet", tmp_path / "found.pth", model_kwargs={"transform_input": False})
        assert torch.equal(plain(inputs), source(inputs))
        assert not torch.allclose(loaded("googlenet", tmp_path / "found.pth")(inputs), source(inputs))


def test_the_error_for_a_mismatched_file_lists_its_tensors(tmp_path: Path) -> None:
    torch.save(torchvisions("squeezenet1_0").state_dict(), tmp_path / "found.pth")
    with pytest.raises(WeightsError, match=r"found.pth does not fit squeezenet1_1: .*features.0.weight: expected \[64, 3, 3, 3\], got"):
        loaded("squeezenet1_1", tmp_path / "found.pth")


@pytest.mark.parametrize("name", BACKBONES)
def test_preprocessing_is_torchvisions(name: str) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transform = weights.transforms()
    config = FinetuneConfig(backbone=name, weights="none")
    preprocessing = resolve_preprocessing(config, create_backbone(name, {}))
    assert (preprocessing.mean, preprocessing.std) == (tuple(transform.mean), tuple(transform.std))
    assert [preprocessing.height, preprocessing.width] == 2 * transform.crop_size
    assert preprocessing.interpolation == transform.interpolation.value
    rng = np.random.default_rng(0)
    for width, height in ((411, 300), (97, 260), (232, 256)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        pixels = torch.from_numpy(preprocessing.apply(image)).permute(2, 0, 1)[None] / 255
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        torch.testing.assert_close((pixels - mean) / std, transform(image)[None], rtol=1e-5, atol=1e-5)


def test_networks_are_listed_with_their_weights() -> None:
    assert list_backbones("alexnet") == [Backbone("alexnet", "torchvision_networks", ("tv_in1k",))]
    assert BACKBONES.keys() == {backbone.name for backbone in list_backbones() if backbone.family == "torchvision_networks"}
    for name in BACKBONES:
        entry = timm.get_pretrained_cfg(f"{name}.tv_in1k")
        assert entry.url == torchvision.models.get_model_weights(name).DEFAULT.url
        assert timm.get_pretrained_cfg(name) == entry
    with pytest.raises(SettingsError, match=r"alexnet has no weights with that tag; available: alexnet.tv_in1k"):
        create_backbone("alexnet.nope", {})
    with pytest.raises(SettingsError, match=r"googlenet does not accept these model arguments \(nonsense\)"):
        create_backbone("googlenet", {"nonsense": 1})


def published_at(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Callable[[str], None]:
    """Return a function that redirects official weights to an address; use `cache` as torch.hub's cache."""
    monkeypatch.setenv("TORCH_HOME", str(cache))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    official = timm.get_pretrained_cfg

    def point_to(address: str) -> None:
        monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: replace(official(name), url=address))

    return point_to


@torch.no_grad()
@pytest.mark.parametrize("name", ["googlenet", "shufflenet_v2_x0_5.tv_in1k"])
def test_official_weights_are_downloaded_once_to_torch_hubs_cache(
    name: str, monkeypatch: pytest.MonkeyPatch, inputs: Tensor, tmp_path: Path
) -> None:
    source = torchvisions(name.split(".")[0])
    (tmp_path / "published").mkdir()
    torch.save(source.state_dict(), tmp_path / "published" / "official-0123.pth")
    point_to = published_at(monkeypatch, tmp_path / "cache")
    with web_server.serving(tmp_path / "published") as server:
        point_to(server.address + "official-0123.pth")
        assert torch.equal(loaded(name, "pretrained")(inputs), source(inputs))
        assert server.asked == ["/official-0123.pth"]
    assert (tmp_path / "cache" / "hub" / "checkpoints" / "official-0123.pth").is_file()
    assert torch.equal(loaded(name, "pretrained")(inputs), source(inputs))  # the server is gone: read from the cache


def test_an_unreachable_address_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    point_to = published_at(monkeypatch, tmp_path / "cache")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/official.pth"
        point_to(address)
        with pytest.raises(
            HubError, match=rf"the hub cannot be reached \(.*\); official.pth is not in .*download {address} .*--weights FILE"
        ) as caught:
            loaded("squeezenet1_1", "pretrained")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SMALL)
def test_rates_rise_layer_by_layer_from_the_stem(name: str) -> None:
    """Each of these networks defines its layers from the stem to the classifier, so its parameters are in that order."""
    built = network(name, "linear")
    optimizer = layered_optimizer(built, 1.0, 0.0, 0.8)
    rate_of = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    rates = [rate_of[id(parameter)] for parameter in built.parameters()]
    assert rates == sorted(rates)
    assert len(set(rates)) >= 6
    assert (rates[0], rates[-1]) == (min(rates), 1.0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("alexnet", {"head": "linear"}),
        ("googlenet", {"head": "original", "mode": "full", "epochs": 1}),
        ("mnasnet0_5", {"head": "linear", "mode": "full", "epochs": 1}),
        ("squeezenet1_1", {"head": "linear"}),
    ],
)
def test_a_run_is_loaded_again(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    dataset = tiny_training.put_colours(tmp_path / "images", train=4, val=2, test=2)
    size = 64
    result = finetune(tiny_training.config(dataset, tmp_path / "run", backbone=name, image_size=size, **settings))
    tiny_training.check_it_is_read_back(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "googlenet", "shufflenet_v2_x0_5"])
def test_the_original_head_is_exported(name: str, tmp_path: Path) -> None:
    """The export compares logits and maps of the file with PyTorch's."""
    from tlcli.exports import export_backbone

    path = tmp_path / "official.pth"
    torch.save(torchvisions(name).state_dict(), path)
    config = FinetuneConfig(backbone=name, weights=str(path), image_size=SIZE)
    exported = export_backbone(config, name="model", repository=tmp_path, check_images=2)
    path.unlink()
    exported.path.unlink()
    assert exported.parity.top1_agreement == 1
    assert ("cam" in exported.parity.maps) == (name != "alexnet")  # CAM needs a head without hidden layers


def test_a_run_is_exported(tmp_path: Path) -> None:
    from tlcli.exports import export_run

    dataset = tiny_training.put_colours(tmp_path / "images", train=4, val=2, test=0)
    result = finetune(tiny_training.config(dataset, tmp_path / "run", backbone="squeezenet1_1", image_size=SIZE))
    exported = export_run(load_run(result.path), name="model", repository=tmp_path, check_images=2)
    assert {"cam", "gradcam"} <= exported.parity.maps.keys()
