"""Selection of candidates by a group lasso of squares on their filtered spikes.

The selection only orders candidates, so it needs no certificate: a few ridges on one Gram matrix bound the work on any data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..convex import Features, Problem
from ..errors import DataError
from ..networks.calls.calls import FilteredSpikes
from .hidden_task import HiddenTask, LayerWitnesses, Squares
from .samplers import LeakChoice
from .site import Candidates

_ROUNDS = 7
_KEPT, _SPARE = 0.6, 1.3  # share of the candidates that a round keeps, and how many it must keep for each one needed
_FIRST_RIDGE = 0.03  # of the ridge that begins, in units of the candidates' mean variance
_UNUSED = 1e-4  # size of a weight over the largest below which it counts as zero
STRENGTH = 0.01  # share of the critical strength; where it uses too few candidates, a smaller one selects no better ones
_RATE_ROUNDING = 1e-6  # below a rate of one, by float32 sums, of a candidate that spikes at every step


def make_problem(task: HiddenTask, emitted: FilteredSpikes) -> Problem:
    """Return the group lasso of the temporary readout over candidates, each a group, without a strength."""
    temporary, rows = task.temporary, task.rows
    bias_column = temporary.bias_column(len(task.used_samples)) if task.net_map.readout.bias is not None else None
    weights = None if task.weights is None else temporary.take_rows(task.weights)[rows]
    features, targets = Features(emitted.features, bias_column, weights), temporary.take_rows(task.targets)[rows]
    return Problem(features, targets, loss=task.loss, penalty="group_l1", num_outputs=task.num_outputs)


def describe_selection(
    rows: Candidates, leak: LeakChoice, *, name: str, width: int, used: int, simulated: int, dropped: dict[str, int]
) -> LayerWitnesses:
    """Return the outcome for a layer of a name that received some rows of a selection."""
    return LayerWitnesses(
        name=name,
        width=width,
        selected=len(rows),
        simulated=simulated,
        used=used,
        dropped=dropped,
        leaks=leak.count(rows.unit_values),
        note=leak.reason,
        kinds=rows.count_kinds(),
    )


def select(problem: Problem, needed: int) -> tuple[Tensor, int]:
    """Order the candidates by what they are worth to a group lasso of squares, of which ``needed`` will be taken.

    Return the order (M,), those with a weight first, by its size, then the others by price; and how many have one.

    Each round is a ridge whose factors follow the sizes of the last round's weights, and drops the least ones.
    """
    if float(problem.features.variance.max()) == 0:
        raise DataError("candidates that respond equally to every sample", "some that differ", "check the inputs")
    squares = Squares(problem)
    values, least = squares.values, round(_SPARE * needed)
    strength = max(STRENGTH * float((values.T @ squares.left).norm(dim=1).max()), 1e-30)
    variance = float(values.square().sum(0).mean())
    sizes = squares.fit(_FIRST_RIDGE * variance, torch.ones_like(values[0])).norm(dim=1)
    for _ in range(_ROUNDS):
        order = sizes.argsort(descending=True, stable=True)
        sizes[order[max(least, int(_KEPT * int((sizes > 0).sum()))) :]] = 0.0
        weight = squares.fit(strength, sizes)
        sizes = weight.norm(dim=1)
    sizes[sizes < _UNUSED * sizes.max()] = 0.0
    prices = (values.T @ (squares.left - values @ weight)).norm(dim=1) / strength
    key = torch.where(sizes > 0, 1 + sizes / sizes.max(), prices.clamp_max(1.0) * (1 - 1e-6))
    return key.argsort(descending=True, stable=True), int((sizes > 0).sum())


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
