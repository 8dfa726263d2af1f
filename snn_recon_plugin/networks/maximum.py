"""Refine readouts that take the maximum over time on the net's true objective, by L-BFGS."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .readout import Readout

if TYPE_CHECKING:
    from ..convex import Loss, Penalty

_HISTORY = 10  # pairs of steps that L-BFGS keeps, each as large as the weight


def refine_maximum(
    spikes: Tensor,
    targets: Tensor,
    readout: Readout,
    weight: Tensor,
    bias: Tensor | None,
    *,
    loss: Loss,
    penalty: Penalty,
    strength: float,
    max_steps: int,
) -> tuple[Tensor, Tensor | None]:
    """Lower the true objective ``mean loss(max over time) + strength * penalty``; return weight and bias float32.

    It is not convex.  The line search accepts no point with a larger objective.  If the net puts a ``log_softmax`` on the maxima,
    they enter the loss without it: cross-entropy is the same for both.

    Args:
        spikes: ``[T, m, P]``, the values that enter the readout, see ``keep_spikes`` of :func:`~.capture.capture`.
        targets: ``[m, ...]``, prepared by the loss.
        readout: a majorised readout.
        weight: ``[C, P]``, the start.
        bias: ``[C]``, the start.
        loss: of the scores.
        penalty: of the weight, not sparse: its zeros would be lost.
        strength: the penalty's factor.
        max_steps: maximum number of L-BFGS steps.
    """
    values = spikes.float()
    point = [start.detach().float().clone().requires_grad_() for start in (weight, bias) if start is not None]
    optimizer = torch.optim.LBFGS(point, max_iter=max_steps, history_size=_HISTORY, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        scores = readout.response.membranes(nn.functional.linear(values, *point)).amax(0)
        value = loss.value(scores.double(), targets).mean() + strength * penalty.value(point[0].double())
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    found = [value.detach() for value in point]
    return found[0], None if bias is None else found[1]
