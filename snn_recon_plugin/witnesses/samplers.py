"""Where candidates come from.  A sampler is any function ``(site, count, generator) -> Candidates``.

All but "own" and "relays" measure currents in units of the neuron, see ``boundaries``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from snn_recon_plugin.errors import OptionError

from .boundaries import between, rows_at
from .gaussians import gaussian, gaussian_normalised, gaussian_orthogonal, gaussian_standard
from .site import Candidates, Site

__all__ = [
    "SAMPLERS",
    "Sampler",
    "codes",
    "dual_codes",
    "gaussian",
    "gaussian_normalised",
    "gaussian_orthogonal",
    "gaussian_standard",
    "mixed",
    "own",
    "pairs",
    "relays",
    "sampler_of",
    "traces",
]

Sampler = Callable[[Site, int, torch.Generator], Candidates]

_RIDGE = 1e-2  # of the mean variance
_SHARE = 0.5  # of the inputs, and of the classes, that a class-code neuron looks at


def own(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """The layer's own rows, as they are; ``count`` of them at the most."""
    del generator
    rows = site.own_rows
    return rows.take(torch.arange(min(count, len(rows)), device=rows.weight.device))


def pairs(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """Directions from a sample of one class to one of another, the boundary half-way between the two."""
    first, second = site.draw(count, generator)
    return between(site, site.points(first, generator), site.points(second, generator), generator)


def traces(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """Pairs of what the neuron remembers at a step, drawn by chance, rather than of averages over time.

    For samples whose classes differ in when things happen.  As ``pairs`` where inputs are not recorded over time (convolutions,
    stages between synapse and neuron) or don't change.
    """
    if site.over_time is None or len(site.over_time) == 1:
        return pairs(site, count, generator)
    first, second = site.draw(count, generator)
    steps = torch.randint(len(site.over_time), (len(first),), generator=generator).to(first.device)
    return between(site, site.traces(first, steps), site.traces(second, steps), generator)


def codes(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """Neurons that tell some classes from some others: a ridge regression each, on some of the inputs.

    The code of a neuron is drawn by chance: +1 for some classes, -1 for others, and the rest play no part.  Fits of all classes on
    all inputs would be combinations of as few directions as there are classes; by leaving out some of both they differ.
    Only for layers with one weight matrix.
    """
    labels = site.labels
    classes = torch.unique(labels)
    if len(classes) < 2 or site.is_convolution:
        return pairs(site, count, generator)
    hot = (labels[:, None] == classes).double()
    return _fitted(site, hot @ _codes(len(classes), count, generator).to(hot).T, generator)  # (n, count): -1, 0 and 1


def dual_codes(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """Neurons that follow what the solution so far leaves: ridge regressions on random mixtures of its dual rows.

    For rounds of column generation; as ``codes`` before there is a solution.
    """
    if site.dual is None or site.is_convolution:
        return codes(site, count, generator)
    dual = site.dual.double()
    return _fitted(site, dual @ torch.randn(dual.shape[1], count, generator=generator, dtype=torch.float64).to(dual), generator)


def _fitted(site: Site, target: Tensor, generator: torch.Generator) -> Candidates:
    """A neuron for each column of the target (n, count), high where that is positive and low where it is negative."""
    inputs, count = site.inputs.flatten(1).double(), target.shape[1]
    mean = inputs.mean(0)
    centred = inputs - mean
    width = inputs.shape[1]
    gram, right = centred.T @ centred / len(inputs), centred.T @ target / len(inputs)
    ridge = max(_RIDGE * float(gram.diagonal().mean()), 1e-12)
    directions = inputs.new_zeros(count, width)
    for k in range(count):
        kept = (torch.rand(width, generator=generator) < _SHARE).nonzero()[:, 0].to(inputs.device)
        part = gram[kept][:, kept]
        part.diagonal().add_(ridge)
        directions[k, kept] = torch.linalg.solve(part, right[kept, k])
    scores = centred @ directions.T
    high, low = _mean(scores, target > 0), _mean(scores, target < 0)
    apart = high - low > 1e-12
    unit = (2 / (high - low))[apart]
    directions = directions[apart] * unit[:, None]
    offsets = directions @ mean + unit * (high + low)[apart] / 2
    return rows_at(site, directions.to(site.inputs), offsets.to(site.inputs), generator)


def _mean(scores: Tensor, chosen: Tensor) -> Tensor:
    """Mean of each column over the rows chosen for it."""
    return torch.where(chosen, scores, 0.0).sum(0) / chosen.sum(0)


def relays(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """Neurons that spike about when one neuron of the layer below does: what that layer knows is handed on as it is."""
    width = site.inputs[0].numel()
    if not site.fed_by_spikes or site.is_convolution:
        return pairs(site, count, generator)
    order = torch.randperm(width, generator=generator)[:count].to(site.inputs.device)
    weight = site.inputs.new_zeros(len(order), width)
    weight[torch.arange(len(order), device=weight.device), order] = site.response.relay
    return Candidates(weight, weight.new_zeros(len(order)) if site.has_bias else None)


def mixed(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """A layer fed by spikes: a third relays of the layer below, which keep what that knows, and pairs, which add to it.

    Measured beside class codes in docs/decisions.md.
    """
    handed_on = relays(site, max(1, count // 3), generator)
    if len(handed_on) >= count:
        return handed_on
    return Candidates.join([handed_on, pairs(site, count - len(handed_on), generator)])


def _codes(classes: int, count: int, generator: torch.Generator) -> Tensor:
    """(count, classes) of -1, 0 and 1, each row with both signs."""
    signs = torch.randint(2, (count, classes), generator=generator) * 2 - 1
    signs *= (torch.rand(count, classes, generator=generator) < max(_SHARE, 2 / classes)).long()
    for row in signs:
        if not bool((row > 0).any() and (row < 0).any()):
            two = torch.randperm(classes, generator=generator)[:2]
            row.zero_()
            row[two[0]], row[two[1]] = 1, -1
    return signs


SAMPLERS: dict[str, Sampler] = {
    "own": own,
    "gaussian": gaussian,
    "gaussian_standard": gaussian_standard,
    "gaussian_normalised": gaussian_normalised,
    "gaussian_orthogonal": gaussian_orthogonal,
    "pairs": pairs,
    "traces": traces,
    "codes": codes,
    "dual_codes": dual_codes,
    "relays": relays,
    "mixed": mixed,
}


def sampler_of(witnesses: str | Sampler) -> Sampler:
    """The sampler of a name, or the user's own function.

    Raises:
        OptionError: an unknown name; the message lists those there are.
    """
    if callable(witnesses):
        return witnesses
    if witnesses not in SAMPLERS:
        raise OptionError(f"witnesses={witnesses!r}", f"one of {list(SAMPLERS)}, or a function", "pass witnesses='pairs'")
    return SAMPLERS[witnesses]
