"""Networks, images and files for the tests of exports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import timm
import torch
from torch import nn

from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.model.description import Plain, Provenance
from tlcli.contract.model.onnx_model import Model
from tlcli.exports.exporter import describe_explainer
from tlcli.exports.onnx_writer import flat_graph, write_graph
from tlcli.exports.rewrite.closed_graph import check_graph, describe
from tlcli.exports.trace.explainer import Explainer
from tlcli.training.models.network import ImageNetwork, Network, NetworkConfig, WholeNetwork, build

FLAT = "flat.onnx"
LABELS = ("ant", "bee", "cat", "dog", "eel")
PROVENANCE = Provenance(created="2026-01-01T00:00:00+00:00", versions={}, backbone="b", head="h", weights="none")


def make(
    backbone: str = "resnet18",
    head: str = "linear",
    *,
    spread: float = 1.0,
    seed: int = 0,
    size: tuple[int, int] = (64, 96),
    **model_kwargs: float,
) -> Network:
    """Build a random network without degenerate layers: batch norms of any scale, a last layer that tells classes apart.

    Args:
        backbone, head, model_kwargs: see `NetworkConfig`.
        spread: factor of the logits' standard deviation.
        seed: of all random weights.
        size: height and width of its images.
    """
    torch.manual_seed(seed)
    preprocessing = Preprocessing(height=size[0], width=size[1])
    config = NetworkConfig(
        backbone=backbone, model_kwargs=model_kwargs, head=head, num_classes=len(LABELS), preprocessing=preprocessing
    )  # fmt: skip
    network = build(config)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
                module.weight.uniform_(0.5, 1.5)  # timm starts the last of a block at zero, which would take its branch out
                module.bias.normal_(0, 0.1)
        last = network.last_layer
        last.weight.normal_(0, spread / last.weight.shape[1] ** 0.5)
    return network


def blobs(count: int = 3, height: int = 64, width: int = 96) -> npt.NDArray[np.uint8]:
    """Draw images of soft blobs with some noise: uint8 `[count, height, width, 3]`."""
    generator = np.random.default_rng(0)
    soft = [cv2.resize(generator.uniform(0, 255, (4, 6, 3)), (width, height), interpolation=cv2.INTER_CUBIC) for _ in range(count)]
    return np.clip(np.stack(soft) + generator.normal(0, 10, (count, height, width, 3)), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Case:
    """Network and the file that was exported from it.

    explainer: the module that was exported. Its flat graph is in the file's folder.
    """

    network: ImageNetwork
    model: Model
    explainer: Explainer

    def flat(self) -> onnx.ModelProto:
        """Load the graph without its branches."""
        return onnx.load(str(self.model.path.with_name(FLAT)))

    def plain(self, plain: Plain, name: str = "plain") -> Model:
        """Write the plain graph of the same network and maps."""
        return _finish(self.explainer, self.flat(), self.model.path.with_name(f"{name}.onnx"), plain)

    def rewritten(self, rewrite: Callable[[onnx.ModelProto], None], name: str) -> Model:
        """Write a file of the flat graph after `rewrite` has changed it."""
        flat = self.flat()
        rewrite(flat)
        return _finish(self.explainer, flat, self.model.path.with_name(f"{name}.onnx"))


def make_whole(backbone: str, size: int, **model_kwargs: float) -> WholeNetwork:
    """Build a random network that is run as a whole, with timm's own classifier."""
    torch.manual_seed(0)
    model = timm.create_model(backbone, num_classes=len(LABELS), **model_kwargs)
    preprocessing = Preprocessing(height=size, width=size)
    config = NetworkConfig(
        backbone=backbone, model_kwargs=model_kwargs, head="original", num_classes=len(LABELS), preprocessing=preprocessing
    )
    return WholeNetwork(config, model).eval()


def write(
    network: ImageNetwork,
    path: Path,
    *,
    methods: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    dynamic_size: bool = False,
    plain: Plain | None = None,
) -> Model:
    """Write the file that `tlcli.exports.exporter` writes, without its check against PyTorch."""
    return write_case(network, path, methods=methods, layers=layers, dynamic_size=dynamic_size, plain=plain).model


def write_case(
    network: ImageNetwork,
    path: Path,
    *,
    methods: Sequence[str] | None = None,
    layers: Sequence[str] | None = None,
    dynamic_size: bool = False,
    plain: Plain | None = None,
) -> Case:
    """Write the same file, and return it with its network and explainer."""
    explainer = Explainer(network.requires_grad_(False), methods, layers, dynamic_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = flat_graph(explainer)
    onnx.save(flat, str(path.with_name(FLAT)))
    return Case(network, _finish(explainer, flat, path, plain), explainer)


def _finish(explainer: Explainer, flat: onnx.ModelProto, path: Path, plain: Plain | None = None) -> Model:
    write_graph(explainer, path, flat, plain)
    labels = [f"class_{number}" for number in range(explainer.network.config.num_classes)]
    describe(path, describe_explainer(explainer, "model", labels, PROVENANCE, plain=plain))
    check_graph(path)
    return Model.open(path, device="cpu")


class Exports:
    """Cache of exported files of networks from `make`: an export takes seconds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[object, ...], Case] = {}

    def __call__(
        self,
        backbone: str,
        head: str = "linear",
        *layers: str,
        methods: tuple[str, ...] | None = None,
        dynamic_size: bool = False,
        spread: float = 1.0,
        size: tuple[int, int] = (64, 96),
        **model_kwargs: float,
    ) -> Case:
        """Return a file, exported on first use; for the arguments see `make` and `write`."""
        key = (backbone, head, layers, methods, dynamic_size, spread, size, *model_kwargs.items())
        if key not in self._made:
            network = make(backbone, head, spread=spread, size=size, **model_kwargs)
            path = self._folder / str(len(self._made)) / "model.onnx"
            self._made[key] = write_case(network, path, methods=methods, layers=layers or None, dynamic_size=dynamic_size)
        return self._made[key]


def of_three_layers(exported: Exports) -> Case:
    """Return a file with all maps of three layers, which several modules share: its export takes long."""
    return exported("test_resnet", "mlp:16", "conv1.2", "layer2", "layer4")
