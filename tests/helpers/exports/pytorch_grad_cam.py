"""Maps of pytorch-grad-cam (the package `grad-cam`), and its post-processing applied to ours."""

from __future__ import annotations

import copy
import functools
from unittest import mock

import cv2
import numpy as np
import numpy.typing as npt
import pytorch_grad_cam
import torch
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget

from tlcli.training.models.network import Network

PEERS: dict[str, type[BaseCAM]] = {
    "gradcam": pytorch_grad_cam.GradCAM,
    "gradcam_plus_plus": pytorch_grad_cam.GradCAMPlusPlus,
    "xgradcam": pytorch_grad_cam.XGradCAM,
    "hirescam": pytorch_grad_cam.HiResCAM,
    "gradcam_elementwise": pytorch_grad_cam.GradCAMElementWise,
    "layercam": pytorch_grad_cam.LayerCAM,
    "fem": pytorch_grad_cam.FEM,
    "ablationcam": pytorch_grad_cam.AblationCAM,
    "eigencam": pytorch_grad_cam.EigenCAM,
    "eigengradcam": pytorch_grad_cam.EigenGradCAM,
    "scorecam": pytorch_grad_cam.ScoreCAM,
}


def like_pytorch_grad_cam(values: npt.NDArray[np.floating], height: int, width: int) -> npt.NDArray[np.float32]:
    """Post-process raw maps `[..., h, w]` as pytorch-grad-cam does: `[..., height, width]` in [0, 1].

    Rectified, scaled by `(x - min) / (1e-7 + max)`, resized bilinearly, scaled again.
    """
    maps = [
        _scaled(cv2.resize(np.float32(_scaled(np.maximum(one, 0))), (width, height)))  # type: ignore[arg-type]
        for one in np.asarray(values).reshape(-1, *values.shape[-2:])
    ]
    return np.float32(maps).reshape(*values.shape[:-2], height, width)  # type: ignore[arg-type]


def pytorch_grad_cam_maps(
    method: str,
    network: Network,
    layer: str,
    images: npt.NDArray[np.uint8],
    class_ids: npt.NDArray[np.int64],
    softmax: bool = False,
) -> npt.NDArray[np.float32]:
    """Compute maps with pytorch-grad-cam, `[N, K, H, W]` in float32.

    Differences from the formulas here:
        Grad-CAM++ adds 1e-6 to its denominator: gradients have to be well above 1e-3.
        Ablation-CAM: a layer whose least value is exactly zero, and classes of positive score, else it has other weights.
        Score-CAM upsamples with corners aligned: it is made to upsample as everyone else does.
        Eigen-CAM and Eigen-Grad-CAM have whichever sign came out.
        A layer before an in-place operation is seen after it.

    Args:
        method: one of `PEERS`.
        network: any.
        layer: the name of a module of the backbone.
        images: uint8 `[N, H, W, 3]`.
        class_ids: `[N, K]`.
        softmax: explain the class's probability, not its logit.
    """
    network = copy.deepcopy(network).float().eval().requires_grad_(True)
    inputs = network.normalise(torch.from_numpy(images))
    target = ClassifierOutputSoftmaxTarget if softmax else ClassifierOutputTarget
    upsampling = functools.partial(torch.nn.Upsample, mode="bilinear", align_corners=False)
    columns = []
    with (
        mock.patch.object(torch.nn, "UpsamplingBilinear2d", upsampling),
        PEERS[method](network, [network.backbone.get_submodule(layer)]) as peer,
    ):
        for column in class_ids.T:
            columns.append(peer(inputs, [target(number) for number in column.tolist()]))  # noqa: PERF401
    return np.stack(columns, 1)


def _scaled(values: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    values = values - values.min()
    return values / (1e-7 + values.max())
