"""Refine readouts that take the maximum over time on the net's true objective, by L-BFGS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .readout import Readout

if TYPE_CHECKING:
    from ..convex import Loss, Penalty

_HISTORY = 10  # pairs of steps that L-BFGS keeps, each as large as the weight


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


def refine_maximum(
    objective: MaximumObjective, weight: Tensor, bias: Tensor | None, max_steps: int
) -> tuple[Tensor, Tensor | None]:
    """Lower an objective from a start by so many steps of L-BFGS; return weight and bias float32.

    It is not convex.  The line search accepts no point with a larger objective.
    """
    point = [start.detach().float().clone().requires_grad_() for start in (weight, bias) if start is not None]
    optimizer = torch.optim.LBFGS(point, max_iter=max_steps, history_size=_HISTORY, line_search_fn="strong_wolfe")

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        value = objective.value(point[0], None if bias is None else point[1])
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    optimizer.step(evaluate)  # type: ignore[no-untyped-call]
    found = [value.detach() for value in point]
    return found[0], None if bias is None else found[1]
