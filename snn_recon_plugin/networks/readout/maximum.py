"""Refine readouts that take the maximum over time on the net's true objective, by L-BFGS."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .readout import Readout

if TYPE_CHECKING:
    from ...convex import Loss, Penalty

_HISTORY = 10  # pairs of steps that L-BFGS keeps, each as large as the weight
_STEPS = 10  # of a block, after which held-out samples decide whether to go on
_PATIENCE = 3  # blocks in a row that do not lower the loss on held-out samples
REFINE_BLOCKS = 20  # bounds the work; held-out samples mostly end it before (benchmarks/studies/maximum.py has its cost)


@dataclass(frozen=True)
class MaximumObjective:
    """True objective of a majorised readout: ``mean loss(max over time) + strength * penalty``.

    If the net puts a ``log_softmax`` on the maxima, they enter the loss without it: cross-entropy is the same for both.
    """

    spikes: Tensor  # [T, m, P] float32, the values that enter the readout, see ActivityRecorder.spikes
    targets: Tensor  # [m, ...], prepared by the loss
    readout: Readout
    loss: Loss
    penalty: Penalty  # not sparse: its zeros would be lost
    strength: float

    def value(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the objective of a weight ``[C, P]`` and a bias ``[C]``."""
        scores = self.readout.response.membranes(nn.functional.linear(self.spikes, weight, bias)).amax(0)
        return self.loss.value(scores.double(), self.targets).mean() + self.strength * self.penalty.value(weight.double())


@dataclass(frozen=True)
class Refined:
    """A refined readout and the number of blocks of steps that it took."""

    weight: Tensor  # [C, P] float32
    bias: Tensor | None  # [C] float32
    blocks: int

    @property
    def point(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias."""
        return self.weight, self.bias


def refine_maximum(
    objective: MaximumObjective,
    weight: Tensor,
    bias: Tensor | None,
    blocks: int = REFINE_BLOCKS,
    loss: Callable[[Tensor, Tensor | None], float] | None = None,
) -> Refined:
    """Lower an objective from a start by L-BFGS, in blocks of 10 steps.

    It is not convex.  The line search accepts no point with a larger objective.

    Args:
        objective: to lower.
        weight: of the start, ``[C, P]``.
        bias: of the start, ``[C]``.
        blocks: their number; with ``loss`` the largest.
        loss: of a readout, on samples that the objective does not have.  The blocks end with the first one that does not lower it;
            the readout before that one is returned.
    """
    point = [start.detach().float().clone().requires_grad_() for start in (weight, bias) if start is not None]
    optimizer = torch.optim.LBFGS(point, max_iter=_STEPS, history_size=_HISTORY, line_search_fn="strong_wolfe")

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        value = objective.value(point[0], None if bias is None else point[1])
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def refined(taken: int) -> Refined:
        found = [value.detach().clone() for value in point]
        return Refined(found[0], None if bias is None else found[1], taken)

    best = refined(0)
    least = math.inf if loss is None else loss(best.weight, best.bias)
    for taken in range(1, blocks + 1):
        optimizer.step(evaluate)  # type: ignore[no-untyped-call]
        now = refined(taken)
        value = least if loss is None else loss(now.weight, now.bias)
        if loss is None or value < least:
            best, least = now, value
        elif taken - best.blocks == _PATIENCE:
            break
    return best
