"""Where candidates come from.  A sampler is any function ``(site, count, generator) -> Candidates``.

All but "own" and "relays" measure currents in units of the neuron: a boundary, where its current is the rheobase, and a slope, by
which the current rises from there to that of half the maximal rate.  Slopes are drawn over two octaves, so that it is the
selection which decides how steep a neuron should be.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snn_recon_plugin.errors import OptionError

from .site import Candidates, Site

__all__ = ["SAMPLERS", "Sampler", "codes", "gaussian", "mixed", "own", "pairs", "relays", "sampler_of"]

Sampler = Callable[[Site, int, torch.Generator], Candidates]

_OCTAVES = 1.0  # slopes go from 2^-1 to 2^1 of the usual one
_RIDGE = 1e-2  # of the mean variance
_SHARE = 0.5  # of the inputs, and of the classes, that a class-code neuron looks at


def own(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """The layer's own rows, as they are; ``count`` of them at the most."""
    del generator
    weight, bias = site.synapse.weight, site.synapse.bias
    assert isinstance(weight, Tensor)
    return Candidates(weight.detach()[:count].clone(), bias.detach()[:count].clone() if isinstance(bias, Tensor) else None)


def gaussian(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """Gaussian directions (arXiv 2605.08022, section 4), their boundary through a sample drawn by chance."""
    chosen = torch.randint(len(site.inputs), (count,), generator=generator).to(site.inputs.device)
    points = site.points(chosen, generator)
    directions = torch.randn(count, points.shape[1], generator=generator).to(points)
    # A slope of one is a standard deviation of the current over the samples.
    spread = ((points - points.mean(0)) @ directions.T).std(0, correction=0).clamp_min(1e-12)
    directions = directions / spread[:, None]
    return _rows(site, directions, (directions * points).sum(1), generator)


def pairs(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """Directions from a sample of one class to one of another, the boundary half-way between the two."""
    first, second = site.draw(count, generator)
    low, high = site.points(first, generator), site.points(second, generator)
    gap = high - low
    size = gap.square().sum(1, keepdim=True)
    apart = size[:, 0] > 1e-12  # identical samples with different labels have no boundary between them
    gap, size, low, high = gap[apart], size[apart], low[apart], high[apart]
    directions = 2 * gap / size
    return _rows(site, directions, (directions * (low + high) / 2).sum(1), generator)


def codes(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """Neurons that tell some classes from some others: a ridge regression each, on some of the inputs.

    The code of a neuron is drawn by chance: +1 for some classes, -1 for others, and the rest play no part.  Fits of all classes on
    all inputs would be combinations of as few directions as there are classes; by leaving out some of both they differ.
    Only for layers with one weight matrix.
    """
    inputs, labels = site.inputs.flatten(1).double(), site.labels
    classes = torch.unique(labels)
    if len(classes) < 2 or isinstance(site.synapse, nn.Conv2d):
        return pairs(site, count, generator)
    hot = (labels[:, None] == classes).double()
    mean = inputs.mean(0)
    centred = inputs - mean
    width = inputs.shape[1]
    target = hot @ _codes(len(classes), count, generator).to(inputs).T  # (n, count): -1, 0 and 1
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
    return _rows(site, directions.to(site.inputs), offsets.to(site.inputs), generator)


def _mean(scores: Tensor, chosen: Tensor) -> Tensor:
    """Mean of each column over the rows chosen for it."""
    return torch.where(chosen, scores, 0.0).sum(0) / chosen.sum(0)


def relays(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """Neurons that spike about when one neuron of the layer below does: what that layer knows is handed on as it is."""
    width = site.inputs[0].numel()
    if not site.fed_by_spikes or isinstance(site.synapse, nn.Conv2d):
        return pairs(site, count, generator)
    order = torch.randperm(width, generator=generator)[:count].to(site.inputs.device)
    weight = site.inputs.new_zeros(len(order), width)
    weight[torch.arange(len(order), device=weight.device), order] = site.response.relay
    return Candidates(weight, weight.new_zeros(len(order)) if site.has_bias else None)


def mixed(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """A layer fed by spikes: a third relays of the layer below, which keep what that knows, and pairs, which add to it.

    Measured beside class codes in docs/decisions.md.
    """
    handed_on = relays(site, count // 3, generator)
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


def _rows(site: Site, directions: Tensor, offsets: Tensor, generator: torch.Generator) -> Candidates:
    """Rows whose current is the rheobase where ``directions @ x = offsets``, and that of half the maximal rate one unit above."""
    octaves = (2 * torch.rand(len(directions), generator=generator) - 1) * _OCTAVES
    step = max(site.response.half - site.response.rest, site.response.rest) * 2.0 ** octaves.to(directions)
    if site.has_bias:
        return Candidates((directions * step[:, None]).reshape(-1, *site.row_shape), site.response.rest - step * offsets)
    # Without a bias one length of the row, and one sign, puts the boundary where it should be.
    some = offsets.abs() > 1e-12
    weight = directions[some] * (site.response.rest / offsets[some])[:, None]
    return Candidates(weight.reshape(-1, *site.row_shape), None)


SAMPLERS: dict[str, Sampler] = {"own": own, "gaussian": gaussian, "pairs": pairs, "codes": codes, "relays": relays, "mixed": mixed}


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
