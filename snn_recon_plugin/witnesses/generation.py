"""Column generation: candidates in rounds, those of later rounds where the solution so far leaves residuals.

A candidate with filtered spikes f improves the program if and only if ``||U' f|| / n`` exceeds the strength, U being the dual rows
of the solution (pricing).  Each round draws candidates in proportion to the samples' residuals, adds those that violate, and
solves again.  What a last fresh lot still violates is what the result can be said to be optimal against, and no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from snn_recon_plugin.errors import DataError, OptionError

from .samplers import Sampler
from .selection import Selected, Selector, usable
from .simulate import Emitted, Simulator
from .site import Candidates, Site

__all__ = ["Pool", "generate"]


@dataclass
class Pool:
    """The candidates of one layer and what is known of them.

    Args:
        candidates: all that are left.
        emitted: what they do.
        selected: the last selection.
        simulated: how many were simulated.
        dropped: how many were dead, always on, or doubles.
        violating: of the last ``priced`` fresh candidates, how many would still improve the program.
        priced: how many those were.
    """

    candidates: Candidates
    emitted: Emitted
    selected: Selected
    simulated: int
    dropped: dict[str, int] = field(default_factory=dict)
    violating: int = 0
    priced: int = 0


def generate(
    site: Site,
    simulator: Simulator,
    selector: Selector,
    sampler: Sampler,
    *,
    count: int,
    width: int,
    rounds: int,
    generator: torch.Generator,
) -> Pool:
    """Draws, simulates and selects candidates.

    Args:
        site: the layer.
        simulator: runs candidates.
        selector: solves the group lasso on them.
        sampler: where they come from.
        count: how many are simulated in all.
        width: how many the layer needs.
        rounds: 1 draws all at once; more leave an equal part of them to each later round.
        generator: for all that is random.
    """
    each = max(1, count // (2 * (rounds - 1))) if rounds > 1 else 0
    first = count - each * (rounds - 1)
    candidates = _drawn(sampler, site, first, generator)
    emitted = simulator.run(candidates)
    kept, dropped = usable(emitted)
    if len(kept) == 0:
        counts = ", ".join(f"{number} {name}" for name, number in dropped.items() if number)
        raise DataError(
            f"no candidates that tell samples apart: of {len(candidates)}, {counts}",
            "some that spike for a part of the samples",
            "check the inputs and the labels, or pass hidden='rescale'",
        )
    pool = Pool(candidates.take(kept), emitted.take(kept), selector.select(emitted.take(kept), width), len(candidates), dropped)
    for _ in range(rounds - 1):
        _round(pool, site, simulator, selector, sampler, each, width, generator)
    return pool


def _round(
    pool: Pool,
    site: Site,
    simulator: Simulator,
    selector: Selector,
    sampler: Sampler,
    each: int,
    width: int,
    generator: torch.Generator,
) -> None:
    """One round: fresh candidates by residual, those that violate added, solved again."""
    fresh = _drawn(sampler, site.weighted_by(residuals(pool.selected)), each, generator)
    emitted = simulator.run(fresh)
    kept, dropped = usable(emitted)
    prices = selector.price(emitted.take(kept), pool.selected.dual)
    violating = kept[prices > 1]
    pool.simulated += len(fresh)
    pool.violating, pool.priced = len(violating), len(fresh)
    pool.dropped = {name: pool.dropped[name] + count for name, count in dropped.items()}
    if len(violating) == 0:
        return
    pool.candidates = Candidates.join([pool.candidates, fresh.take(violating)])
    pool.emitted = Emitted.join([pool.emitted, emitted.take(violating)])
    pool.selected = selector.select(pool.emitted, width)


def _drawn(sampler: Sampler, site: Site, count: int, generator: torch.Generator) -> Candidates:
    """What a sampler gives, refused where the layer can't hold it."""
    made = sampler(site, count, generator)
    if len(made) == 0:
        raise DataError(
            "samples between which no candidates lie: those of different classes are the same",
            "samples of different classes that differ",
            "check the inputs and the labels, or pass hidden='rescale'",
        )
    rows = None if made.bias is None else tuple(made.bias.shape)
    finite = bool(torch.isfinite(made.weight).all()) and (made.bias is None or bool(torch.isfinite(made.bias).all()))
    if made.weight.shape[1:] != site.row_shape or rows != ((len(made),) if site.has_bias else None) or not finite:
        raise OptionError(
            f"a sampler whose candidates have weights of shape {tuple(made.weight.shape)} and a bias of shape {rows}"
            + ("" if finite else ", not all finite"),
            f"(number, {', '.join(map(str, site.row_shape))}) and {'one bias each' if site.has_bias else 'bias=None'}",
            "return Candidates(weight, bias) of these shapes from the sampler",
        )
    return made


def residuals(selected: Selected) -> Tensor:
    """How far each sample is from being fitted, (n,)."""
    sizes: Tensor = selected.dual.norm(dim=1)
    return sizes
