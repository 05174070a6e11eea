"""Layouts of maps in outputs, and the check that positions of an output are positions of the image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tlcli.training.models.feature_layout import FeatureLayout, possible_layouts
from tlcli.training.models.locality import is_local, probe_images

LAYOUTS = [FeatureLayout("channels_first", 3, 4), FeatureLayout("channels_last", 3, 4), FeatureLayout("tokens", 3, 4, 2)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.kind)
def test_a_map_that_is_put_into_an_output_is_read_back(layout: FeatureLayout) -> None:
    image_map = torch.rand(2, 5, 3, 4)
    output = layout.from_map(image_map)
    assert output.shape == {"channels_first": (2, 5, 3, 4), "channels_last": (2, 3, 4, 5), "tokens": (2, 14, 5)}[layout.kind]
    torch.testing.assert_close(layout.to_map(output), image_map, rtol=0, atol=0)
    assert layout.channels(output) == 5


def test_tokens_are_in_row_major_order_behind_their_prefix() -> None:
    layout, output = FeatureLayout("tokens", 3, 4, 2), torch.rand(1, 14, 5)
    shown = layout.to_map(output)
    assert torch.equal(shown[0, :, 1, 3], output[0, 2 + 1 * 4 + 3])
    replaced = layout.with_map(output, shown * 0)
    assert torch.equal(replaced[:, :2], output[:, :2]), "tokens without a position are kept"
    assert not replaced[:, 2:].any()


@pytest.mark.parametrize(
    ("shape", "size", "declared", "first"),
    [
        ((1, 197, 192), (224, 224), 1, FeatureLayout("tokens", 14, 14, 1)),
        ((1, 196, 192), (224, 224), 0, FeatureLayout("tokens", 14, 14, 0)),
        ((1, 201, 384), (224, 224), 5, FeatureLayout("tokens", 14, 14, 5)),
        ((1, 51, 256), (224, 224), 0, FeatureLayout("tokens", 7, 7, 2)),  # timm does not declare the prefix of all networks
        ((1, 1 + 14 * 28, 192), (224, 448), 1, FeatureLayout("tokens", 14, 28, 1)),
        ((1, 7, 7, 768), (224, 224), 0, FeatureLayout("channels_last", 7, 7)),
        ((1, 768, 7, 7), (224, 224), 0, FeatureLayout("channels_first", 7, 7)),
        ((1, 6, 11, 768), (192, 350), 0, FeatureLayout("channels_last", 6, 11)),
    ],
)
def test_the_likeliest_layout_comes_first(shape: tuple[int, ...], size: tuple[int, int], declared: int, first: FeatureLayout) -> None:
    assert next(possible_layouts(shape, *size, declared)) == first


@pytest.mark.parametrize("shape", [(1, 768), (1, 768, 1, 1), (1, 196, 196), (1, 1, 768), (1, 12, 3, 50)])
def test_other_shapes_have_no_layout(shape: tuple[int, ...]) -> None:
    """Among them the weights of an attention."""
    assert [*possible_layouts(shape, 224, 224, 0)] == []


def patches(images: Tensor) -> Tensor:
    """Return the patches of 16 x 16 pixels as tokens `[N, h * w, 768]` in row-major order."""
    return torch.nn.functional.unfold(images, 16, stride=16).transpose(1, 2)


def test_patches_in_row_major_order_are_local_and_in_any_other_order_they_are_not() -> None:
    tokens, layout = patches(probe_images(160, 160)), FeatureLayout("tokens", 10, 10)
    assert is_local(tokens, layout)
    by_column = tokens.unflatten(1, (10, 10)).transpose(1, 2).flatten(1, 2)
    assert not is_local(by_column, layout)
    assert not is_local(tokens.flip(1), layout)
    windows = tokens.reshape(-1, 2, 5, 2, 5, tokens.shape[-1]).transpose(2, 3).reshape(tokens.shape)
    assert not is_local(windows, layout)
    assert not is_local(tokens[:, torch.randperm(100, generator=torch.Generator().manual_seed(1))], layout)


def test_patches_are_local_though_all_of_them_change_with_any_block() -> None:
    """As behind global attention, which also lets a few tokens grow whatever the image shows."""
    tokens, layout = patches(probe_images(160, 160)), FeatureLayout("tokens", 10, 10)
    mixed = tokens + 20 * tokens.mean(1, keepdim=True)
    mixed[:, 7] += 100 * tokens.mean(1)
    assert is_local(mixed, layout)
    assert not is_local(tokens.mean(1, keepdim=True).expand(-1, 100, -1), layout)
    assert not is_local(torch.zeros_like(tokens), layout)
