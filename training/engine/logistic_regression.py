"""Multinomial logistic regression, fitted to convergence by full-batch L-BFGS, in float64 unless the inputs are float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import LBFGS

from tlcli.training.engine.loss import Objective

_MOST_ITERATIONS = 300
_GRADIENT = 1e-6
"""Convergence tolerance on the gradient of the mean loss."""
_CHANGE = 1e-10
_HISTORY = 20


@dataclass(frozen=True, eq=False)
class Fitted:
    """Fitted logistic regression with logits `x W^T + b`.

    l2: strength of the L2 penalty. weight: W, `[C, d]`. bias: b, `[C]`, in the type of the inputs.
    loss: mean loss in nats, without the penalty.
    """

    l2: float
    weight: Tensor
    bias: Tensor
    loss: float


def fit_logistic(
    inputs: Tensor,
    labels: Tensor,
    classes: int,
    strengths: Sequence[float],
    objective: Objective,
    with_bias: bool = True,
    weights: Tensor | None = None,
) -> Iterator[Fitted]:
    """Fit a logistic regression for each L2 strength by minimising the mean objective plus `l2 / 2 * ||W||^2`.

    Strengths are fitted in descending order, each starting from the previous solution. The problem is convex, so the solution does not
    depend on the starting point. It is equivalent to scikit-learn's `LogisticRegression(C=1 / (n * l2))`.

    Args:
        inputs: input features, float64 or float32 `[n, d]`.
        labels: class indices, int64 `[n]`.
        classes: number of classes C.
        strengths: L2 strengths, positive.
        objective: loss to minimise, a cross-entropy; its tensors must be of the type of the inputs.
        with_bias: False to fix the bias at 0.
        weights: weights of the images, float64 `[n]`; None if all weigh the same.
    """
    weight = inputs.new_zeros(classes, inputs.shape[1], requires_grad=True)
    bias = inputs.new_zeros(classes, requires_grad=with_bias)
    total = objective.weight(labels, weights)
    for l2 in sorted(strengths, reverse=True):
        optimizer = LBFGS(
            [weight, bias] if with_bias else [weight],
            max_iter=_MOST_ITERATIONS,
            tolerance_grad=_GRADIENT,
            tolerance_change=_CHANGE,
            history_size=_HISTORY,
            line_search_fn="strong_wolfe",
        )

        def penalised(optimizer: LBFGS = optimizer, l2: float = l2) -> Tensor:
            optimizer.zero_grad()
            loss = objective.total(inputs @ weight.t() + bias, labels, weights) / total + l2 / 2 * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(penalised)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            mean = float(objective.total(inputs @ weight.t() + bias, labels, weights) / total)
        yield Fitted(l2, weight.detach().clone(), bias.detach().clone(), mean)
