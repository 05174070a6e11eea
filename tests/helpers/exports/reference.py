"""Reference maps written from the papers, in float64, with autograd, to compare the graph with.

Nothing here comes from `exports`. The network is taken as it is in PyTorch; a layer is observed by a hook on the module that
the model's description names. Each formula is a function of one image's activations A `[c, h, w]` and, for one class, their
gradients g = dy/dA `[c, h, w]` or one weight a channel; slow and plain on purpose.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from tlcli.training.models.network import ImageNetwork, Network

Images = npt.NDArray[np.uint8]
ClassIds = npt.NDArray[np.int64]
Maps = npt.NDArray[np.float64]

FEATURES = "forward_features"
"""The name of a layer that no module need have: what `Network.features` returns."""

METHODS = (
    "cam",
    "gradcam",
    "gradcam_plus_plus",
    "xgradcam",
    "hirescam",
    "gradcam_elementwise",
    "layercam",
    "fem",
    "ablationcam",
    "finercam",
    "reciprocam",
    "rollout",
    "legrad",
    "eigencam",
    "eigengradcam",
    "scorecam",
    "faster_scorecam",
)

MAX_CHANNELS = 10
"""Of Faster-Score-CAM, where the caller names no number."""

_CHUNK = 32
"""Images in one run of the network, where a run for each channel is needed: bounds the memory."""


def cam(activations: Tensor, weights: Tensor) -> Tensor:
    """Zhou et al. 2016, eq. 2: M_c(x, y) = sum_k w_k^c f_k(x, y). Not rectified."""
    return torch.einsum("k,khw->hw", weights, activations)


def gradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Selvaraju et al. 2017: alpha_k = 1/Z sum_ij dy/dA_k,ij (eq. 1); relu(sum_k alpha_k A_k) (eq. 2)."""
    return cam(activations, gradients.mean((-2, -1))).relu()


def gradcam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Chattopadhay et al. 2018: alpha = g^2 / (2 g^2 + sum_ab A_k,ab g^3) (eq. 19); w_k = sum_ij alpha relu(g).

    The paper's score is Y = exp(y), which leaves alpha unchanged and multiplies all w_k by exp(y): left out.
    """
    numerator = gradients**2
    denominator = 2 * gradients**2 + activations.sum((-2, -1), keepdim=True) * gradients**3
    alpha = torch.zeros_like(gradients)
    defined = (gradients != 0) & (denominator != 0)
    alpha[defined] = numerator[defined] / denominator[defined]
    return cam(activations, (alpha * gradients.relu()).sum((-2, -1))).relu()


def xgradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Fu et al. 2020 (Axiom-based Grad-CAM): w_k = sum_xy (A_k,xy / sum_xy A_k,xy) dy/dA_k,xy."""
    total = activations.sum((-2, -1))
    weights = torch.zeros_like(total)
    defined = total != 0
    weights[defined] = (gradients * activations).sum((-2, -1))[defined] / total[defined]
    return cam(activations, weights).relu()


def hirescam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Draelos and Carin 2020: sum_k dy/dA_k * A_k, position by position; rectified as Grad-CAM is."""
    return (gradients * activations).sum(0).relu()


def gradcam_elementwise(activations: Tensor, gradients: Tensor) -> Tensor:
    """pytorch-grad-cam's `GradCAMElementWise` (no paper): sum_k relu(g_k A_k)."""
    return (gradients * activations).relu().sum(0)


def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Jiang et al. 2021 (LayerCAM, TIP 30): w_k,ij = relu(dy/dA_k,ij); relu(sum_k w_k,ij A_k,ij)."""
    return (gradients.relu() * activations).sum(0).relu()


def fem(activations: Tensor) -> Tensor:
    """Ahmed Asif Fuad et al. 2020 (FEM): w_k = share of positions above mean_k + K sigma_k, K = 2; sum_k w_k A_k, rectified.

    Nothing in a constant channel is above its mean, though the mean may be rounded below it.
    """
    mean = activations.mean((-2, -1), keepdim=True)
    sigma = activations.std((-2, -1), correction=0, keepdim=True)
    above = (activations > mean + 2 * sigma) & ~_constant(activations)
    return cam(activations, above.to(activations.dtype).mean((-2, -1))).relu()


def eigencam(activations: Tensor) -> Tensor:
    """Muhammad and Yeasin 2020 (Eigen-CAM): A as `[hw, c]` on its first right singular vector, columns centred first.

    Centring is pytorch-grad-cam's, the paper has none. A singular vector's sign is free: the map rises with the sum of the channels.
    Not rectified.
    """
    centred = (activations - activations.mean((-2, -1), keepdim=True)).flatten(1).T
    _, _, right = torch.linalg.svd(centred, full_matrices=False)
    projection = centred @ right[0]
    if projection @ centred.sum(1) < 0:
        projection = -projection
    return projection.view(activations.shape[1:])


def eigengradcam(activations: Tensor, gradients: Tensor) -> Tensor:
    """pytorch-grad-cam's `EigenGradCAM` (no paper): Eigen-CAM of g A."""
    return eigencam(gradients * activations)


