"""Weight files: layouts, wrappers, mismatches, files that would execute code, and an unreachable hub."""

from __future__ import annotations

import argparse
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from tlcli.contract.errors import HubError, NotFoundError, SettingsError, WeightsError
from tlcli.training.models.weight_file import read_tensors
from tlcli.training.models.weights import fingerprint, load_backbone
from tlcli.training.runtime.progress import Advance
from tlcli.training.settings.config import FinetuneConfig

State = dict[str, Tensor]


def loaded(backbone: str, weights: Path | str, **settings: Any) -> nn.Module:
    return load_backbone(FinetuneConfig(backbone=backbone, weights=str(weights), **settings))[0].eval()


def randomised(module: nn.Module) -> nn.Module:
    """Randomize all tensors, including batch norm statistics, so that no default value can pass by accident."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith(("running_mean", "bias")) or ("bn" in name and name.endswith("weight")):
            tensor.normal_(0.5, 0.1, generator=generator)
    return module.eval()


@pytest.fixture(scope="module")
def inputs() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(0)
    return randomised(timm.create_model("test_resnet", num_classes=7))


@pytest.fixture(scope="module")
def vgg() -> nn.Module:
    torch.manual_seed(0)
    return randomised(torchvision.models.vgg16(num_classes=5))


def assert_same_logits(source: nn.Module, other: nn.Module, inputs: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(other(inputs), source(inputs), rtol=1e-4, atol=1e-5)


def test_torchvisions_resnet_gives_the_same_logits(tmp_path: Path, inputs: Tensor) -> None:
    resnet = randomised(torchvision.models.resnet18())
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    assert_same_logits(resnet, loaded("resnet18", tmp_path / "resnet18.pth"), inputs)


def test_timms_resnet_gives_the_same_logits(tmp_path: Path, inputs: Tensor) -> None:
    resnet = randomised(timm.create_model("resnet18", num_classes=11))
    safetensors.torch.save_file(resnet.state_dict(), tmp_path / "resnet18.safetensors")
    assert_same_logits(resnet, loaded("resnet18", tmp_path / "resnet18.safetensors"), inputs)


def test_torchvisions_vgg_gives_the_same_logits_and_timms_layout(vgg: nn.Module, tmp_path: Path, inputs: Tensor) -> None:
    torch.save(vgg.state_dict(), tmp_path / "vgg16.pth")
    found = loaded("vgg16", tmp_path / "vgg16.pth", head="original")
    assert_same_logits(vgg, found, inputs)
    (tmp_path / "vgg16.pth").unlink()
    torch.save(found.state_dict(), tmp_path / "timm.pth")  # the same weights in timm's layout
    assert_same_logits(vgg, loaded("vgg16", tmp_path / "timm.pth", head="original"), inputs)
    (tmp_path / "timm.pth").unlink()


def test_vgg_without_its_hidden_layers_fits_heads_that_do_not_use_them(vgg: nn.Module, tmp_path: Path, inputs: Tensor) -> None:
    features = {name: tensor for name, tensor in vgg.state_dict().items() if name.startswith("features.")}
    path = tmp_path / "features.pth"
    torch.save(features, path)
    config = FinetuneConfig(backbone="vgg16", weights=str(path), head="linear")
    backbone, print_of_seed_0 = load_backbone(config)
    with torch.no_grad():
        torch.testing.assert_close(backbone.forward_features(inputs), vgg.features(inputs))  # type: ignore[operator]
    # Tensors missing in the file are random, and not part of the fingerprint.
    assert print_of_seed_0 == fingerprint({name: tensor for name, tensor in backbone.state_dict().items() if name in features})
    with pytest.raises(WeightsError, match=r"does not fit vgg16: 4 tensors missing \(pre_logits.fc1.weight"):
        loaded("vgg16", path, head="original")


WRAPPED: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "data parallel": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "best_prec1": 91.8},
    "compiled, data parallel": lambda state: {"model": {f"_orig_mod.module.{name}": value for name, value in state.items()}, "epoch": 3},
    "averaged weights first": lambda state: {
        "state_dict": {name: torch.zeros_like(value) for name, value in state.items()},
        "state_dict_ema": state,
        "args": argparse.Namespace(lr=0.1),
        "metric": np.float64(0.5),
    },
    "nested twice": lambda state: {"model": {"state_dict": state, "step": torch.tensor(3)}},
    "model_state": lambda state: {"model_state": state, "optimizer_state": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "a framework's": lambda state: {"state_dict": {f"model.{name}": value for name, value in state.items()}},
    "net": lambda state: {"net": state, "acc": 91.2, "epoch": 3},
    "module": lambda state: {"module": state},
    "params": lambda state: {"params": state},
    "weights": lambda state: {"weights": state},
    "student": lambda state: {"student": {f"module.{name}": value for name, value in state.items()}},
    "torchvision's EMA": lambda state: {
        "model": {name: torch.zeros_like(value) for name, value in state.items()},
        "model_ema": {"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in state.items()}},
    },
    "net.": lambda state: {"state_dict": {f"net.{name}": value for name, value in state.items()}},
    "network.": lambda state: {f"network.{name}": value for name, value in state.items()},
    "encoder. in model.": lambda state: {"state_dict": {f"model.encoder.{name}": value for name, value in state.items()}},
    "a loss beside it": lambda state: {
        "state_dict": {
            **{f"model.{name}": value for name, value in state.items()},
            "criterion.weight": torch.ones(3),
            "train_acc.n": torch.ones(1),
        }
    },
    "a loss beside it, no prefix": lambda state: {**state, "loss_fn.weight": torch.ones(3)},
    "NumPy scalars and arrays": lambda state: {
        "state_dict": state,
        "best": np.bool_(True),
        "epoch": np.int32(3),
        "lr": np.float16(0.1),
        "mean": np.zeros(3),
        "name": np.str_("x"),
    },
    "a head of dropout and a linear layer": lambda state: {name.replace("fc.", "fc.1."): value for name, value in state.items()},
    "half precision": lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapping", WRAPPED)
def test_wrapped_checkpoints_are_read(wrapping: str, legacy: bool, source: nn.Module, inputs: Tensor, tmp_path: Path) -> None:
    torch.save(WRAPPED[wrapping](source.state_dict()), tmp_path / "found.pth", _use_new_zipfile_serialization=not legacy)
    found = loaded("test_resnet", tmp_path / "found.pth")
    expected = timm.create_model("test_resnet", num_classes=7).eval()
    expected.load_state_dict(source.state_dict())
    if wrapping == "half precision":
        expected.load_state_dict(source.half().state_dict())
        source.float()
    assert_same_logits(expected, found, inputs)


@pytest.mark.parametrize(
    ("torchvisions", "timms", "epsilon"),
    [("mobilenet_v2", "mobilenetv2_100", None), ("efficientnet_b0", "efficientnet_b0", None),
     ("mobilenet_v3_small", "mobilenetv3_small_100", 0.001), ("mobilenet_v3_large", "mobilenetv3_large_100", 0.001)],
)  # fmt: skip
def test_torchvisions_mobilenets_and_efficientnets_give_the_same_logits(
    torchvisions: str, timms: str, epsilon: float | None, tmp_path: Path, inputs: Tensor
) -> None:
    torch.manual_seed(0)
    network = randomised(torchvision.models.get_model(torchvisions, num_classes=7))
    torch.save(network.state_dict(), tmp_path / "tv.pth")
    kwargs = {} if epsilon is None else {"bn_eps": epsilon}
    assert_same_logits(network, loaded(timms, tmp_path / "tv.pth", model_kwargs=kwargs), inputs)
    if epsilon is not None:
        with pytest.raises(WeightsError, match=rf"whose batch norms have epsilon 0.001,.*add --model-kwargs bn_eps={epsilon}"):
            loaded(timms, tmp_path / "tv.pth")


def test_a_submodule_named_like_a_wrapper_is_kept(tmp_path: Path) -> None:
    """VOLO's blocks, more than half of its tensors, are in `network.`."""
    torch.manual_seed(0)
    volo = timm.create_model("volo_d1_224", num_classes=3)
    assert sum(name.startswith("network.") for name in volo.state_dict()) > len(volo.state_dict()) / 2
    torch.save(volo.state_dict(), tmp_path / "own.pth")
    assert fingerprint(loaded("volo_d1_224", tmp_path / "own.pth").state_dict()) == fingerprint(volo.state_dict())


