"""Published backbones with their original classifiers, verified against timm's own models with the same weights."""

from __future__ import annotations

from torch import nn

from tlcli.contract.errors import SettingsError
from tlcli.exports.timm_reference import TimmReference
from tlcli.training.models.backbone_names import built_for_size, with_timms_name
from tlcli.training.models.network import CutError, ImageNetwork, Network, NetworkConfig, WholeNetwork
from tlcli.training.models.pretrained_preprocessing import resolve_preprocessing
from tlcli.training.models.weights import load_backbone
from tlcli.training.settings.config import FinetuneConfig


def published_network(config: FinetuneConfig) -> ImageNetwork:
    """Build a published backbone with its original classifier, in eval mode, and verify it against timm's own model.

    A network that cannot be split into features and a head is run as a whole, as timm runs it.

    Args:
        config: fine-tuning settings, of which the backbone, weights, model arguments and preprocessing are used.

    Raises:
        WeightsError, HubError: see `tlcli.training.models.weights.load_backbone`.
        SettingsError: the weights contain no classifier.
        ParityError: the network's logits differ from those of timm's model.
    """
    backbone, described = _load_published(config)
    reference = TimmReference.of(backbone, described)
    try:
        network: ImageNetwork = Network(described, backbone, keep_classifier=True)
    except CutError:
        network = WholeNetwork(described, backbone)
    reference.require(network.eval())
    return network


def _load_published(config: FinetuneConfig) -> tuple[nn.Module, NetworkConfig]:
    config = built_for_size(with_timms_name(config))
    backbone, _ = load_backbone(config.model_copy(update={"head": "original"}))
    classes = int(getattr(backbone, "num_classes", 0))
    if classes < 2:
        raise SettingsError(
            f"{config.weights}: the weights hold no classifier, so there are no scores to serve: fine-tune first (tlcli finetune)"
        )
    described = NetworkConfig(
        backbone=config.backbone,
        model_kwargs=config.model_kwargs,
        head="original",
        num_classes=classes,
        preprocessing=resolve_preprocessing(config, backbone),
        pretrained=config.weights != "none",
    )
    return backbone, described


def imagenet_labels() -> list[str]:
    """Return the names of the 1,000 classes of ILSVRC 2012 in their order: the first name of each synset."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [info.index_to_description(index).split(",")[0] for index in range(1000)]
