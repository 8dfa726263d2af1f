"""Column generation: candidates in rounds, those of later rounds where the solution so far leaves residuals.

A candidate with filtered spikes f improves the program if and only if ``||U' f|| / n`` exceeds the strength, U being the dual rows
of the solution (pricing).  Each round draws candidates in proportion to the samples' residuals, adds those that violate, and
solves again.  In the end one more lot is priced and not added: what it violates is what the result can be said to be optimal
against, for the temporary readout on all candidates, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from snn_recon_plugin.errors import DataError, OptionError

from .samplers import Sampler
from .selection import Selected, Selector, usable
from .simulate import Emitted, Simulator
from .site import Candidates, Site

__all__ = ["Plan", "Pool", "drawn_rows", "generate"]

_VIOLATES = 1 + 1e-3  # a price above this; those of candidates in use are 1, up to the tolerance of the solve


@dataclass
class Pool:
    """The candidates of one layer and what is known of them.

    Args:
        candidates: all that are left.
        emitted: what they do.
        selected: the last selection.
        simulated: how many were simulated.
        dropped: how many were dead, always on, or doubles.
        violating: of ``priced`` fresh candidates drawn after the last solve, how many would improve the program.
        priced: how many those were.
    """

    candidates: Candidates
    emitted: Emitted
    selected: Selected
    simulated: int
    dropped: dict[str, int] = field(default_factory=dict)
    violating: int = 0
    priced: int = 0


@dataclass(frozen=True)
class Plan:
    """How many candidates come when.

    Args:
        count: how many are simulated in all, but for the last lot that is only priced.
        width: how many the layer needs; so many come at once at least.
        rounds: 1 draws all at once; with more, half of them are left to the later rounds.
    """

    count: int
    width: int
    rounds: int

    @property
    def first(self) -> int:
        """Of the first round."""
        return self.count if self.rounds == 1 else min(self.count, max(self.width, self.count - self.count // 2))

    @property
    def each(self) -> int:
        """Of every later round."""
        return max(1, (self.count - self.first) // (self.rounds - 1))


def generate(
    site: Site, simulator: Simulator, selector: Selector, sampler: Sampler, plan: Plan, generator: torch.Generator
) -> Pool:
    """Draws, simulates and selects candidates.

    Args:
        site: the layer.
        simulator: runs candidates.
        selector: solves the group lasso on them.
        sampler: where they come from.
        plan: how many of them, in which rounds.
        generator: for all that is random.

    Raises:
        DataError: no candidate tells samples apart.
        OptionError: a sampler of the user's own gives what the layer can't hold.
    """
    candidates = drawn_rows(sampler, site, plan.first, generator)
    emitted = simulator.run(candidates)
    kept, dropped = usable(emitted)
    if len(kept) == 0:
        counts = ", ".join(f"{number} {name}" for name, number in dropped.items() if number)
        raise DataError(
            f"no candidates that tell samples apart: of {len(candidates)}, {counts}",
            "some that spike for a part of the samples",
            "check the inputs and the labels, or pass hidden='rescale'",
        )
    selected = selector.select(emitted.take(kept), plan.width)
    pool = Pool(candidates.take(kept), emitted.take(kept), selected, len(candidates), dropped)
    left = plan.count - plan.first
    for _ in range(plan.rounds - 1):
        size = min(plan.each, left)
        if size > 0:
            left -= size
            fresh, fresh_emitted, prices = _priced(pool, site, simulator, selector, sampler, size, generator)
            pool.simulated += len(fresh)
            wanted = prices > _VIOLATES if len(pool.candidates) >= plan.width else torch.ones_like(prices, dtype=torch.bool)
            if bool(wanted.any()):
                index = wanted.nonzero()[:, 0]
                pool.candidates = Candidates.join([pool.candidates, fresh.take(index)])
                pool.emitted = Emitted.join([pool.emitted, fresh_emitted.take(index)])
                pool.selected = selector.select(pool.emitted, plan.width)
    if plan.rounds > 1:
        _, _, prices = _priced(pool, site, simulator, selector, sampler, plan.each, generator)
        pool.violating, pool.priced = int((prices > _VIOLATES).sum()), len(prices)
    return pool


def _priced(
    pool: Pool,
    site: Site,
    simulator: Simulator,
    selector: Selector,
    sampler: Sampler,
    count: int,
    generator: torch.Generator,
) -> tuple[Candidates, Emitted, Tensor]:
    """Fresh candidates, drawn by residual, those that carry something, and their prices against the last solution."""
    fresh = drawn_rows(sampler, site.after(pool.selected.dual), count, generator, pool.simulated)
    emitted = simulator.run(fresh)
    kept, dropped = usable(emitted)
    pool.dropped = {name: pool.dropped[name] + number for name, number in dropped.items()}
    return fresh.take(kept), emitted.take(kept), selector.price(emitted.take(kept), pool.selected.dual)


def drawn_rows(sampler: Sampler, site: Site, count: int, generator: torch.Generator, first: int = 0) -> Candidates:
    """What a sampler gives, refused where the layer can't hold it; ``first`` is the number of the first of them.

    The groups of a grouped convolution get equal shares.
    """
    sites = site.of_groups()
    parts = [_of_group(sampler, part, -(-count // len(sites)), generator) for part in sites]
    made = Candidates.join(parts)
    if len(made) == 0:
        raise DataError(
            "samples between which no candidates lie: those of different classes are the same",
            "samples of different classes that differ",
            "check the inputs and the labels, or pass hidden='rescale'",
        )
    units = (first + torch.arange(len(made), device=made.weight.device)) % max(1, site.units)
    return replace(made, units=units) if site.units else made


def _of_group(sampler: Sampler, site: Site, count: int, generator: torch.Generator) -> Candidates:
    """What a sampler gives for one group, or for a layer without."""
    made = sampler(site, count, generator)
    if not isinstance(made, Candidates):
        fix = "return Candidates(weight, bias) from the sampler"
        raise OptionError(f"a sampler that returns {type(made).__name__}", "Candidates", fix)
    device = site.inputs.device  # a sampler of the user's own draws on the generator's
    made = Candidates(made.weight.to(device), None if made.bias is None else made.bias.to(device))
    rows = None if made.bias is None else tuple(made.bias.shape)
    finite = bool(torch.isfinite(made.weight).all()) and (made.bias is None or bool(torch.isfinite(made.bias).all()))
    if made.weight.shape[1:] != site.row_shape or rows != ((len(made),) if site.has_bias else None) or not finite:
        raise OptionError(
            f"a sampler whose candidates have weights of shape {tuple(made.weight.shape)} and a bias of shape {rows}"
            + ("" if finite else ", not all finite"),
            f"(number, {', '.join(map(str, site.row_shape))}) and {'one bias each' if site.has_bias else 'bias=None'}",
            "return Candidates(weight, bias) of these shapes from the sampler",
        )
    if site.group is None:
        return made
    return replace(made, groups=torch.full((len(made),), site.group, device=device))
