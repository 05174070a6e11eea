"""Networks of tokens and of features in channels-last order, small and random, against float64 autograd on the network itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

from tests.exports.onnx_source.test_torchvision_files import write
from tests.helpers.exports.onnx_autograd import OnnxReference
from tests.helpers.exports.onnx_files import CLASSES, Graph, explain, head, stem
from tests.helpers.exports.small_networks import blobs
from tlcli.contract.errors import ExportError
from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.exports.onnx_export import export_onnx
from tlcli.exports.onnx_source.image_input import ImageInput
from tlcli.exports.onnx_source.input_settings import InputSettings

UNIT = InputSettings(input_range="0..1")
SMALL = {"num_classes": 5, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
WINDOWS = {"num_classes": 5, "img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}


def timm_vit(name: str = "vit_tiny_patch16_224", size: tuple[int, int] = (32, 32), **options: object) -> nn.Module:
    network: nn.Module = timm.create_model(name, img_size=size, **(SMALL | options))
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], tuple[int, int], str]] = {
    "torchvision vit": (lambda: VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5), (24, 4, 4), (32, 32), "encoder_layer_1/ln_1/"),
    "torchvision swin": (
        lambda: SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5),
        (32, 4, 4),
        (32, 32),
        "/avgpool|/permute",
    ),
    "vit": (timm_vit, (24, 4, 4), (32, 32), "blocks.1/norm1/"),
    "two prefix tokens": (lambda: timm_vit("deit_tiny_distilled_patch16_224"), (24, 4, 4), (32, 32), "blocks.1/norm1/"),
    "registers": (lambda: timm_vit("vit_small_patch14_reg4_dinov2"), (24, 4, 4), (32, 32), "blocks.1/norm1/"),
    "mean of the patches": (lambda: timm_vit(size=(32, 48), global_pool="avg"), (24, 4, 6), (32, 48), "/norm/|Slice"),
    "attention pooling": (lambda: timm_vit("vit_base_patch16_siglip_224"), (24, 4, 4), (32, 32), "/norm/"),
    "swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224", **WINDOWS), (32, 4, 4), (32, 32), "/norm/"),
    "swin 2": (lambda: timm.create_model("swinv2_tiny_window8_256", **WINDOWS), (32, 4, 4), (32, 32), "/norm/"),
}  # fmt: skip


def network_of(name: str) -> nn.Module:
    """Return a network whose parameters are far enough from zero that every one of them matters."""
    torch.manual_seed(0)
    network = NETWORKS[name][0]()
    for parameter in network.parameters():
        if parameter.abs().max() < 1e-3 or parameter.std() < 0.05:
            nn.init.normal_(parameter, 0, 0.2)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "dynamo", "opset"), [*((name, False, 17) for name in NETWORKS), ("torchvision vit", True, 20), ("vit", False, 14)]
)
def test_maps_are_those_of_autograd(name: str, dynamo: bool, opset: int, tmp_path: Path) -> None:
    network = network_of(name)
    _, (channels, height, width), size, layer = NETWORKS[name]
    path = write(network, tmp_path / "x.onnx", dynamo=dynamo, opset=opset, size=size)
    _, model = explain(path, tmp_path / "model.onnx", image=ImageInput(Preprocessing(height=size[0], width=size[1]), channels_last=False))
    (found,) = model.description.layers
    assert (found.channels, found.height, found.width) == (channels, height, width)
    assert dynamo or any(part in f"/{found.name}" for part in layer.split("|")), found.name
    distances = OnnxReference(network, model).distances(blobs(3, *size))
    assert max(distances.values()) < 1e-4


@pytest.mark.parametrize("name", ["torchvision vit", "vit", "torchvision swin", "swin 2"])
def test_a_file_for_one_image(name: str, tmp_path: Path) -> None:
    """Exporters write the batch size 1 into the class token and into the reshapes of heads and windows, unless told otherwise."""
    network, size = network_of(name), NETWORKS[name][2]
    path = write(network, tmp_path / "x.onnx", dynamo=False, batch=1, size=size)
    _, model = explain(path, tmp_path / "model.onnx", image=ImageInput(Preprocessing(height=size[0], width=size[1]), channels_last=False))
    assert max(OnnxReference(network, model).distances(blobs(3, *size)).values()) < 1e-4


def transformer(path: Path, windows: bool = False, pooled: bool = False) -> Path:
    """One block of attention on 8 x 8 patches with a class token, or with the mean of the patches behind it."""
    g = Graph()
    patches = g.add("Reshape", stem(g), np.array([0, 6, 4, 2, 4, 2] if windows else [0, 6, 64]), name="flat")
    tokens = g.add("Transpose", patches, perm=[0, 2, 4, 3, 5, 1] if windows else [0, 2, 1])
    tokens = g.add("Reshape", tokens, np.array([0, 64, 6]), name="patches")
    if not pooled:
        shape = g.add("Concat", g.add("Shape", "x", start=0, end=1), np.array([1, 6]), axis=0)
        tokens = g.add("Concat", g.add("Expand", g.normal(1, 1, 6, scale=1), shape), tokens, axis=1, name="embedded")
    normed = g.add("LayerNormalization", tokens, g.normal(6, scale=1), g.normal(6, scale=1), name="normed")
    query, key, value = (g.add("MatMul", normed, g.normal(6, 6, scale=0.7), name=name) for name in "qkv")
    weights = g.add("Softmax", g.add("MatMul", query, g.add("Transpose", key, perm=[0, 2, 1])), axis=-1, name="weights")
    tokens = g.add("Add", tokens, g.add("MatMul", weights, value), name="summed")
    tokens = g.add("LayerNormalization", tokens, g.normal(6, scale=1), g.normal(6, scale=1), name="last")
    one = g.add("ReduceMean", tokens, axes=[1], keepdims=0) if pooled else g.add("Gather", tokens, np.array(0), axis=1)
    return g.save(path, g.add("Gemm", one, g.normal(6, CLASSES)), opset=17)


def test_the_default_is_the_input_of_the_last_attention(tmp_path: Path) -> None:
    path = transformer(tmp_path / "x.onnx")
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, check_images=4)
    assert [(layer.name, layer.channels, layer.height, layer.width) for layer in exported.description.layers] == [("normed", 6, 8, 8)]
    assert exported.parity.logits < 1e-5
    assert max(exported.parity.maps.values()) < 1e-4


def test_the_mean_of_the_patches_has_cam(tmp_path: Path) -> None:
    path = transformer(tmp_path / "x.onnx", pooled=True)
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, check_images=4)
    assert [layer.name for layer in exported.description.layers] == ["last"]
    assert "cam" in exported.description.methods
    assert max(exported.parity.maps.values()) < 1e-4


def test_layers_of_tokens_can_be_named_and_fused(tmp_path: Path) -> None:
    path = transformer(tmp_path / "x.onnx")
    layers = ["k", "embedded", "layer"]
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, layers=layers, check_images=2)
    assert [layer.name for layer in exported.description.layers] == ["layer", "embedded", "k"]
    assert max(exported.parity.maps.values()) < 1e-4


def test_tokens_without_influence_or_order_are_refused(tmp_path: Path) -> None:
    path = transformer(tmp_path / "x.onnx")
    for layer, message in (
        ("last", r"--cam-layer last: the logits do not depend on its patches, .* such as normed"),
        ("weights", r"without a height and a width|positions do not follow"),
    ):
        with pytest.raises(ExportError, match=message) as error:
            export_onnx(path, name="m", repository=tmp_path / "models", settings=UNIT, layers=[layer])
        assert "\n" not in str(error.value)
    path = transformer(tmp_path / "y.onnx", windows=True)
    with pytest.raises(ExportError, match="--cam-layer normed: its positions do not follow those of the image"):
        export_onnx(path, name="m", repository=tmp_path / "models", settings=UNIT, layers=["normed"])


def test_attention_behind_a_map_is_warned_of(tmp_path: Path) -> None:
    """Where no tokens have the order of the image, the embedding of the patches is explained."""
    lines: list[str] = []
    path = transformer(tmp_path / "x.onnx", windows=True)
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, check_images=2, say=lines.append)
    assert max(exported.parity.maps.values()) < 1e-4
    assert any("warning: attention follows layer" in line for line in lines)


def test_a_linear_layer_on_rows_of_all_images(tmp_path: Path) -> None:
    """As PyTorch's multi-head attention ends: positions first, and the rows of all positions and images in one axis."""
    g = Graph()
    tokens = g.add("Transpose", g.add("Reshape", stem(g), np.array([0, 6, 64])), perm=[2, 0, 1])
    rows = g.add("Reshape", g.add("Tanh", tokens), np.array([-1, 6]))
    rows = g.add("Gemm", rows, g.normal(6, 6), g.normal(6), transB=1)
    shape = g.add("Concat", np.array([64]), g.add("Shape", "x", start=0, end=1), np.array([6]), axis=0)
    tokens = g.add("Transpose", g.add("Tanh", g.add("Reshape", rows, shape)), perm=[1, 2, 0])
    x = head(g, g.add("Reshape", tokens, np.array([0, 6, 8, 8])))
    path = g.save(tmp_path / "x.onnx", x)
    exported = export_onnx(path, name="m", repository=tmp_path, settings=UNIT, layers=["layer"], check_images=4)
    assert exported.parity.logits < 1e-5
    assert max(exported.parity.maps.values()) < 1e-4