def ablationcam(activations: Tensor, score: Tensor, without: Tensor) -> Tensor:
    """Desai and Ramaswamy 2020 (Ablation-CAM, section 3): w_k = (y - y_k) / y, y_k with A_k set to zero; relu(sum_k w_k A_k).

    Over |y|: the paper's y is positive, and a negative one would turn the weights around.

    Args:
        activations: A.
        score: y.
        without: y_k `[c]`.
    """
    weights = (score - without) / score.abs() if score != 0 else torch.zeros_like(without)
    return cam(activations, weights).relu()


def similar(logits: Tensor, number: int) -> list[int]:
    """Zhang et al. 2025 (Finer-CAM): the three classes whose logits are closest to that of class `number`."""
    others = [other for other in range(len(logits)) if other != number]
    return sorted(others, key=lambda other: abs(float(logits[other] - logits[number])))[:3]


def finer_score(scores: Tensor, logits: Tensor, number: int, gamma: float = 0.6) -> Tensor:
    """Zhang et al. 2025 (Finer-CAM): y_c - gamma y_d, whose Grad-CAM's sums are averaged over the similar classes d, then rectified.

    The gradient is linear in the score, so the mean may be taken of the scores.

    Args:
        scores: y of all classes, logits or probabilities `[C]`.
        logits: `[C]`, from which the similar classes are chosen.
        number: c.
        gamma: the paper's comparison strength.
    """
    return torch.stack([scores[number] - gamma * scores[other] for other in similar(logits, number)]).mean()


def neighbourhoods(height: int, width: int) -> Tensor:
    """Byun and Lee 2022 and 2023 (Recipro-CAM): for each position, row by row, 1/16 [[1, 2, 1], [2, 4, 2], [1, 2, 1]] around it."""
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.float64) / 16
    wide = torch.zeros(height * width, height + 2, width + 2, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            wide[row * width + column, row : row + 3, column : column + 3] = kernel
    return wide[:, 1:-1, 1:-1]


def rollout(attention: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    """Abnar and Zuidema 2020: A_l = (W_l + I) / 2, W_l the mean over the heads; A_L ... A_1, of which the mean of the given rows: `[t]`.

    Args:
        attention: weights of each block, first to last, `[heads, t, t]`.
        rows: the tokens that the classifier takes.
    """
    identity = torch.eye(attention[0].shape[-1], dtype=attention[0].dtype)
    product = identity
    for weights in attention:
        product = (weights.mean(0) + identity) / 2 @ product
    return product[list(rows)].mean(0)


def legrad(gradients: Sequence[Tensor]) -> Tensor:
    """Bousselham et al. 2024 (LeGrad): 1 / (h n) sum_h sum_i relu(ds/dA_l)_h,i,j for each block l, and the mean over blocks: `[t]`.

    s is the network's score for every block; the paper's is the classifier's for the tokens of block l.

    Args:
        gradients: of each block's weights, `[heads, t, t]`.
    """
    return torch.stack([of_block.relu().sum((0, 1)) / (of_block.shape[0] * of_block.shape[1]) for of_block in gradients]).mean(0)


def scorecam(activations: Tensor, masked: Tensor) -> Tensor:
    """Wang et al. 2020 (Score-CAM, algorithm 1): w = softmax over k of y(X * mask_k); relu(sum_k w_k A_k).

    The baseline that the paper subtracts from every score (its definition 3) cancels in the softmax.

    Args:
        activations: A, of the channels in use.
        masked: y(X * mask_k) `[c]`.
    """
    return cam(activations, masked.softmax(0)).relu()


def masks(activations: Tensor, height: int, width: int) -> Tensor:
    """Wang et al. 2020, algorithm 1: A_k upsampled to the input, then min-max scaled: `[c, height, width]`.

    A constant channel gives zeros, though its upsampling may have rounded to more than one value.
    """
    upsampled = _resized(activations, height, width)
    return torch.where(_constant(activations), 0, scaled(upsampled))


def largest_variance(activations: Tensor, number: int) -> list[int]:
    """Faster-Score-CAM (github.com/tabayashi0117/Score-CAM, no paper): the channels of largest spatial variance, largest first."""
    variance = activations.var((-2, -1), correction=0)
    return variance.sort(descending=True, stable=True).indices[:number].tolist()


def scaled(values: Tensor) -> Tensor:
    """Scale maps `[..., h, w]` to [0, 1], each from its own range; constant maps become zeros."""
    low, high = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
    return torch.where(high > low, (values - low) / torch.where(high > low, high - low, 1), 0)


def fuse(maps: Sequence[Maps]) -> Maps:
    """Fuse several layers' maps `[N, K, h, w]` into one: each scaled to [0, 1], resized to the largest h x w, then the maximum.

    Jiang et al. 2021 (LayerCAM) take the maximum too; they scale by tanh(2 M / max M), and the shallow layers only.
    """
    height, width = (max(values.shape[axis] for values in maps) for axis in (-2, -1))
    return torch.stack([_resized(scaled(torch.from_numpy(values)), height, width) for values in maps]).amax(0).numpy()


def _resized(values: Tensor, height: int, width: int) -> Tensor:
    flat = values.reshape(1, -1, *values.shape[-2:])
    resized = functional.interpolate(flat, size=(height, width), mode="bilinear", align_corners=False)
    return resized.view(*values.shape[:-2], height, width)


def _constant(activations: Tensor) -> Tensor:
    return activations.amax((-2, -1), keepdim=True) == activations.amin((-2, -1), keepdim=True)


_OF_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"fem": fem, "eigencam": eigencam}

_OF_GRADIENTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": gradcam,
    "gradcam_plus_plus": gradcam_plus_plus,
    "xgradcam": xgradcam,
    "hirescam": hirescam,
    "gradcam_elementwise": gradcam_elementwise,
    "layercam": layercam,
    "eigengradcam": eigengradcam,
}


