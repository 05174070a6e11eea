"""Backbones that this project adds to timm's model registry. Importing this package registers them."""

import tlcli.training.models.zoo.cifar_resnet
import tlcli.training.models.zoo.textbook
import tlcli.training.models.zoo.torchvision_networks  # noqa: F401
