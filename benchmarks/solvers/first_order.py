"""First-order peers in PyTorch on one objective: FISTA for sparse penalties, L-BFGS for ridge.

They have no certificate of their own; the benchmark's gap, which costs them nothing, stops them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from .cell import GOAL, Cell

__all__ = ["fista", "torch_lbfgs"]

_STILL = 10  # certificates without a gain of a tenth: in float32 rounding, not slowness
_BOUNDS = {"cross_entropy": 0.5, "squared": 1.0}  # largest second derivatives of the losses
_CHUNK = 10  # L-BFGS steps between certificates


class Objective:
    """Mean loss of scores and its gradient.

    Args:
        cell: the program.
        dtype: of all tensors.
        centre: subtract the features' means.
    """

    def __init__(self, cell: Cell, dtype: torch.dtype, centre: bool) -> None:
        self.loss, self.labels = cell.loss, torch.from_numpy(cell.labels)
        if centre:
            features, mean = (torch.from_numpy(part) for part in cell.centred())
        else:
            features, mean = torch.from_numpy(cell.features), torch.zeros(cell.features.shape[1])
        self.features, self.mean = features.to(dtype), mean.to(dtype)
        self.hot = functional.one_hot(self.labels, cell.outputs).to(dtype)

    def scores(self, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias, self.features, weight.T)

    def value_and_slope(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss and its gradient in the scores, (n, C)."""
        if self.loss == "cross_entropy":
            value, slope = functional.cross_entropy(scores, self.labels), scores.softmax(1) - self.hot
        elif self.loss == "squared":
            slope = scores - self.hot
            value = 0.5 * slope.square().sum() / len(scores)
        else:  # squared hinge, one against the rest
            signs = 2 * self.hot - 1
            lack = (1 - signs * scores).clamp_min(0)
            value, slope = 0.5 * lack.square().sum() / len(scores), -signs * lack
        return value, slope / len(scores)

    def gradient(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        slope = self.value_and_slope(self.scores(weight, bias))[1]
        return slope.T @ self.features, slope.sum(0)

    def curvature(self, joint: bool) -> float:
        """Return the largest eigenvalue of the features' second moments, with the bias column if ``joint``."""
        weight, bias, top = torch.randn(self.features.shape[1], generator=torch.Generator().manual_seed(0)), float(joint), 1.0
        for _ in range(30):
            size = math.sqrt(float(weight.square().sum()) + bias**2)
            scores = self.features @ (weight / size).to(self.features) + bias / size
            weight, bias = scores @ self.features / len(scores), float(scores.mean()) * joint
            top = math.sqrt(float(weight.square().sum()) + bias**2)
        return 1.02 * top  # power iterations come from below


def fista(cell: Cell, restart: bool) -> str:
    """FISTA with the step 1/L, in float32 until it stands still or the gap is 1e-4, then in float64.

    Without ``restart`` as the paper has it: features as they are, one step for weights and bias.  With it on centred features, a
    step each for weights and bias, and a restart whenever the step turns against the last one.
    """
    cell.ready(("torch", "numpy"))
    cell.begin()
    start = (torch.zeros(cell.outputs, cell.features.shape[1]), torch.zeros(cell.outputs))
    for dtype, goal in ((torch.float32, 1e-4), (torch.float64, GOAL)):
        objective = Objective(cell, dtype, centre=restart)
        steps = _fista_steps(cell, objective, start, restart)
        start, reason = _until(cell, objective, steps, goal, lambda: 0.1 * cell.spent()[0])
        if reason == "late":
            break
    return reason


def _fista_steps(cell: Cell, objective: Objective, start: tuple[Tensor, Tensor], restart: bool) -> Iterator[tuple[Tensor, Tensor]]:
    bends = [objective.curvature(joint=not restart)] * 2
    if restart:
        bends[1] = 1.0
    steps = [1 / (_BOUNDS[cell.loss] * bend) for bend in bends]
    point = previous = tuple(part.to(objective.features) for part in start)
    momentum = 1.0
    while True:
        slopes = objective.gradient(*point)
        moved = [part - step * slope for part, step, slope in zip(point, steps, slopes, strict=True)]
        moved[0] = _prox(moved[0], steps[0] * cell.strength, cell.penalty)
        turns = sum(float(((point[k] - moved[k]) * (moved[k] - previous[k])).sum()) for k in range(2))
        if restart and turns > 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum * momentum)) / 2
        point = tuple(torch.lerp(previous[k], moved[k], 1 + (momentum - 1) / following) for k in range(2))
        previous, momentum = moved, following
        yield moved[0], moved[1]


def _prox(weight: Tensor, step: float, penalty: str) -> Tensor:
    sizes = weight.abs() if penalty == "l1" else weight.norm(dim=0)
    return weight * (1 - step / sizes.clamp_min(1e-30)).clamp_min(0)


def torch_lbfgs(cell: Cell, dtype: torch.dtype, centre: bool, history: int) -> str:
    """Run torch.optim.LBFGS with strong Wolfe conditions, and certify every ten steps."""
    torch.optim.LBFGS([torch.zeros(1, requires_grad=True)]).step(lambda: torch.zeros(()))  # imports what it needs
    cell.ready(("torch", "numpy"))
    cell.begin()
    objective = Objective(cell, dtype, centre)
    return _until(cell, objective, _lbfgs_steps(cell, objective, history), GOAL, lambda: 0.0)[1]


def _lbfgs_steps(cell: Cell, objective: Objective, history: int) -> Iterator[tuple[Tensor, Tensor]]:
    weight = torch.zeros(cell.outputs, cell.features.shape[1], dtype=objective.features.dtype, requires_grad=True)
    bias = torch.zeros(cell.outputs, dtype=weight.dtype, requires_grad=True)
    options = {"history_size": history, "line_search_fn": "strong_wolfe", "tolerance_grad": 0.0, "tolerance_change": 0.0}
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_CHUNK, max_eval=10 * _CHUNK, **options)

    @torch.no_grad()
    def closure() -> Tensor:
        value, slope = objective.value_and_slope(objective.scores(weight, bias))
        weight.grad = torch.addmm(weight, slope.T, objective.features, beta=cell.strength)
        bias.grad = slope.sum(0)
        return value + 0.5 * cell.strength * weight.square().sum()

    while True:
        optimizer.step(closure)
        yield weight.detach(), bias.detach()


def _until(
    cell: Cell, objective: Objective, steps: Iterator[tuple[Tensor, Tensor]], goal: float, pause: Callable[[], float]
) -> tuple[tuple[Tensor, Tensor], str]:
    """Certify points, ``pause()`` seconds apart, until one has the goal, the time is over, or the gap stands still."""
    best, still, due = math.inf, 0, 0.0
    for count, (weight, bias) in enumerate(steps, 1):
        late = cell.late()
        if not late and cell.spent()[0] < due:
            continue
        shift = bias.double() - weight.double() @ objective.mean.double()
        gap = cell.report(weight, shift, setting=str(count))
        best, still = (gap, 0) if gap < 0.9 * best else (best, still + 1)
        due = cell.spent()[0] + pause()
        stands = still >= _STILL and weight.dtype is torch.float32
        if late or gap <= goal or stands:
            return (weight, bias), "late" if late else "reached" if gap <= goal else "stands still"
    raise AssertionError("steps never end")
