"""All networks that this project adds to timm's; they are in timm's registry when this is imported."""

import tlcli.training.models.zoo.cifar_resnet
import tlcli.training.models.zoo.textbook
import tlcli.training.models.zoo.torchvision_networks  # noqa: F401