def test_a_backbone_without_classifier_fits(source: nn.Module, tmp_path: Path, inputs: Tensor) -> None:
    state = {f"backbone.{name}": value for name, value in source.state_dict().items() if not name.startswith("fc.")}
    torch.save({"state_dict": {**state, "head.cls.weight": torch.zeros(3, 2)}}, tmp_path / "found.pth")
    found = loaded("test_resnet", tmp_path / "found.pth")
    assert found.num_classes == 0
    with torch.no_grad():
        torch.testing.assert_close(found.forward_features(inputs), source.forward_features(inputs))  # type: ignore[operator]


def test_the_fingerprint_depends_on_the_weights_not_on_the_file(source: nn.Module, tmp_path: Path) -> None:
    state = source.state_dict()
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "a.pth")
    safetensors.torch.save_file(state, tmp_path / "b.safetensors")
    changed = {name: value.clone() for name, value in state.items()}
    changed["conv1.0.weight"].view(-1)[5] += 1e-6
    torch.save(changed, tmp_path / "c.pth")
    prints = [
        load_backbone(FinetuneConfig(backbone="test_resnet", weights=str(tmp_path / name)))[1]
        for name in ("a.pth", "b.safetensors", "c.pth")
    ]
    assert prints[0] == prints[1] != prints[2]


