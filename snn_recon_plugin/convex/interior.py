r"""Exact bias of the multi-class margin loss by an interior-point method: a linear program with one unknown a class.

The weights are fixed.  Every pair of a sample i and a wrong class k has a lack ``t_ik + c_i (b_k - b_y)`` and a dual variable a_ik:

    minimise over b    sum_ik w_i max_a { a (t_ik + c_i (b_k - b_y)) - q/2 (a - A_ik)^2 : 0 <= a <= u },

q = 0 for the loss itself, positive for its smoothings.  If q is small, semismooth Newton steps zigzag between the kinks.  The
central path does not, and costs a C x C system a step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .curvature import Coupling, Curvature

__all__ = ["pairs_bias"]

_STEPS = 100  # twenty to forty are usual
_CENTRING = 0.1  # target complementarity over the last point's
_INSIDE = 0.99  # share of the way to the boundary


def pairs_bias(column: Tensor, weights: Tensor, lack: Tensor, targets: Tensor, bend: float, most: float) -> Tensor:
    """Return the minimiser b (C,), with sum zero, of the module's program.

    Args:
        column: c, (n,).
        weights: w, (n,).
        lack: ``t + q A``, (n, C), of any value at the right class.
        targets: y, (n,).
        bend: q.
        most: u.
    """
    rows = (weights * column != 0).nonzero()[:, 0]
    column = column[rows, None]
    weights = weights[rows, None]
    targets = targets[rows]
    wrong = torch.ones_like(lack[rows]).scatter(1, targets[:, None], 0.0)
    lack = torch.where(wrong > 0, lack[rows], 0.0)
    scale = max(1e-300, float(lack.abs().max()), bend * most)
    bias = lack.new_zeros(lack.shape[1])
    dual = torch.full_like(lack, 0.5 * most)
    # Multipliers of a <= u and of a >= 0.
    above, below = lack.clamp_min(0) + 0.1 * scale, (-lack).clamp_min(0) + 0.1 * scale
    pairs = float(wrong.sum())
    for _ in range(_STEPS):
        room = most - dual
        together = float(((above * room + below * dual) * wrong).sum()) / (2 * pairs)
        if together <= 1e-15 * most * scale:
            break
        aim = _CENTRING * together
        pull = lack + column * (bias - bias[targets, None]) - bend * dual - aim / room + aim / dual
        stiff = bend + above / room + below / dual
        moved = wrong * weights * column * (dual + pull / stiff)
        slope = moved.sum(0).index_add(0, targets, -moved.sum(1))
        step = -(torch.linalg.pinv(_matrix(wrong * weights * column.square() / stiff, targets), rtol=1e-14, hermitian=True) @ slope)
        change = (pull + column * (step - step[targets, None])) / stiff
        change_above = (aim + above * change) / room - above
        change_below = (aim - below * change) / dual - below
        moves = ((dual, change), (room, -change), (above, change_above), (below, change_below))
        length = min(1.0, *(_INSIDE * _reach(value, by, wrong) for value, by in moves))
        bias, dual = bias + length * step, dual + length * change
        above, below = above + length * change_above, below + length * change_below
        if not bool(torch.isfinite(bias).all()):
            return torch.zeros_like(bias)
    return bias


def _matrix(bends: Tensor, targets: Tensor) -> Tensor:
    """Return ``sum_ik bends_ik (e_k - e_y)(e_k - e_y)'``, (C, C)."""
    whole = Curvature(bends.scatter(1, targets[:, None], bends.sum(1, keepdim=True)), coupling=Coupling(bends, targets))
    return whole.weighted_sum(torch.ones_like(bends[:, 0]))


def _reach(value: Tensor, change: Tensor, wrong: Tensor) -> float:
    """Return the longest step that keeps ``value + step * change`` at zero or more."""
    falling = (change < 0) & (wrong > 0)
    return float(torch.where(falling, -value / torch.where(falling, change, -1.0), torch.inf).min())
