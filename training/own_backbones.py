"""All networks that this project adds to timm's; they are in timm's registry when this is imported."""

import training.cifar_resnet
import training.textbook_networks
import training.torchvision_backbones  # noqa: F401
