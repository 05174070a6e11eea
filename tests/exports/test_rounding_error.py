"""Allowances of the parity check for rounding, at terms that cancel and positions at a threshold, and their limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.helpers.exports.small_networks import Exports, blobs, make
from tlcli.contract.errors import ParityError
from tlcli.contract.model.description import Parity
from tlcli.exports import parity
from tlcli.exports.rounding_error import expect
from tlcli.exports.trace.map_methods import FORMULAS, AttentionInputs, CamInputs


def evidence(activations: torch.Tensor, gradients: torch.Tensor) -> CamInputs:
    """Return inputs of N images and K classes, with scores and weights that let no method divide by zero."""
    n, k, c, height, width = gradients.shape
    return CamInputs(
        activations=activations,
        gradients=gradients,
        mean_gradients=gradients.mean((-2, -1)),
        class_weights=gradients.mean((-2, -1)),
        scores=torch.ones(n, k),
        ablated=torch.zeros(n, k, c),
        masked=torch.linspace(-2, 3, n * k * height * width).reshape(n, k, height, width),
    )


def with_attention(inputs: CamInputs) -> CamInputs:
    """Add the attention of two blocks of two heads, and Finer-CAM's gradients."""
    generator = torch.Generator().manual_seed(1)
    n, k, _, height, width = inputs.gradients.shape
    tokens = 1 + height * width
    weights = torch.rand(2, n, 2, tokens, tokens, generator=generator).softmax(-1)
    gradients = torch.randn(2, n, k, 2, tokens, tokens, generator=generator)
    attention = AttentionInputs(tuple(weights), tuple(gradients), (0,), 1, height, width)
    return dataclasses.replace(inputs, attention=attention, difference=evidence(inputs.activations, inputs.gradients.flip(1)))


@pytest.fixture
def drawn() -> CamInputs:
    generator = torch.Generator().manual_seed(0)
    return with_attention(evidence(torch.randn(2, 6, 5, 7, generator=generator), torch.randn(2, 3, 6, 5, 7, generator=generator)))


@pytest.mark.parametrize("method", sorted(FORMULAS))
def test_no_map_is_larger_than_its_terms(method: str, drawn: CamInputs) -> None:
    """By the triangle inequality. Methods without a threshold have no slack."""
    found = expect(method, drawn)
    torch.testing.assert_close(found.values, FORMULAS[method](drawn))
    assert (found.values.amax((-2, -1)) <= found.terms * (1 + 1e-5)).all()
    assert (found.lowest <= found.values + 1e-6).all()
    assert (found.values <= found.highest + 1e-6).all()
    if method != "fem":
        assert torch.equal(found.lowest, found.highest)


def test_the_terms_of_hirescam_by_hand() -> None:
    """Two channels that cancel: 3 * 2 - 6 * 1 = 0, the terms 6 + 6."""
    found = expect("hirescam", evidence(torch.tensor([[[[3.0]], [[6.0]]]]), torch.tensor([[[[[2.0]], [[-1.0]]]]])))
    assert found.values.item() == 0
    assert found.terms.item() == 12


def test_fems_positions_at_the_threshold_are_undecided() -> None:
    """Nine positions, one of them b: it is (b - mean) / sigma = sqrt(8) = 2.83 deviations above; of five positions sqrt(4) = 2, at it."""
    five = torch.zeros(1, 1, 1, 5)
    five[..., 0] = 10
    found = expect("fem", evidence(five, torch.zeros(1, 1, 1, 1, 5)))
    assert found.lowest.max() == 0
    assert found.highest.amax().item() == pytest.approx(0.2 * 10)
    nine = torch.zeros(1, 1, 3, 3)
    nine[..., 0, 0] = 10
    found = expect("fem", evidence(nine, torch.zeros(1, 1, 1, 3, 3)))
    assert torch.equal(found.lowest, found.highest)
    assert found.values.amax().item() == pytest.approx(10 / 9)


def test_hirescam_before_a_norm_that_is_invariant_to_scale_passes(exported: Exports) -> None:
    """ConvNeXt: each position of a stage's output is normalised before the next stage, so sum(g A) is zero there; its terms are not."""
    case = exported("test_convnext", "original", "stages.0", methods=("gradcam", "hirescam", "fem"), size=(96, 96))
    measured = parity.measure(case.network, case.model, list(blobs(4, 96, 96)), "blobs")
    parity.require(measured)
    assert measured.maps["hirescam"] <= parity.MAPS_TOLERANCE
    answer = case.model.run(blobs(1, 96, 96), methods=["gradcam", "hirescam"])
    assert answer.maps["hirescam"].max() < 1e-3 * answer.maps["gradcam"].max()


@pytest.mark.parametrize("method", ["gradcam", "hirescam", "fem"])
def test_maps_of_another_network_are_refused(method: str, exported: Exports) -> None:
    case = exported("test_convnext", "original", "stages.0", methods=("gradcam", "hirescam", "fem"), size=(96, 96))
    other = make("test_convnext", "original", seed=1, size=(96, 96)).requires_grad_(False)
    measured: Parity = parity.measure(other, case.model, list(blobs(4, 96, 96)), "blobs")
    if method != "hirescam":  # zero in any of these networks
        assert measured.maps[method] > 100 * parity.MAPS_TOLERANCE
    with pytest.raises(ParityError):
        parity.require(measured)


def test_hirescam_of_a_wrong_graph_is_refused(exported: Exports) -> None:
    """A zero map is compared relative to the size of its terms: Grad-CAM's map instead of it is detected."""
    case = exported("test_convnext", "original", "stages.0", methods=("gradcam", "hirescam", "fem"), size=(96, 96))
    images = list(blobs(4, 96, 96))

    class Swapped:
        description = case.model.description

        def run(self, images: np.ndarray, targets: object, maps: list[str]) -> object:  # type: ignore[type-arg]
            answer = case.model.run(images, targets, maps)  # type: ignore[arg-type]
            answer.maps["hirescam"] = answer.maps["gradcam"]
            return answer

    measured = parity.measure(case.network, Swapped(), images, "blobs")  # type: ignore[arg-type]
    assert measured.maps["hirescam"] > 10 * parity.MAPS_TOLERANCE
