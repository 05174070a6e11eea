"""Multinomial logistic regression by full-batch L-BFGS in float64, run to convergence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import LBFGS

from tlcli.training.engine.loss import Objective

_MOST_ITERATIONS = 300
_GRADIENT = 1e-6
"""Largest gradient of the mean loss at which the fit has converged."""
_CHANGE = 1e-10
_HISTORY = 20


@dataclass(frozen=True, eq=False)
class Fitted:
    """Fit with logits `x W^T + b`.

    l2: strength of the penalty. weight: float64 `[C, d]`. bias: float64 `[C]`. loss: mean loss in nats, without the penalty.
    """

    l2: float
    weight: Tensor
    bias: Tensor
    loss: float


def fit_logistic(
    inputs: Tensor, labels: Tensor, classes: int, strengths: Sequence[float], objective: Objective, with_bias: bool = True
) -> Iterator[Fitted]:
    """Minimise the mean objective plus `l2 / 2 * ||W||^2` for each strength, strongest first, each starting from the previous fit.

    This is scikit-learn's `LogisticRegression(C=1 / (n * l2))`. The problem is convex: the solution does not depend on the start.

    Args:
        inputs: float64 `[n, d]`.
        labels: int64 `[n]`.
        classes: C.
        strengths: positive L2 strengths.
        objective: loss to minimise; class weights, if any, in float64.
        with_bias: False keeps the bias at 0.
    """
    weight = inputs.new_zeros(classes, inputs.shape[1], requires_grad=True)
    bias = inputs.new_zeros(classes, requires_grad=with_bias)
    total = objective.weight(labels)
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
            loss = objective.total(inputs @ weight.t() + bias, labels) / total + l2 / 2 * weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(penalised)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            mean = float(objective.total(inputs @ weight.t() + bias, labels) / total)
        yield Fitted(l2, weight.detach().clone(), bias.detach().clone(), mean)
