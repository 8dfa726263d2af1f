"""Selection of candidates by a group lasso on their filtered spikes, with column generation.

The selection only orders candidates, so it needs no certificate: a bounded number of proximal steps bounds the work on any data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..convex import Features, Problem, Start
from ..convex.solvers.proximal import accelerate
from ..errors import DataError
from ..networks.calls.calls import FilteredSpikes
from .hidden_task import HiddenTask, LayerWitnesses
from .samplers import LeakChoice
from .site import Candidates

_MAX_STEPS = 200  # proximal steps
_SETTLED = 3e-3  # relative decrease of the objective in ten steps below which they end
STRENGTH = 0.003  # share of the critical strength; where it uses too few candidates, a smaller one selects no better ones
_RATE_ROUNDING = 1e-6  # below a rate of one, by float32 sums, of a candidate that spikes at every step


def make_problem(task: HiddenTask, emitted: FilteredSpikes) -> Problem:
    """Return the group lasso of the temporary readout over candidates, each a group, without a strength."""
    temporary, rows = task.temporary, task.rows
    bias_column = temporary.bias_column(len(task.used_samples)) if task.net_map.readout.bias is not None else None
    weights = None if task.weights is None else temporary.take_rows(task.weights)[rows]
    features, targets = Features(emitted.features, bias_column, weights), temporary.take_rows(task.targets)[rows]
    return Problem(features, targets, loss=task.loss, penalty="group_l1", num_outputs=task.num_outputs)


@dataclass(frozen=True)
class Selection:
    """An order of the candidates, from an approximate solution."""

    order: Tensor  # (M,), most useful first: used candidates by size, then the others by price
    used: int  # number of candidates with a weight
    strength: float  # factor of the penalty
    objective: float  # of the group lasso

    def describe(
        self, rows: Candidates, leak: LeakChoice, *, name: str, width: int, simulated: int, dropped: dict[str, int]
    ) -> LayerWitnesses:
        """Return the outcome for a layer of a name that received some rows of this selection."""
        return LayerWitnesses(
            name=name,
            width=width,
            selected=len(rows),
            simulated=simulated,
            used=self.used,
            objective=self.objective,
            strength=self.strength,
            dropped=dropped,
            leaks=leak.count(rows.unit_values),
            note=leak.reason,
            kinds=rows.count_kinds(),
        )


def select(problem: Problem, max_steps: int = _MAX_STEPS) -> Selection:
    """Order the candidates by what they are worth to a group lasso, in a bounded number of proximal steps."""
    if float(problem.features.variance.max()) == 0:
        raise DataError("candidates that respond equally to every sample", "some that differ", "check the inputs")
    problem = problem.with_strength(STRENGTH * problem.critical_strength())
    columns = problem.features.columns(None, problem.working_dtype)
    weight, bias = (value.to(columns.dtype) for value in problem.zero_point())
    run, _ = accelerate(problem, columns, Start(weight, bias), max_steps, settled=_SETTLED)
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
