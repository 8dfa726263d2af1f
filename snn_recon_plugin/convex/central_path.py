r"""The hinge with l1 as a linear program, by an interior-point method: tens of steps, where smoothings take many stages.

The signs are y, the row weights w, and the multipliers of the margins a in [0, w].  (W, b) and a are optimal for an output if

    1 - y (W phi + c b) = p - m,     sum_i y_i a_i phi_i = g,     sum_i y_i a_i c_i = 0,
    p (w - a) = 0,   m a = 0,   v+ (strength - g) = 0,   v- (strength + g) = 0,     W = v+ - v-,   p, m, v+, v- >= 0.

Mehrotra's predictor-corrector method follows the central path to this point from infeasible points.  A step costs one Cholesky
factor.  Its size is the number of features, or of samples if those are fewer.  Collinear features, and more features than samples,
cost nothing extra.  Outputs share neither a constraint nor a penalty, so each is a separate program.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from .columns import Columns
from .equations import Equations
from .margin import Hinge
from .penalties import L1, GroupL1
from .problem import Problem
from .solution import Outcome, Progress, Solution, TracePoint
from .work import Work, work_of

__all__ = ["is_linear_program", "solve_linear_program"]

_STEPS = 100  # an output; twenty to forty are usual
_INSIDE = 0.995  # share of the way to the boundary
_ROUNDS = 4  # certificates, each after steps to a tenth of the previous aim
# Regularisation of every row's multiplier, per unit of its weight.  Without it the equations lose all digits at vertices where more
# rows meet than there are features.  1e-4 limited the objective to six digits; 1e-6 and less took more steps.
_HOLD = 1e-5
_WORK = 1e11  # multiplications a step, all outputs: two seconds on 2 cores; larger programs are solved by smoothing


def is_linear_program(problem: Problem) -> bool:
    """Return True for a linear program that is small enough: hinge with l1, or with any norm of a single output.

    Rows in other processes, and outputs with different features, are left to the other solver.
    """
    rows, features = problem.design.num_samples, problem.design.num_features
    linear = isinstance(problem.penalty, L1) or (isinstance(problem.penalty, GroupL1) and problem.num_outputs == 1)
    small = float(rows) * features**2 * problem.num_outputs <= _WORK
    plain = problem.design.shared and not problem.design.shards.spread
    return type(problem.loss) is Hinge and linear and small and plain


def solve_linear_program(
    problem: Problem,
    *,
    tol: float = 1e-6,
    time_limit: float = math.inf,
    progress: Progress | None = None,
    work: Work | None = None,
) -> Solution:
    """Solve hinge with l1 to a relative gap of ``tol``; arguments as for ``solve_native``.

    ``iterations`` counts the steps of all outputs together.
    """
    began, work = time.perf_counter(), work or work_of(problem)
    deadline = began + time_limit
    paths, iterations = [_Path(problem, output) for output in range(problem.num_outputs)], 0
    best, dual = problem.primal(*problem.zero_point()), 0.0  # no loss is below zero
    trace = list[TracePoint]()
    outcome = Outcome.STALLED
    aim = 0.1 * tol * problem.zero_loss / len(paths)
    for _ in range(_ROUNDS):
        steps = [path.follow(aim, deadline, work) for path in paths]
        dual = max(dual, _lower_bound(problem, paths))
        best = min(best, _point(problem, paths), key=lambda point: point[0])
        narrow = [_Path(problem, output, path.used()) for output, path in enumerate(paths)]
        steps += [path.follow(aim, deadline, work) for path in narrow]
        dual, sparse = max(dual, _lower_bound(problem, narrow)), _point(problem, narrow)
        if sparse[0] <= best[0] or sparse[0] - dual <= tol * problem.zero_loss:
            best = sparse
        iterations += sum(steps)
        relative = (best[0] - dual) / problem.zero_loss
        trace.append(TracePoint(time.perf_counter() - began, best[0], relative, int((best[1] != 0).any(0).sum())))
        if progress is not None:
            progress(trace[-1])
        if relative <= tol or time.perf_counter() > deadline or work.over:
            stopped = Outcome.WORK_LIMIT if work.over else Outcome.TIME_LIMIT
            outcome = Outcome.CONVERGED if relative <= tol else stopped
            break
        aim *= 0.1
    certificate = problem.certificate(best[0], dual, tol)
    seconds, trail = time.perf_counter() - began, tuple(trace)
    return Solution(best[1], best[2], certificate, outcome, "native", iterations, seconds, trail, work.done)


def _point(problem: Problem, paths: list[_Path]) -> tuple[float, Tensor, Tensor]:
    """Return objective, weight and bias at the current points of the paths; the bias is exact for the weight."""
    weight, shift = torch.stack([path.weight for path in paths]), torch.stack([path.bias for path in paths])
    return problem.primal(weight, shift - weight @ problem.design.mean)


def _lower_bound(problem: Problem, paths: list[_Path]) -> float:
    """Return the largest dual value of the paths' multipliers, over all known ways to make them feasible."""
    _, weight, bias = _point(problem, paths)
    rows = torch.stack([path.rows for path in paths], 1)
    return max(problem.lower_bound(rows, weight, bias), problem.evaluate(weight, bias).dual)


