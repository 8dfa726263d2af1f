"""Selection of candidates by a group lasso on their filtered spikes, with column generation.

The selection only orders candidates, so it needs no certificate: a bounded number of proximal steps bounds the work on any data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..convex import Features, Loss, Problem, Start
from ..convex.solvers.proximal import accelerate
from ..errors import DataError
from ..networks.calls.calls import FilteredSpikes
from .hidden_task import HiddenTask

_MAX_STEPS = 200  # proximal steps
STRENGTH = 0.003  # share of the critical strength; where it uses too few candidates, a smaller one selects no better ones
_RATE_ROUNDING = 1e-6  # below a rate of one, by float32 sums, of a candidate that spikes at every step


@dataclass(frozen=True)
class SelectionProgram:
    """Group lasso over candidates, each a group."""

    targets: Tensor
    loss: Loss  # smooth
    num_outputs: int
    bias_column: float | Tensor | None  # contribution of a unit of bias to each score; None without a bias
    weights: Tensor | None = None  # of the samples
    strength: float | None = None  # factor of the penalty; None takes a small share of the critical one
    max_steps: int = _MAX_STEPS  # bound on the proximal steps
    settled: float = 3e-3  # relative decrease of the objective in ten steps below which they end

    def problem(self, emitted: FilteredSpikes) -> Problem:
        """Return the convex problem on some candidates, without a strength."""
        features = Features(emitted.features, self.bias_column, self.weights)
        return Problem(features, self.targets, loss=self.loss, penalty="group_l1", num_outputs=self.num_outputs)


def make_program(task: HiddenTask) -> SelectionProgram:
    """Return the group lasso of the temporary readout."""
    temporary, rows = task.temporary, task.rows
    bias_column = temporary.bias_column(len(task.used_samples)) if task.net_map.readout.bias is not None else None
    weights = None if task.weights is None else temporary.take_rows(task.weights)[rows]
    return SelectionProgram(temporary.take_rows(task.targets)[rows], task.loss, task.num_outputs, bias_column, weights)


@dataclass(frozen=True)
class Selection:
    """An order of the candidates, from an approximate solution."""

    order: Tensor  # (M,), most useful first: used candidates by size, then the others by price
    used: int  # number of candidates with a weight
    strength: float  # factor of the penalty
    objective: float  # of the group lasso


def select(program: SelectionProgram, emitted: FilteredSpikes) -> Selection:
    """Order the candidates by what they are worth to the program."""
    problem = program.problem(emitted)
    if float(problem.features.variance.max()) == 0:
        raise DataError("candidates that respond equally to every sample", "some that differ", "check the inputs")
    problem = problem.with_strength(STRENGTH * problem.critical_strength() if program.strength is None else program.strength)
    columns = problem.features.columns(None, problem.working_dtype)
    weight, bias = (value.to(columns.dtype) for value in problem.zero_point())
    run, _ = accelerate(problem, columns, Start(weight, bias), program.max_steps, settled=program.settled)
    sizes = run.weight.double().norm(dim=0)
    point = problem.evaluate(run.weight, run.bias)
    prices = point.gradient.norm(dim=0) / problem.strength
    key = torch.where(sizes > 0, 1 + sizes / sizes.max(), prices.clamp_max(1.0) * (1 - 1e-9))
    order = key.argsort(descending=True, stable=True)
    return Selection(order, int((sizes > 0).sum()), problem.strength, point.objective)


def find_usable(emitted: FilteredSpikes) -> tuple[Tensor, dict[str, int]]:
    """Return the indices of distinct candidates that are neither dead nor always on, and the numbers of the others."""
    flat = emitted.features.T
    dead, on = emitted.rate == 0, emitted.rate >= 1 - _RATE_ROUNDING
    # Two random projections identify candidates with the same features.
    generator = torch.Generator().manual_seed(0)
    projections = torch.randn(flat.shape[1], 2, generator=generator, dtype=torch.float64).to(flat.device)
    projected = torch.cat([part.double() @ projections for part in torch.split(flat, 256)])
    _, inverse = torch.unique(projected, dim=0, return_inverse=True)
    index = torch.arange(len(flat), device=flat.device)
    first = torch.full((int(inverse.max()) + 1,), len(flat), device=flat.device).scatter_reduce(0, inverse, index, "amin")
    double = first[inverse] != index
    usable = ~(dead | on | double)
    counts = {"dead": int(dead.sum()), "always on": int(on.sum()), "double": int((double & ~dead & ~on).sum())}
    return usable.nonzero()[:, 0], counts
