"""Selection of candidates by a group lasso on their filtered spikes, with column generation.

The selection only orders candidates, so it needs no certificate.  Each program gets a bounded number of accelerated proximal steps
from the previous solution, which bounds the work on any data.

Pricing: a candidate with filtered spikes f improves the program if and only if ``||U' f|| / n`` exceeds the strength.  U are the
dual rows of the solution.  Later rounds draw candidates in proportion to the samples' residuals, add those that improve
the program, and solve again.  Finally one more set is priced and not added: it measures how far the result is from optimal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..convex import Features, Loss, Problem
from ..convex.solvers.fista import accelerate
from ..errors import DataError
from .samplers import Sampler, draw_candidates
from .simulate import Emitted, Simulator
from .site import Candidates, LayerSite

__all__ = [
    "Drawn",
    "Pool",
    "RoundSizes",
    "Selection",
    "SelectionProgram",
    "find_usable",
    "generate_candidates",
    "price",
    "select",
]

MAX_STEPS = 200  # proximal steps a program; small convolutions need more than 50 (benchmarks/selection_steps.py)
_SETTLED = 1e-3  # stop when ten steps lower the objective by a smaller share
_FIRST_SHARE = 0.003  # strengths tried, as shares of the critical strength
_SHARE_RATIO = 0.3
_MAX_SHARES = 3
_SAME = 1e-6
_IMPROVES = 1 + 1e-3  # price above which a candidate improves the program; candidates in use have 1, up to the tolerance


@dataclass(frozen=True)
class SelectionProgram:
    """Group lasso over candidates: one group a candidate and position; a candidate's size is taken over all positions.

    Args:
        targets: of the samples.
        loss: smooth.
        num_outputs: C.
        bias_column: contribution of a unit of bias to each score; None without a bias.
        weights: of the samples, or None.
        strength: factor of the penalty; None lowers it until enough candidates are used.
        max_steps: bound on the proximal steps of one solve.
        settled: relative decrease of the objective in ten steps below which a solve stops.
    """

    targets: Tensor
    loss: Loss
    num_outputs: int
    bias_column: float | Tensor | None
    weights: Tensor | None = None
    strength: float | None = None
    max_steps: int = MAX_STEPS
    settled: float = _SETTLED

    def problem(self, emitted: Emitted) -> Problem:
        """Return the convex problem on some candidates, without a strength."""
        design = Features(emitted.features.flatten(1), self.bias_column, self.weights)
        return Problem(design, self.targets, loss=self.loss, penalty="group_l1", num_outputs=self.num_outputs)


@dataclass(frozen=True)
class Selection:
    """An order of the candidates, from an approximate solution.

    Args:
        order: (M,), most useful first: used candidates by size, then the others by price.
        used: number of candidates with a weight.
        prices: (M,), ``||U' f|| / n`` over the strength; a candidate above 1 would lower the objective.
        dual: (n, C), dual rows of the solution.
        strength: factor of the penalty.
        objective: of the group lasso.
        products: products with all candidates, over all programs.
    """

    order: Tensor
    used: int
    prices: Tensor
    dual: Tensor
    strength: float
    objective: float
    products: int


def select(program: SelectionProgram, emitted: Emitted, width: int) -> Selection:
    """Order the candidates, of which ``width`` are needed.

    Raises:
        DataError: all candidates respond equally to all samples.
    """
    problem = program.problem(emitted)
    if float(problem.features.variance.max()) == 0:
        raise DataError("candidates that respond equally to every sample", "some that differ", "check the inputs")
    critical = problem.critical_strength()
    shares = [_FIRST_SHARE * _SHARE_RATIO**k for k in range(_MAX_SHARES)]
    if program.strength is not None:
        shares = [program.strength / critical]
    columns = problem.features.columns(None, problem.working_dtype)
    weight, bias = (value.to(columns.dtype) for value in problem.zero_point())
    step, products = None, 0
    for share in shares:
        here = problem.with_strength(share * critical)
        run = accelerate(here, columns, weight, bias, program.max_steps, scale=step, settled=program.settled)
        weight = run.weight
        bias = run.bias
        step = run.scale
        products = products + run.products
        sizes = weight.double().norm(dim=0).reshape(emitted.features.shape[1:]).norm(dim=1)
        if int((sizes > 0).sum()) >= width:
            break
    point = here.evaluate(weight, bias)
    dual = program.loss.gradient(point.scores, here.targets)
    prices = _compute_prices(point.gradient, emitted, here.strength)
    used = int((sizes > 0).sum())
    key = torch.where(sizes > 0, 1 + sizes / sizes.max(), prices.clamp_max(1.0) * (1 - 1e-9))
    order = key.argsort(descending=True, stable=True)
    return Selection(order, used, prices, dual, here.strength, point.objective, products)


def price(program: SelectionProgram, emitted: Emitted, selection: Selection) -> Tensor:
    """Return the prices (M,) of any candidates against a solution; those above 1 violate its dual constraint."""
    return _compute_prices(program.problem(emitted).features.adjoint(selection.dual)[0], emitted, selection.strength)


def _compute_prices(gradient: Tensor, emitted: Emitted, strength: float) -> Tensor:
    prices: Tensor = gradient.norm(dim=0).reshape(emitted.features.shape[1:]).amax(1) / strength
    return prices


def find_usable(emitted: Emitted) -> tuple[Tensor, dict[str, int]]:
    """Return the indices of distinct candidates that are neither dead nor always on, and the numbers of the others."""
    flat = emitted.features.flatten(2).movedim(1, 0).flatten(1)  # (M, n * G)
    dead, on = emitted.rate == 0, emitted.rate >= 1 - _SAME
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


@dataclass(frozen=True)
class RoundSizes:
    """Numbers of candidates in the rounds of column generation.

    Args:
        count: candidates in all, without the final set that is only priced.
        width: candidates needed; the first round draws at least as many.
        rounds: 1 draws all candidates at once; more leave half of them to later rounds.
    """

    count: int
    width: int
    rounds: int

    @property
    def first(self) -> int:
        """Candidates of the first round."""
        return self.count if self.rounds == 1 else min(self.count, max(self.width, self.count - self.count // 2))

    @property
    def each(self) -> int:
        """Candidates of a later round."""
        return max(1, (self.count - self.first) // max(1, self.rounds - 1))

    @property
    def later(self) -> list[int]:
        """Candidates of every later round that still has some."""
        left = self.count - self.first
        return [min(self.each, left - start) for start in range(0, left, self.each)][: self.rounds - 1]


@dataclass(frozen=True)
class Drawn:
    """Candidates of one round.

    Args:
        candidates: the usable ones.
        emitted: their filtered spikes.
        simulated: number of candidates simulated.
        dropped: numbers of dead, always-on and double candidates.
    """

    candidates: Candidates
    emitted: Emitted
    simulated: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class Pool(Drawn):
    """Candidates of all rounds, with their selection.

    Args:
        selection: the last selection.
        violating: number of candidates in the final set that would improve the program.
        priced: size of the final set; 0 with a single round.
    """

    selection: Selection
    violating: int = 0
    priced: int = 0


def generate_candidates(
    site: LayerSite,
    simulator: Simulator,
    program: SelectionProgram,
    sampler: Sampler,
    sizes: RoundSizes,
    generator: torch.Generator,
) -> Pool:
    """Draw, simulate and select candidates.

    Raises:
        DataError: no candidate separates any samples.
        OptionError: a custom sampler returned candidates that the layer can't hold.
    """
    drawn = _draw(site, simulator, sampler, sizes.first, generator)
    if len(drawn.candidates) == 0:
        counts = ", ".join(f"{number} {name}" for name, number in drawn.dropped.items() if number)
        raise DataError(
            f"no candidates that tell samples apart: of {drawn.simulated}, {counts}",
            "some that spike for a part of the samples",
            "check the inputs and the labels, or pass hidden='rescale'",
        )
    pool = Pool(drawn.candidates, drawn.emitted, drawn.simulated, drawn.dropped, select(program, drawn.emitted, sizes.width))
    for size in sizes.later:
        drawn = _draw(site.weigh_by_dual(pool.selection.dual), simulator, sampler, size, generator, pool.simulated)
        pool = _extend(pool, drawn, program, sizes.width)
    if sizes.rounds == 1:
        return pool
    drawn = _draw(site.weigh_by_dual(pool.selection.dual), simulator, sampler, sizes.each, generator, pool.simulated)
    prices = price(program, drawn.emitted, pool.selection)
    violating = int((prices > _IMPROVES).sum())
    return replace(pool, dropped=_add_counts(pool.dropped, drawn.dropped), violating=violating, priced=len(prices))


def _draw(site: LayerSite, simulator: Simulator, sampler: Sampler, count: int, generator: torch.Generator, first: int = 0) -> Drawn:
    """Draw and simulate candidates, and drop unusable ones; ``first`` is the number of candidates drawn before."""
    candidates = draw_candidates(sampler, site, count, generator, first)
    emitted = simulator.run(candidates)
    usable, dropped = find_usable(emitted)
    return Drawn(candidates.take(usable), emitted.take(usable), len(candidates), dropped)


def _extend(pool: Pool, drawn: Drawn, program: SelectionProgram, width: int) -> Pool:
    """Add candidates that improve the program, or all of them while there are too few, and select again."""
    pool = replace(pool, simulated=pool.simulated + len(drawn.candidates), dropped=_add_counts(pool.dropped, drawn.dropped))
    wanted = torch.arange(len(drawn.candidates))
    if len(pool.candidates) >= width:
        wanted = (price(program, drawn.emitted, pool.selection) > _IMPROVES).nonzero()[:, 0]
    if len(wanted) == 0:
        return pool
    emitted = Emitted.join([pool.emitted, drawn.emitted.take(wanted)])
    same_strength = replace(program, strength=pool.selection.strength)
    return replace(
        pool,
        candidates=Candidates.join([pool.candidates, drawn.candidates.take(wanted)]),
        emitted=emitted,
        selection=select(same_strength, emitted, width),
    )


def _add_counts(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: number + other[name] for name, number in one.items()}
