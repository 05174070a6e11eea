"""Citations for the papers of common architectures."""

from __future__ import annotations

import re

_PAPERS = (
    (r"alexnet", "Krizhevsky 2014, One weird trick for parallelizing convolutional neural networks, arXiv:1404.5997"),
    (r"(se|legacy_se)resne|senet|legacy_senet", "Hu et al. 2018, Squeeze-and-Excitation Networks, arXiv:1709.01507"),
    (r"resnext", "Xie et al. 2017, Aggregated Residual Transformations for Deep Neural Networks, arXiv:1611.05431"),
    (r"wide_resnet", "Zagoruyko and Komodakis 2016, Wide Residual Networks, arXiv:1605.07146"),
    (r"resnest", "Zhang et al. 2020, ResNeSt: Split-Attention Networks, arXiv:2004.08955"),
    (r"(cifar_)?resnet\d", "He et al. 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385"),
    (r"res2ne", "Gao et al. 2019, Res2Net: A New Multi-scale Backbone Architecture, arXiv:1904.01169"),
    (r"vgg", "Simonyan and Zisserman 2015, Very Deep Convolutional Networks for Large-Scale Image Recognition, arXiv:1409.1556"),
    (r"densenet", "Huang et al. 2017, Densely Connected Convolutional Networks, arXiv:1608.06993"),
    (r"(tf_)?mobilenetv1", "Howard et al. 2017, MobileNets, arXiv:1704.04861"),
    (r"mobilenetv2", "Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv:1801.04381"),
    (r"(tf_)?mobilenetv3", "Howard et al. 2019, Searching for MobileNetV3, arXiv:1905.02244"),
    (r"mobilenetv4", "Qin et al. 2024, MobileNetV4: Universal Models for the Mobile Ecosystem, arXiv:2404.10518"),
    (r"mnasnet", "Tan et al. 2019, MnasNet: Platform-Aware Neural Architecture Search for Mobile, arXiv:1807.11626"),
    (r"(tf_)?efficientnetv2", "Tan and Le 2021, EfficientNetV2: Smaller Models and Faster Training, arXiv:2104.00298"),
    (r"(tf_)?efficientnet", "Tan and Le 2019, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, arXiv:1905.11946"),
    (r"convnextv2", "Woo et al. 2023, ConvNeXt V2: Co-designing and Scaling ConvNets with Masked Autoencoders, arXiv:2301.00808"),
    (r"convnext", "Liu et al. 2022, A ConvNet for the 2020s, arXiv:2201.03545"),
    (r"regnet", "Radosavovic et al. 2020, Designing Network Design Spaces, arXiv:2003.13678"),
    (r"googlenet", "Szegedy et al. 2015, Going Deeper with Convolutions, arXiv:1409.4842"),
    (r"inception_v3", "Szegedy et al. 2016, Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567"),
    (
        r"inception_(v4|resnet)",
        "Szegedy et al. 2017, Inception-v4, Inception-ResNet and the Impact of Residual Connections, arXiv:1602.07261",
    ),
    (r"(legacy_)?xception", "Chollet 2017, Xception: Deep Learning with Depthwise Separable Convolutions, arXiv:1610.02357"),
    (r"squeezenet", "Iandola et al. 2016, SqueezeNet, arXiv:1602.07360"),
    (r"shufflenet_v2", "Ma et al. 2018, ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, arXiv:1807.11164"),
    (r"ghostnet", "Han et al. 2020, GhostNet: More Features from Cheap Operations, arXiv:1911.11907"),
    (r"repvgg", "Ding et al. 2021, RepVGG: Making VGG-style ConvNets Great Again, arXiv:2101.03697"),
    (r"dpn", "Chen et al. 2017, Dual Path Networks, arXiv:1707.01629"),
    (r"dla", "Yu et al. 2018, Deep Layer Aggregation, arXiv:1707.06484"),
    (r"hrnet", "Wang et al. 2019, Deep High-Resolution Representation Learning for Visual Recognition, arXiv:1908.07919"),
    (r"zfnet", "Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks, arXiv:1311.2901"),
    (r"lenet5", "LeCun et al. 1998, Gradient-based learning applied to document recognition, doi:10.1109/5.726791"),
)

TIMM = "Wightman 2019, PyTorch Image Models, doi:10.5281/zenodo.4414861"


def paper_of(backbone: str) -> str | None:
    """Return the citation of the paper that introduced a backbone: authors, year, title and identifier. None if it is unknown."""
    return next((paper for pattern, paper in _PAPERS if re.match(pattern, backbone)), None)