@dataclass
class _Observation:
    """Record of one run of the network, with results computed from it later.

    images, class_ids: inputs of the run.
    inputs: normalised, `[N, 3, H, W]`.
    logits: `[N, C]`, with the graph back to `activations`.
    activations: `[N, c, h, w]`, a leaf.
    is_features: True if the head takes the layer's output itself, so that only the head needs to be run behind it.
    gradients: by `softmax`, `[N, K, c, h, w]`.
    finer_gradients: by `softmax`, those of Finer-CAM's score, `[N, K, c, h, w]`.
    kept: by image, logits `[h * w, C]` with the activations around one position.
    ablated: by image, logits `[c, C]` without each channel.
    masked: by image and channel, logits `[C]` of the masked image.
    """

    images: Images
    class_ids: ClassIds
    inputs: Tensor
    logits: Tensor
    activations: Tensor
    is_features: bool
    gradients: dict[bool, Tensor] = field(default_factory=dict)
    finer_gradients: dict[bool, Tensor] = field(default_factory=dict)
    kept: dict[int, Tensor] = field(default_factory=dict)
    ablated: dict[int, Tensor] = field(default_factory=dict)
    masked: dict[tuple[int, int], Tensor] = field(default_factory=dict)


class Reference:
    """Logits and maps of a network in float64, at one layer.

    The last images and classes are cached: all methods share one forward pass, and one backward pass per class.
    """

    def __init__(
        self,
        network: ImageNetwork,
        layer: str,
        tokens: tuple[int, int, int] | None = None,
        channels_last: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        """Copy the network.

        Args:
            network: any.
            layer: the name of a module of the backbone whose output is `[N, c, h, w]`, or `FEATURES`.
            tokens: for a module whose output is `[N, p + h * w, c]`: the number p of tokens without a position, h and w.
            channels_last: the module's output is `[N, h, w, c]`.
            dtype: float32 shows what PyTorch itself reaches.
        """
        self._tokens, self._channels_last, self._dtype = tokens, channels_last, dtype
        self.network = copy.deepcopy(network).to(dtype).eval().requires_grad_(False)
        self.name = layer
        self.layer = None if layer == FEATURES else self.network.backbone.get_submodule(layer)
        self._last: _Observation | None = None

    def observe(self, images: Images, class_ids: ClassIds, softmax: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits `[N, C]`, activations A `[N, c, h, w]` and dy/dA `[N, K, c, h, w]` for class ids `[N, K]`.

        y is the class's logit, or with `softmax` its probability.
        """
        seen = self._look(images, class_ids)
        return seen.logits.detach(), seen.activations.detach(), self._gradients(seen, softmax)

    def maps(self, method: str, images: Images, class_ids: ClassIds, softmax: bool = False, max_channels: int = MAX_CHANNELS) -> Maps:
        """Compute maps `[N, K, h, w]`, before any resizing or scaling.

        Args:
            method: one of `METHODS`.
            images: uint8 `[N, H, W, 3]`.
            class_ids: `[N, K]`.
            softmax: explain the class's probability, not its logit.
            max_channels: of Faster-Score-CAM.

        Raises:
            ValueError: no such method or class; the layer has no spatial output, runs more than once or has no part in the logits;
                or `cam` of a network that is not one linear layer on this layer's spatial mean.
        """
        if method not in METHODS:
            raise ValueError(f"no method {method!r}")
        seen = self._look(images, class_ids)
        rows = [
            torch.stack([self._map(method, seen, image, column, softmax, max_channels) for column in range(class_ids.shape[1])])
            for image in range(len(images))
        ]
        return torch.stack(rows).detach().numpy()

    def gradcam(self, images: Images, class_ids: ClassIds) -> Maps:
        """Compute Grad-CAM; see `maps`."""
        return self.maps("gradcam", images, class_ids)

    def cam(self, images: Images, class_ids: ClassIds, weight: Tensor | None = None) -> Maps:
        """Compute CAM, with `weight` `[C, c]` instead of the classifier's if it is given."""
        if weight is None:
            return self.maps("cam", images, class_ids)
        seen = self._look(images, class_ids)
        rows = [
            torch.stack([cam(activations, weight.double()[number]) for number in numbers])
            for activations, numbers in zip(seen.activations.detach(), class_ids.tolist(), strict=True)
        ]
        return torch.stack(rows).numpy()

    def _map(self, method: str, seen: _Observation, image: int, column: int, softmax: bool, max_channels: int) -> Tensor:
        activations, number = seen.activations[image].detach(), int(seen.class_ids[image, column])
        if method in _OF_ACTIVATIONS:
            return _OF_ACTIVATIONS[method](activations)
        if method in _OF_GRADIENTS:
            return _OF_GRADIENTS[method](activations, self._gradients(seen, softmax)[image, column])
        if method == "cam":
            return cam(activations, self._pooled_linear(seen)[number])
        if method == "ablationcam":
            score = _target(seen.logits.detach(), softmax)[image, number]
            return ablationcam(activations, score, _target(self._ablated(seen, image), softmax)[:, number])
        if method == "finercam":
            return gradcam(activations, self._finer_gradients(seen, softmax)[image, column])
        if method == "reciprocam":
            return _target(self._kept(seen, image), softmax)[:, number].view(activations.shape[1:])
        if method in ("rollout", "legrad"):
            return self._of_attention(method, seen, image, number, softmax)
        channels = largest_variance(activations, max_channels) if method == "faster_scorecam" else list(range(len(activations)))
        return scorecam(activations[channels], _target(self._masked(seen, image, channels), softmax)[:, number])

    @torch.enable_grad()
    def _look(self, images: Images, class_ids: ClassIds) -> _Observation:
        last = self._last
        if last is not None and np.array_equal(last.images, images) and np.array_equal(last.class_ids, class_ids):
            return last
        images, class_ids = images.copy(), class_ids.copy()
        config = self.network.config.preprocessing
        pixels = torch.from_numpy(images).double().permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (config.mean, config.std))
        inputs = ((pixels - mean) / std).to(self._dtype)
        outputs: list[Tensor] = []

        def watch(output: Tensor) -> Tensor:
            outputs.append(output.detach().clone().requires_grad_(True))
            return outputs[0].clone()  # what follows may work in place

        logits, is_features = self._run(inputs, watch)
        if not logits.requires_grad:
            raise ValueError(f"{self.name} does not reach the logits")
        if class_ids.shape[:1] != images.shape[:1] or class_ids.min() < 0 or class_ids.max() >= logits.shape[1]:
            raise ValueError(f"class ids [N, K] of 0 to {logits.shape[1] - 1} were expected")
        self._last = _Observation(images, class_ids, inputs, logits, outputs[0], is_features)
        return self._last

    def _run(self, inputs: Tensor, replace: Callable[[Tensor], Tensor]) -> tuple[Tensor, bool]:
        """Return the logits of inputs `[N, 3, H, W]` with the layer's output replaced, and True if the head takes that output itself."""
        replaced: list[Tensor] = []

        def at_layer(_module: object, _inputs: object, output: Tensor) -> Tensor:
            if not isinstance(output, Tensor) or output.ndim != (4 if self._tokens is None else 3):
                raise ValueError(f"{self.name} does not return [N, c, h, w]")
            if replaced:
                raise ValueError(f"{self.name} runs more than once")
            if self._tokens is not None:
                without, height, width = self._tokens
                shown = replace(torch.stack([image[without:].T.reshape(-1, height, width) for image in output]))
                others = output.expand(len(shown), -1, -1)
                replaced.append(torch.stack([torch.cat([old[:without], new.flatten(1).T]) for old, new in zip(others, shown, strict=True)]))
            elif self._channels_last:
                replaced.append(replace(output.movedim(-1, 1)).movedim(1, -1))
            else:
                replaced.append(replace(output))
            versions.append(replaced[0]._version)
            return replaced[0]

        versions: list[int] = []  # a tensor's version changes when it is written to
        if self.layer is None:
            assert isinstance(self.network, Network)
            features = at_layer(None, None, self.network.features(inputs))
            is_features = True
            logits = self.network.classify(self.network.embed(features))
        else:
            handle = self.layer.register_forward_hook(at_layer)
            try:
                if isinstance(self.network, Network):
                    features = self.network.features(inputs)
                    is_features = bool(replaced) and features is replaced[0] and features._version == versions[0]
                    logits = self.network.classify(self.network.embed(features))
                else:
                    is_features, logits = False, self.network(inputs)
            finally:
                handle.remove()
        if not replaced:
            raise ValueError(f"{self.name} does not run")
        return logits, is_features

    @torch.enable_grad()
    def _gradients(self, seen: _Observation, softmax: bool) -> Tensor:
        if softmax not in seen.gradients:
            target, images = _target(seen.logits, softmax), range(len(seen.images))
            columns = [target[images, torch.from_numpy(column)].sum() for column in seen.class_ids.T]
            gradients = [torch.autograd.grad(column, seen.activations, retain_graph=True)[0] for column in columns]
            seen.gradients[softmax] = torch.stack(gradients, 1)
        return seen.gradients[softmax]

    @torch.enable_grad()
    def _finer_gradients(self, seen: _Observation, softmax: bool) -> Tensor:
        if softmax not in seen.finer_gradients:
            target = _target(seen.logits, softmax)
            columns = [
                sum(finer_score(target[image], seen.logits[image].detach(), int(number)) for image, number in enumerate(column))
                for column in seen.class_ids.T
            ]
            gradients = [torch.autograd.grad(column, seen.activations, retain_graph=True)[0] for column in columns]
            seen.finer_gradients[softmax] = torch.stack(gradients, 1)
        return seen.finer_gradients[softmax]

    @torch.no_grad()
    def _kept(self, seen: _Observation, image: int) -> Tensor:
        """Return the logits `[h * w, C]` of one image with the activations around each position in turn."""
        if image not in seen.kept:
            activations = seen.activations[image].detach()
            masks_of_positions = neighbourhoods(*activations.shape[1:]).to(self._dtype).split(_CHUNK)
            seen.kept[image] = torch.cat([self._logits_of(seen, image, activations * masks[:, None]) for masks in masks_of_positions])
        return seen.kept[image]

    @torch.enable_grad()
    def _of_attention(self, method: str, seen: _Observation, image: int, number: int, softmax: bool) -> Tensor:
        """Return a map of the softmax of each block's attention, which timm passes through a module `attn_drop` unless it is fused."""
        if self._tokens is None:
            raise ValueError(f"{self.name} does not return tokens")
        prefix, height, width = self._tokens
        weights: list[Tensor] = []
        added: list[Tensor] = []

        def at_weights(_module: object, _inputs: object, output: Tensor) -> Tensor:
            weights.append(output.detach()[0])
            added.append(torch.zeros_like(output, requires_grad=True))
            return output + added[-1]

        modules = [module for name, module in self.network.named_modules() if name.endswith("attn_drop")]
        for module in self.network.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        handles = [module.register_forward_hook(at_weights) for module in modules]
        try:
            logits = self.network(seen.inputs[image : image + 1])
        finally:
            for handle in handles:
                handle.remove()
        assert len(weights) == len(modules) > 0
        if method == "rollout":
            of_class_token = getattr(self.network.backbone, "global_pool", "") == "token"
            values = rollout(weights, [0] if of_class_token else range(prefix, prefix + height * width))
        else:
            values = legrad([gradient[0] for gradient in torch.autograd.grad(_target(logits, softmax)[0, number], added)])
        return values[prefix:].view(height, width)

    def _logits_of(self, seen: _Observation, image: int, changed: Tensor) -> Tensor:
        """Return the logits `[R, C]` of one image for R changed activations of the layer."""
        if seen.is_features and self._tokens is None and not self._channels_last:
            assert isinstance(self.network, Network)
            return self.network.classify(self.network.embed(changed))
        # Up to the layer the one image runs once; what passes the layer by is the same for all copies, and broadcasts.
        logits, _ = self._run(seen.inputs[image : image + 1], lambda _output: changed)
        assert len(logits) == len(changed)
        return logits

    @torch.no_grad()
    def _ablated(self, seen: _Observation, image: int) -> Tensor:
        """Return the logits `[c, C]` of one image without each channel in turn."""
        if image not in seen.ablated:
            activations, rows = seen.activations[image].detach(), []
            for channels in torch.arange(len(activations)).split(_CHUNK):
                without = activations.repeat(len(channels), 1, 1, 1)
                without[range(len(channels)), channels] = 0
                rows.append(self._logits_of(seen, image, without))
            seen.ablated[image] = torch.cat(rows)
        return seen.ablated[image]

    @torch.no_grad()
    def _masked(self, seen: _Observation, image: int, channels: list[int]) -> Tensor:
        """Return the logits `[len(channels), C]` of one image under each channel's mask."""
        missing = [channel for channel in channels if (image, channel) not in seen.masked]
        for start in range(0, len(missing), _CHUNK):
            chunk = missing[start : start + _CHUNK]
            inputs = seen.inputs[image]
            covers = masks(seen.activations[image][chunk], *inputs.shape[-2:])
            logits = self.network(inputs * covers[:, None])
            seen.masked.update(((image, channel), row) for channel, row in zip(chunk, logits, strict=True))
        return torch.stack([seen.masked[image, channel] for channel in channels])

    @torch.no_grad()
    def _pooled_linear(self, seen: _Observation) -> Tensor:
        """Return the classifier's weight `[C, c]` if it takes the layer's spatial mean."""
        if seen.is_features and isinstance(self.network, Network):
            activations = seen.activations.detach()
            features = activations.movedim(1, -1) if self._channels_last else activations
            if self._tokens is not None:
                features = torch.cat(
                    [activations.new_ones(len(activations), self._tokens[0], activations.shape[1]), activations.flatten(2).transpose(1, 2)],
                    1,
                )
            embedding, weight = self.network.embed(features.clone()), getattr(self.network.classifier, "weight", None)
            mean = activations.mean((-2, -1))
            if weight is not None and embedding.shape == mean.shape and torch.allclose(embedding, mean, rtol=1e-9, atol=1e-12):
                return weight.flatten(1)  # type: ignore[no-any-return]
        raise ValueError(f"the network is not one linear layer on the spatial mean of {self.name}")


def fused(
    references: Sequence[Reference],
    method: str,
    images: Images,
    class_ids: ClassIds,
    softmax: bool = False,
    max_channels: int = MAX_CHANNELS,
) -> Maps:
    """Fuse the maps of one method at several layers."""
    return fuse([reference.maps(method, images, class_ids, softmax, max_channels) for reference in references])


def _target(logits: Tensor, softmax: bool) -> Tensor:
    return logits.softmax(1) if softmax else logits


def relative_difference(values: npt.NDArray[np.float32], reference: npt.NDArray[np.float64]) -> float:
    """Return the largest difference relative to the reference map's largest value, over all maps.

    A rectified map may be almost zero; it is measured against a thousandth of the largest of all.
    Where all of them are zero, so must the values be: 0, else infinity.
    """
    difference = np.abs(values - reference).max((-2, -1))
    largest = np.abs(reference).max((-2, -1))
    if largest.max() == 0:
        return 0.0 if difference.max() == 0 else float("inf")
    return float((difference / np.maximum(largest, largest.max() * 1e-3)).max())