def test_random_weights_depend_on_the_seed_and_leave_the_global_generator_alone() -> None:
    def drawn(seed: int) -> str:
        return load_backbone(FinetuneConfig(backbone="test_resnet", weights="none", seed=seed))[1]

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert drawn(0) == drawn(0) != drawn(1)
    assert torch.rand(1) == expected


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name not in names}


MISFITS: dict[str, tuple[Callable[[State], State], str]] = {
    "missing": (without("bn1.weight"), r"1 tensors missing \(bn1.weight\)"),
    # timm itself ignores missing tensors once the number of classes differs
    "missing, without classifier": (
        without("fc.weight", "fc.bias", "bn1.weight", "bn1.bias"),
        r"2 tensors missing \(bn1.weight; bn1.bias\)",
    ),
    "unexpected": (lambda state: {**state, "extra.weight": torch.zeros(2)}, r"1 tensors unexpected \(extra.weight\)"),
    "another shape": (
        lambda state: {**state, "bn1.bias": torch.zeros(3), "conv1.0.weight": torch.zeros(4, 1, 3, 3)},
        r"2 tensors with another shape \(conv1.0.weight: expected \[16, 3, 3, 3\], got \[4, 1, 3, 3\]; bn1.bias: expected \[32\], got",
    ),
    "all tensors": (
        lambda state: {f"blocks.{n}.weight": torch.zeros(2) for n in range(9)},
        r"9 tensors unexpected \(blocks.0.weight; .*and 6 more\)",
    ),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_the_error_for_a_mismatched_file_lists_its_tensors(kind: str, source: nn.Module, tmp_path: Path) -> None:
    change, message = MISFITS[kind]
    torch.save(change(source.state_dict()), tmp_path / "found.pth")
    with pytest.raises(
        WeightsError, match=rf"found.pth does not fit test_resnet: .*{message}.*: use the backbone that the file was made for"
    ) as caught:
        loaded("test_resnet", tmp_path / "found.pth")
    assert "\n" not in str(caught.value)


def test_a_real_checkpoint_of_another_network_is_rejected(shared_data: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        loaded("resnet18", shared_data / "weights" / "cifar10_resnet20-12fca82f.th")
    message = str(caught.value)
    assert "conv1.weight: expected [64, 3, 7, 7], got [16, 3, 3, 3]" in message
    assert "tensors missing (layer2.0.downsample.0.weight" in message
    assert "tensors unexpected (linear.weight" in message
    assert len(message) < 700


def test_the_shared_mobilenet_fits(shared_data: Path) -> None:
    path = shared_data / "weights" / "mobilenetv2_100.imagenet.safetensors"
    assert loaded("mobilenetv2_100", path, model_kwargs={"pad_type": "same"}).num_classes == 0


class Malicious:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sentinel),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_checkpoint_is_rejected_and_not_executed(legacy: bool, source: nn.Module, tmp_path: Path) -> None:
    sentinel = tmp_path / "it ran"
    content = {"state_dict": source.state_dict(), "trap": Malicious(sentinel)}
    torch.save(content, tmp_path / "trap.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        WeightsError, match=r"trap.pth: loading it would execute \w+.mkdir, which is not allowed: save only the tensors"
    ) as caught:
        loaded("test_resnet", tmp_path / "trap.pth")
    assert not sentinel.exists()
    assert "\n" not in str(caught.value)


def test_a_pickled_network_is_rejected_by_name(source: nn.Module, tmp_path: Path) -> None:
    torch.save(source, tmp_path / "whole.pth")
    with pytest.raises(WeightsError, match=r"would execute timm.models.resnet.ResNet"):
        loaded("test_resnet", tmp_path / "whole.pth")


def cut_short(path: Path, state: State, legacy: bool) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED: dict[str, tuple[Callable[[Path, State], object], str]] = {
    "empty": (lambda path, state: path.write_bytes(b""), "neither a safetensors file nor one written by torch.save"),
    "text": (lambda path, state: path.write_text("<html>Not found</html>"), "neither a safetensors file"),
    "cut short": (lambda path, state: cut_short(path, state, legacy=False), "cannot be read: it is damaged"),
    "cut short, legacy": (lambda path, state: cut_short(path, state, legacy=True), "cannot be read: it is damaged"),
    "safetensors cut short": (
        lambda path, state: path.write_bytes(safetensors.torch.save(state)[:5000]),
        "damaged, or not a safetensors file",
    ),
    "no tensors": (lambda path, state: torch.save({"epoch": 3}, path), r"holds no named tensors \(a mapping of epoch\)"),
    "a list": (lambda path, state: torch.save([torch.ones(2)], path), r"holds no named tensors \(a list\)"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_reported_in_one_line(kind: str, source: nn.Module, tmp_path: Path) -> None:
    damage, message = DAMAGED[kind]
    damage(tmp_path / "found.pth", source.state_dict())
    with pytest.raises(WeightsError, match=message) as caught:
        read_tensors(tmp_path / "found.pth")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_reported() -> None:
    with pytest.raises(NotFoundError, match=r"nowhere.pth: no such file: --weights expects a checkpoint file, `pretrained` or `none`"):
        loaded("test_resnet", "nowhere.pth")


def test_a_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="is a folder: --weights expects a checkpoint file"):
        loaded("test_resnet", str(tmp_path))
    (tmp_path / "checkpoint.safetensors").touch()
    with pytest.raises(NotFoundError, match=r"is a run folder: use --weights .*/checkpoint\.safetensors$"):
        loaded("test_resnet", str(tmp_path))


def test_a_backbone_without_official_weights() -> None:
    with pytest.raises(WeightsError, match="botnet50ts_256 has no official weights: use --weights FILE"):
        loaded("botnet50ts_256", "pretrained")
    with pytest.raises(SettingsError, match=r"resnet18 has no weights with that tag; available: resnet18.a1_in1k"):
        loaded("resnet18.nope", "pretrained")


REPOSITORY = "timm/test_resnet.r160_in1k"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def point_hub_to(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def assert_names_the_alternatives(error: HubError) -> None:
    message = str(error)
    assert f"model.safetensors of {REPOSITORY}" in message
    assert f"not in the cache {huggingface_hub.constants.HF_HUB_CACHE}" in message
    assert "download http://127.0.0.1:" in message
    assert "--weights FILE" in message
    assert "--weights none" in message
    assert "\n" not in message


def test_an_unreachable_hub_is_reported_at_once(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        point_hub_to(closed.getsockname()[1], monkeypatch)
        with pytest.raises(HubError, match="the hub cannot be reached") as caught:
            loaded("test_resnet", "pretrained")
    assert_names_the_alternatives(caught.value)


@pytest.mark.slow
def test_a_hub_that_never_responds_times_out_within_15_seconds(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:  # accepts connections and never responds
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        point_hub_to(silent.getsockname()[1], monkeypatch)
        began = time.monotonic()
        with pytest.raises(HubError) as caught:
            loaded("test_resnet", "pretrained")
        assert time.monotonic() - began < 15
    assert_names_the_alternatives(caught.value)


class FakeHub(BaseHTTPRequestHandler):
    """Handler that responds as the hub does, with the files in `content`."""

    content: ClassVar[dict[str, bytes]] = {}

    def _respond(self, body: bool) -> None:
        content = self.content.get(self.path.rsplit("/", 1)[-1])
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"0000"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content:
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self._respond(body=False)

    def do_GET(self) -> None:
        self._respond(body=True)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, **content: bytes) -> Iterator[None]:
    monkeypatch.setattr(FakeHub, "content", {name.replace("__", "."): value for name, value in content.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    point_hub_to(server.server_port, monkeypatch)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def official(classes: int = 1000) -> nn.Module:
    torch.manual_seed(3)
    return randomised(timm.create_model("test_resnet", num_classes=classes))


def test_official_weights_are_downloaded_once_to_the_hubs_cache(hub_cache: Path, monkeypatch: pytest.MonkeyPatch, inputs: Tensor) -> None:
    published, reported = official(), []

    @contextmanager
    def progress(description: str, total: int) -> Iterator[Advance]:
        reported.append((description, total))
        yield lambda count: reported.append(("advance", count))

    content = safetensors.torch.save(published.state_dict())
    with fake_hub(monkeypatch, model__safetensors=content):
        config = FinetuneConfig(backbone="test_resnet", weights="pretrained")
        assert_same_logits(published, load_backbone(config, progress)[0].eval(), inputs)
    assert reported[0] == ("Downloading model.safetensors", len(content))
    assert sum(count for description, count in reported if description == "advance") == len(content)
    assert_same_logits(published, loaded("test_resnet", "pretrained"), inputs)  # the hub is gone: read from the cache


def test_the_older_file_name_is_accepted(hub_cache: Path, monkeypatch: pytest.MonkeyPatch, inputs: Tensor, tmp_path: Path) -> None:
    with fake_hub(monkeypatch), pytest.raises(HubError, match=rf"neither model.safetensors nor pytorch_model.bin in {REPOSITORY}"):
        loaded("test_resnet", "pretrained")
    published = official()
    torch.save(published.state_dict(), tmp_path / "published.bin")
    with fake_hub(monkeypatch, pytorch_model__bin=(tmp_path / "published.bin").read_bytes()):
        assert_same_logits(published, loaded("test_resnet", "pretrained"), inputs)
