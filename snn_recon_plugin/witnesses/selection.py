"""Selection: a group lasso on the candidates' filtered spikes orders them, and a layer gets as many as it is wide.

An order needs no certificate.  Each program gets a bounded number of accelerated proximal steps from the solution before it, so
that the work is bounded whatever the data, and no other method takes over where steps are slow.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snn_recon_plugin.convex import Design, Loss, Problem
from snn_recon_plugin.convex.first_order import accelerate
from snn_recon_plugin.convex.state import working_dtype
from snn_recon_plugin.errors import DataError

from .simulate import Emitted

__all__ = ["Selected", "Selector", "usable"]

STEPS = 200  # proximal steps a program; small convolutions need more than 50 (benchmarks/selection_steps.py)
_SETTLED = 1e-3  # stop when ten steps lower the objective by a smaller share
_FIRST, _RATIO, _MOST = 0.003, 0.3, 3  # shares of the critical strength tried until enough candidates are used
_ALIKE = 1e-6


@dataclass(frozen=True)
class Selected:
    """An order of the candidates, from an approximate solution.

    Args:
        order: (M,), candidates from the most to the least wanted: used ones by size, then the others by price.
        used: how many have a weight.
        prices: (M,), ``||U' f|| / n`` over the strength; above 1 a candidate would lower the objective.
        dual: (n, C), the dual rows of the solution.
        strength: factor of the penalty.
        objective: of the group lasso.
        products: with all candidates, of all programs.
    """

    order: Tensor
    used: int
    prices: Tensor
    dual: Tensor
    strength: float
    objective: float
    products: int


class Selector:
    """Group lasso over candidates of one layer: one group a candidate and position, sizes taken over positions together.

    Args:
        targets: of the samples.
        loss: of the scores; smooth.
        num_outputs: C.
        bias_column: what one unit of bias adds to a score, of each row where that differs; None without a bias.
        weights: of the samples, or None.
        strength: factor of the penalty; None chooses it on the first pool, so that enough candidates are used, and keeps it.
        steps: proximal steps a program, at most.
        settled: stop when ten steps lower the objective by a smaller share of it.
    """

    def __init__(
        self,
        targets: Tensor,
        loss: Loss,
        num_outputs: int,
        bias_column: float | Tensor | None,
        weights: Tensor | None = None,
        *,
        strength: float | None = None,
        steps: int = STEPS,
        settled: float = _SETTLED,
    ) -> None:
        self._targets, self._loss, self._outputs = targets, loss, num_outputs
        self._column, self._weights = bias_column, weights
        self._steps, self._settled, self.strength = steps, settled, strength

    def select(self, emitted: Emitted, width: int) -> Selected:
        """Order the candidates; the first call lowers the strength until at least ``width`` candidates are used.

        Raises:
            DataError: no candidate tells samples apart.
        """
        problem = self._problem(emitted)
        if float(problem.design.variance.max()) == 0:
            raise DataError("candidates that all do the same for every sample", "some that differ", "check the inputs")
        top = problem.critical_strength()
        shares = [_FIRST * _RATIO**k for k in range(_MOST)] if self.strength is None else [self.strength / top]
        columns = problem.design.columns(None, working_dtype(problem))
        weight, bias = (value.to(columns.dtype) for value in problem.zero_point())
        step, products = None, 0
        for share in shares:
            here = problem.with_strength(share * top)
            run = accelerate(here, columns, weight, bias, self._steps, scale=step, settled=self._settled)
            weight, bias, step, products = run.weight, run.bias, run.scale, products + run.products
            sizes = self._sizes(weight.double(), emitted)
            if int((sizes > 0).sum()) >= width:
                break
        self.strength = here.strength
        point = here.evaluate(weight, bias)
        rows = self._loss.gradient(point.scores, here.targets)
        prices = self._prices(point.gradient, emitted)
        used = int((sizes > 0).sum())
        key = torch.where(sizes > 0, 1 + sizes / sizes.max(), prices.clamp_max(1.0) * (1 - 1e-9))
        order = key.argsort(descending=True, stable=True)
        return Selected(order, used, prices, rows, here.strength, point.objective, products)

    def price(self, emitted: Emitted, dual: Tensor) -> Tensor:
        """How much candidates violate the dual constraint of the last solution, in units of the strength, (M,).

        Args:
            emitted: of any candidates, used or not.
            dual: (n, C), from ``Selected``.
        """
        return self._prices(self._problem(emitted).design.adjoint(dual), emitted)

    def _prices(self, gradient: Tensor, emitted: Emitted) -> Tensor:
        assert self.strength is not None
        groups = gradient.norm(dim=0).reshape(emitted.features.shape[1:])
        prices: Tensor = groups.amax(1) / self.strength
        return prices

    def _sizes(self, weight: Tensor, emitted: Emitted) -> Tensor:
        sizes: Tensor = weight.norm(dim=0).reshape(emitted.features.shape[1:]).norm(dim=1)
        return sizes

    def _problem(self, emitted: Emitted) -> Problem:
        design = Design(emitted.features.flatten(1), self._column, self._weights)
        return Problem(design, self._targets, loss=self._loss, penalty="group_l1", num_outputs=self._outputs)


def usable(emitted: Emitted) -> tuple[Tensor, dict[str, int]]:
    """Indices of the candidates that carry something of their own, and how many are dead, always on, or doubles of others."""
    flat = emitted.features.flatten(2).movedim(1, 0).flatten(1)  # (M, n * G)
    dead, on = emitted.rate == 0, emitted.rate >= 1 - _ALIKE
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(flat.shape[1], 2, generator=generator, dtype=torch.float64).to(flat.device)
    prints = torch.cat([part.double() @ probe for part in torch.split(flat, 256)])
    _, inverse = torch.unique(prints, dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(flat), device=flat.device)
    first = first.scatter_reduce(0, inverse, torch.arange(len(flat), device=flat.device), "amin")
    double = first[inverse] != torch.arange(len(flat), device=flat.device)
    kept = ~(dead | on | double)
    counts = {"dead": int(dead.sum()), "always on": int(on.sum()), "double": int((double & ~dead & ~on).sum())}
    return kept.nonzero()[:, 0], counts
