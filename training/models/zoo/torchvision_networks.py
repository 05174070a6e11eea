"""CNNs from torchvision that timm lacks, registered with timm under their torchvision names on import.

MNASNet is included because timm has only three of its four widths, and official weights for only one.
"""

from __future__ import annotations

from functools import partial

import torchvision
from timm.models import PretrainedCfg, generate_default_cfgs

from tlcli.training.models.zoo.register import register
from tlcli.training.models.zoo.torchvision_adapters import AlexNet, GoogLeNet, MNASNet, ShuffleNetV2, SqueezeNet, TorchvisionBackbone

TAG = "tv_in1k"
"""timm's tag for torchvision's ImageNet weights."""

BACKBONES: dict[str, type[TorchvisionBackbone]] = {
    "alexnet": AlexNet,
    "googlenet": GoogLeNet,
    **dict.fromkeys(("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3"), MNASNet),
    **dict.fromkeys(("shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"), ShuffleNetV2),
    **dict.fromkeys(("squeezenet1_0", "squeezenet1_1"), SqueezeNet),
}


def _pretrained_cfg(name: str) -> PretrainedCfg:
    """Return the URL and preprocessing of torchvision's default weights, read from torchvision's weights enum."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transform = weights.transforms()
    (crop,), (resized,) = transform.crop_size, transform.resize_size
    family = BACKBONES[name]
    return PretrainedCfg(
        url=weights.url,
        input_size=(3, crop, crop),
        crop_pct=crop / resized,
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        num_classes=len(weights.meta["categories"]),
        classifier=family.classifier_name,
        pool_size=family.pool_size,
    )


default_cfgs = generate_default_cfgs({f"{name}.{TAG}": _pretrained_cfg(name) for name in BACKBONES})
"""Default configurations, in the variable that `register_model` expects in the module of an entry point."""


for _name, _family in BACKBONES.items():
    register(__name__, _name, partial(_family, _name), pretrained_filter_fn=_family.converted, kwargs_filter=("in_chans",))