class _Path:
    """Current point of one output on the central path.

    Columns have unit size.  Rows of weight zero and columns of size zero are left out.  Names correspond to the module's symbols:
    ``dual`` is a, ``room`` is w - a, ``above`` is p, ``below`` m; ``plus`` and ``minus`` are v+ and v-, ``high`` and ``low`` are
    strength - g and strength + g.
    """

    def __init__(self, problem: Problem, output: int, features: Tensor | None = None) -> None:
        design = problem.design
        self.design = design
        self.kept = (design.row_weights > 0).nonzero()[:, 0]
        self.alive = (design.variance > 0).nonzero()[:, 0] if features is None else features
        self.inverse = design.variance[self.alive].rsqrt()
        matrix = design.features
        matrix = matrix if len(self.alive) == design.num_features else matrix[:, self.alive]
        matrix = matrix if len(self.kept) == design.num_samples else matrix[self.kept]
        column, self.mass = design.bias_column[self.kept], design.row_weights[self.kept]
        self.columns = Columns(matrix, design.mean[self.alive], column, torch.ones_like(column))
        self.sign = problem.targets[self.kept, output].double()
        self.most = problem.strength * self.inverse
        self.steps, self.stuck = 0, False
        zero, one = torch.zeros_like(self.inverse), torch.ones_like(self.sign)
        self.plus = zero + 1
        self.minus = zero + 1
        self.low = self.most.clone()
        self.high = self.most.clone()
        self.dual = 0.5 * self.mass
        self.room = 0.5 * self.mass
        self.above = 1.5 * one
        self.below = 0.5 * one
        self.bias = zero.new_zeros(())
        self._look()

    def _look(self) -> None:
        """Update the residuals of the equations, and the path's own gap estimate: complementarity plus residuals."""
        self.lack = 1 - self.sign * self._scores(self.plus - self.minus, self.bias) - self.above + self.below
        pull, self.pull_bias = self._adjoint(self.sign * self.dual)
        self.slack = pull - 0.5 * (self.low - self.high)
        self.apart = float(self.above @ self.room + self.below @ self.dual + self.plus @ self.high + self.minus @ self.low)
        outside = float((self.slack.abs() / self.most).max()) if len(self.most) else 0.0
        self.left = self.apart + float(self.mass @ self.lack.abs()) + outside * float(self.dual.sum())

    @property
    def rows(self) -> Tensor:
        """Dual variable of every row, (n,), per unit of the row's weight."""
        return torch.zeros_like(self.design.row_weights).index_copy_(0, self.kept, -self.sign * self.dual / self.mass)

    @property
    def weight(self) -> Tensor:
        """Weights (P,) for features as given; the path ends in the interior, so none is exactly zero."""
        full = torch.zeros_like(self.design.mean)
        return full.index_copy_(0, self.alive, (self.plus - self.minus) * self.inverse)

    def used(self) -> Tensor:
        """Return the features (K,) whose weight is further from zero than the multiplier from its bound, each on its own scale."""
        size = (self.plus - self.minus).abs()
        largest = size.max() if len(size) else 0.0
        return self.alive[size * self.most >= torch.minimum(self.low, self.high) * largest]

    def follow(self, aim: float, deadline: float, work: Work) -> int:
        """Take steps until ``left`` is at most ``aim``, progress stops, or time or work runs out; return their number."""
        before = self.steps
        while self.left > aim and not self.stuck and self.steps < _STEPS and time.perf_counter() < deadline and not work.over:
            self._step()
            self.steps += 1
            work.add_inverse(min(len(self.alive), len(self.kept)))
        return self.steps - before

    def _scores(self, weight: Tensor, bias: Tensor) -> Tensor:
        return self.columns.scores((weight * self.inverse)[None], bias[None])[:, 0]

    def _adjoint(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        weight, bias = self.columns.adjoint(rows[:, None])
        return weight[0] * self.inverse, bias[0] if self.design.has_bias else torch.zeros_like(bias[0])

    def _step(self) -> None:
        """Take a predictor and a corrector step with one factor for both."""
        count = 2 * (len(self.sign) + len(self.inverse))
        stiff = self.above / self.room + self.below / self.dual + _HOLD / self.mass
        give = self.plus / self.high + self.minus / self.low
        equations = Equations(self.columns, self.inverse, stiff, give, self.design.has_bias)
        now = self.apart / count
        products = [-self.above * self.room, -self.below * self.dual, -self.plus * self.high, -self.minus * self.low]
        moves = self._moves(equations, products)
        primal, dual = self._lengths(moves)
        after = sum(float((a + primal * da) @ (b + dual * db)) for (a, da), (b, db) in self._pairs(moves)) / count
        centre = (max(after, 0.0) / now) ** 3 * now
        second = [da * db for (_, da), (_, db) in self._pairs(moves)]
        products = [product + centre - more for product, more in zip(products, second, strict=True)]
        moves = self._moves(equations, products)
        primal, dual = (min(1.0, _INSIDE * length) for length in self._lengths(moves))
        if not (math.isfinite(primal) and math.isfinite(dual)) or max(primal, dual) < 1e-10:
            self.stuck = True
            return
        self.bias = self.bias + primal * moves["bias"]
        for name in ("above", "below", "plus", "minus"):
            setattr(self, name, getattr(self, name) + primal * moves[name])
        for name in ("dual", "room", "high", "low"):
            setattr(self, name, getattr(self, name) + dual * moves[name])
        self._look()

    def _moves(self, equations: Equations, products: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return Newton's step for the residuals and the given targets of the complementarity products."""
        above, below, plus, minus = products
        bent = self.lack - above / self.room + below / self.dual
        drawn = plus / self.high - minus / self.low
        right, right_bias = self._adjoint(self.sign * bent / equations.stiff)
        weight, bias = equations.solve(right + self.slack + drawn / equations.give, right_bias + self.pull_bias)
        dual = (bent - self.sign * self._scores(weight, bias)) / equations.stiff
        pulled = (weight - drawn) / equations.give
        return {
            "bias": bias,
            "dual": dual,
            "room": -dual,
            "above": (above + self.above * dual) / self.room,
            "below": (below - self.below * dual) / self.dual,
            "low": pulled,
            "high": -pulled,
            "plus": (plus + self.plus * pulled) / self.high,
            "minus": (minus - self.minus * pulled) / self.low,
        }

    def _pairs(self, moves: dict[str, Tensor]) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
        """Return the complementary pairs, each value with its move: the primal one first, the dual one second."""
        names = (("above", "room"), ("below", "dual"), ("plus", "high"), ("minus", "low"))
        return [((getattr(self, a), moves[a]), (getattr(self, b), moves[b])) for a, b in names]

    def _lengths(self, moves: dict[str, Tensor]) -> tuple[float, float]:
        """Return the longest steps, at most 1, that keep the primal and the dual point in the interior."""
        pairs = self._pairs(moves)
        return min(_reach(*a) for a, _ in pairs), min(_reach(*b) for _, b in pairs)


def _reach(value: Tensor, move: Tensor) -> float:
    ratios = -value / torch.where(move < 0, move, -torch.inf)
    return float(torch.cat([torch.where(move < 0, ratios, torch.inf), ratios.new_ones(1) / _INSIDE]).min())
