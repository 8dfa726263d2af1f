"""First-order peers in PyTorch on one objective: FISTA for sparse penalties, L-BFGS for ridge.

They have no certificate of their own; the benchmark's gap, which costs them nothing, stops them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.process import Meter
from benchmarks.solvers.program import GOAL, Point, Program, Run

_STILL = 10  # certificates without a gain of a tenth: in float32 rounding, not slowness
_BOUNDS = {"cross_entropy": 0.5, "squared": 1.0}  # largest second derivatives of the losses
_CHUNK = 10  # L-BFGS steps between certificates
_PAUSE = 0.1  # of the seconds so far, between certificates of FISTA


class Objective:
    """Mean loss of scores and its gradient, on features without their means if ``centre``."""

    def __init__(self, program: Program, dtype: torch.dtype, centre: bool) -> None:
        self.loss, self.labels = program.loss, torch.from_numpy(program.labels)
        features = torch.from_numpy(program.features).to(dtype, copy=True)
        self.mean = features.mean(0) if centre else features.new_zeros(features.shape[1])
        self.features = features.sub_(self.mean) if centre else features
        self.hot = functional.one_hot(self.labels, program.outputs).to(features)

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

    def curvature(self, joint: bool) -> float:
        """Return the largest eigenvalue of the features' second moments, with the bias column if ``joint``."""
        weight, bias, top = torch.randn(self.features.shape[1], generator=torch.Generator().manual_seed(0)), float(joint), 1.0
        for _ in range(30):
            size = math.sqrt(float(weight.square().sum()) + bias**2)
            scores = self.features @ (weight / size).to(self.features) + bias / size
            weight, bias = scores @ self.features / len(scores), float(scores.mean()) * joint
            top = math.sqrt(float(weight.square().sum()) + bias**2)
        return 1.02 * top  # power iterations come from below


def fista(program: Program, meter: Meter, restart: bool) -> Run:
    """FISTA with the step 1/L, in float32 until it stands still or the gap is 1e-4, then in float64.

    Without ``restart`` as the paper has it: features as they are, one step for weights and bias.  With it on centred features, a
    step each for weights and bias, and a restart whenever the step turns against the last one.
    """
    meter.begin()
    start = torch.zeros(program.outputs, program.features.shape[1]), torch.zeros(program.outputs)
    for dtype, goal in ((torch.float32, 1e-4), (torch.float64, GOAL)):
        objective = Objective(program, dtype, centre=restart)
        steps = _fista_steps(program, objective, start, restart)
        start = yield from _until(objective, steps, meter, goal, lambda: _PAUSE * meter.elapsed)


def _fista_steps(
    program: Program, objective: Objective, start: tuple[Tensor, Tensor], restart: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    bends = [objective.curvature(joint=not restart)] * 2
    if restart:
        bends[1] = 1.0
    steps = [1 / (_BOUNDS[program.loss] * bend) for bend in bends]
    point = previous = tuple(part.to(objective.features) for part in start)
    momentum = 1.0
    while True:
        slope = objective.value_and_slope(objective.scores(*point))[1]
        slopes = slope.T @ objective.features, slope.sum(0)
        moved = [part - step * slope for part, step, slope in zip(point, steps, slopes, strict=True)]
        sizes = moved[0].abs() if program.penalty == "l1" else moved[0].norm(dim=0)
        moved[0] = moved[0] * (1 - steps[0] * program.strength / sizes.clamp_min(1e-30)).clamp_min(0)
        turns = sum(float(((point[k] - moved[k]) * (moved[k] - previous[k])).sum()) for k in range(2))
        if restart and turns > 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum * momentum)) / 2
        point = tuple(torch.lerp(previous[k], moved[k], 1 + (momentum - 1) / following) for k in range(2))
        previous, momentum = moved, following
        yield moved[0], moved[1]


def torch_lbfgs(program: Program, meter: Meter, dtype: torch.dtype, history: int) -> Run:
    """torch.optim.LBFGS with strong Wolfe conditions on centred features, certified every ten steps."""
    torch.optim.LBFGS([torch.zeros(1, requires_grad=True)]).step(lambda: torch.zeros(()))  # imports what it needs
    meter.begin()
    objective = Objective(program, dtype, centre=True)
    yield from _until(objective, _lbfgs_steps(program, objective, history), meter, GOAL, lambda: 0.0)


def _lbfgs_steps(program: Program, objective: Objective, history: int) -> Iterator[tuple[Tensor, Tensor]]:
    weight = objective.features.new_zeros(program.outputs, program.features.shape[1], requires_grad=True)
    bias = objective.features.new_zeros(program.outputs, requires_grad=True)
    options = {"history_size": history, "line_search_fn": "strong_wolfe", "tolerance_grad": 0.0, "tolerance_change": 0.0}
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_CHUNK, max_eval=10 * _CHUNK, **options)

    @torch.no_grad()
    def closure() -> Tensor:
        value, slope = objective.value_and_slope(objective.scores(weight, bias))
        weight.grad = torch.addmm(weight, slope.T, objective.features, beta=program.strength)
        bias.grad = slope.sum(0)
        return value + 0.5 * program.strength * weight.square().sum()

    while True:
        optimizer.step(closure)
        yield weight.detach(), bias.detach()


def _until(
    objective: Objective, steps: Iterator[tuple[Tensor, Tensor]], meter: Meter, goal: float, pause: Callable[[], float]
) -> Generator[Point, float, tuple[Tensor, Tensor]]:
    """Yield points, ``pause()`` seconds apart, until one has the goal or, in float32, the gap stands still; return the last one."""
    best, still, due = math.inf, 0, 0.0
    for weight, bias in steps:
        if meter.elapsed < due:
            continue
        gap = yield weight, bias.double() - weight.double() @ objective.mean.double(), {}
        best, still = (gap, 0) if gap < 0.9 * best else (best, still + 1)
        due = meter.elapsed + pause()
        if gap <= goal or (still >= _STILL and weight.dtype is torch.float32):
            break
    return weight, bias
