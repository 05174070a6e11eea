"""Fake model for `tlcli.contract.model.explain` in PyTorch: two layers, gradients by autograd, and a record of every run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tlcli.contract.images.preprocessing import Preprocessing
from tlcli.contract.maps.method_names import map_name
from tlcli.contract.model.description import FUSED, Description, Layer, MapOutput, Provenance
from tlcli.contract.model.onnx_model import FIRST_RANKED, Answer

PREPROCESSING = Preprocessing(height=40, width=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
CHANNELS = {"near": 12, "far": 30}
SIZES = {"near": (10, 8), "far": (5, 4)}
SILENT, STEADY = 3, 5
"""Constant channels of both layers, with the values 0 and 0.7."""
CLASSES = 6
OUTSIDE = ("eigencam", "eigengradcam", "scorecam", "faster_scorecam")


class SmallNetwork:
    """Fake of `tlcli.contract.model.onnx_model.Model`.

    batches: the images of every run so far.
    """

    def __init__(self, layers: Sequence[str] = ("far",), seed: int = 0, constant: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int, scale: float) -> Tensor:
            return torch.randn(*shape, generator=generator) * scale

        self.kernels = {
            "near": drawn(CHANNELS["near"], 3, 4, 4, scale=0.2),
            "far": drawn(CHANNELS["far"], CHANNELS["near"], 2, 2, scale=0.2),
        }
        self.biases = {name: drawn(CHANNELS[name], scale=0.1) for name in CHANNELS}
        for name in CHANNELS:
            self.kernels[name][[SILENT, STEADY]] = 0
            self.biases[name][SILENT], self.biases[name][STEADY] = -1, 0.7
            if constant:
                self.kernels[name][:] = 0
        self.weight, self.bias = drawn(CLASSES, CHANNELS["far"], scale=1.0), drawn(CLASSES, scale=0.1)
        self.layers = tuple(layers)
        self.description = self._describe()
        self.batches: list[np.ndarray] = []

    def forward(self, images: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        """Return activations by layer, and logits; autograd starts at the pixels."""
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (PREPROCESSING.mean, PREPROCESSING.std))
        seen = ((torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std).requires_grad_()
        near = functional.conv2d(seen, self.kernels["near"], self.biases["near"], stride=4).relu()
        far = functional.conv2d(near, self.kernels["far"], self.biases["far"], stride=2).relu()
        return {"near": near, "far": far}, far.mean((2, 3)) @ self.weight.T + self.bias

    def run(
        self,
        images: np.ndarray,
        targets: np.ndarray | Sequence[int] = (FIRST_RANKED,),
        methods: Sequence[str] = (),
        evidence: Sequence[str] = (),
        softmax: bool = False,
    ) -> Answer:
        """Return the same as `Model.run`."""
        self.batches.append(images)
        activations, logits = self.forward(images)
        scores = logits.softmax(1)
        asked = torch.from_numpy(np.broadcast_to(np.atleast_2d(np.asarray(targets)), (len(images), np.shape(targets)[-1])).copy())
        ranking = logits.argsort(1, descending=True)
        classes = torch.where(asked < 0, ranking.gather(1, (-asked - 1).clamp(min=0)), asked)
        chosen = (scores if softmax else logits).gather(1, classes).sum(0)
        gradients = {
            name: torch.stack([torch.autograd.grad(one, activations[name], retain_graph=True)[0] for one in chosen], 1) for name in CHANNELS
        }
        outputs = {}
        for layer in self.description.layers:
            outputs[layer.features], outputs[layer.gradients] = activations[layer.name], gradients[layer.name]
        summed = torch.einsum("nkc,nchw->nkhw", gradients["far"].mean((3, 4)), activations["far"])
        asked_for = bool(methods or evidence)
        return Answer(
            scores=scores.detach().numpy(),
            logits=logits.detach().numpy(),
            classes=classes.numpy() if asked_for else None,
            maps={name: summed.relu().detach().numpy() for name in methods},
            evidence={name: outputs[name].detach().numpy() for name in evidence},
        )

    def _describe(self) -> Description:
        several = len(self.layers) > 1
        layers, maps = [], []
        for name in self.layers:
            features, gradients = (f"{what}@{name}" if several else what for what in ("features", "gradients"))
            height, width = SIZES[name]
            layers.append(Layer(name=name, features=features, gradients=gradients, channels=CHANNELS[name], height=height, width=width))
            for method in ("gradcam", *OUTSIDE) if name == "far" else OUTSIDE:
                asked_by = map_name(method, name if several else None)
                maps.append(MapOutput(name=asked_by, method=method, layer=name, height=height, width=width))
        if several:
            height, width = SIZES[self.layers[0]]
            fused = FUSED.join(self.layers)
            maps += [MapOutput(name=method, method=method, layer=fused, height=height, width=width) for method in OUTSIDE]
        return Description(
            name="small",
            labels=tuple("abcdef"),
            preprocessing=PREPROCESSING,
            layers=tuple(layers),
            maps=tuple(maps),
            switches=(),
            dynamic_size=True,
            provenance=Provenance(created="2025-01-01T00:00:00+00:00", versions={}, backbone="small", head="linear", weights="none"),
        )


def make_images(count: int, seed: int = 0, height: int = PREPROCESSING.height, width: int = PREPROCESSING.width) -> np.ndarray:
    """Return smooth images, for which channels differ: uint8 `[count, height, width, 3]`."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (count, 3, 6, 5)).astype(np.float32)
    smooth = functional.interpolate(torch.from_numpy(coarse), (height, width), mode="bicubic").clamp(0, 255)
    return np.ascontiguousarray(smooth.permute(0, 2, 3, 1).numpy().astype(np.uint8))
