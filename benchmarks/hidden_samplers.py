"""Samplers that the package does not offer, each behind or level with its default on MNIST: see docs/evidence/hidden.md.

Class codes are ridge regressions on random codes of the classes; Gaussian directions come standard, of one length, or orthogonal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snn_recon_plugin.hidden import Candidates, LayerSite
from snn_recon_plugin.hidden.samplers import auto, measure_spread, pairs, place_boundaries, relays
from snn_recon_plugin.hidden.site import weight_of

__all__ = ["EXTRA_SAMPLERS", "own_and_new"]

_RIDGE = 1e-2  # of the mean variance
_SHARE = 0.5  # of the inputs, and of the classes, that a class-code neuron sees


def only_pairs(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """Pairs in every layer, without the mixture that "pairs" stands for above the first."""
    return pairs(site, count, generator)


def pool_of_all(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """A third each of relays, pairs and class codes above the first layer."""
    if not site.fed_by_spikes:
        return pairs(site, count, generator)
    return Candidates.join([sample(site, count // 3, generator) for sample in (relays, pairs, codes)])


def own(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """The layer's rows as they are, or ``count`` of them at random."""
    weight, bias = weight_of(site.synapse).detach(), site.synapse.bias
    rows = torch.arange(len(weight)) if count >= len(weight) else torch.randperm(len(weight), generator=generator)[:count]
    return Candidates(weight[rows], bias.detach()[rows] if isinstance(bias, Tensor) else None)


def own_and_new(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """The layer's own rows, and fresh candidates of the default kind for the rest."""
    kept = own(site, count, generator)
    fresh = (auto if site.fed_by_spikes else pairs)(site, count - len(kept), generator)
    return Candidates.join([kept, fresh])


def codes(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """Ridge regressions on random codes of the classes, each on a random half of the inputs.

    Fits of all classes on all inputs would be combinations of as few directions as there are classes.
    """
    labels = site.labels
    classes = torch.unique(labels)
    if len(classes) < 2 or site.is_convolution:
        return pairs(site, count, generator)
    hot = (labels[:, None] == classes).double()
    return _fit(site, hot @ draw_codes(len(classes), count, generator).to(hot).T, generator)


def draw_codes(classes: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw (count, classes) of -1, 0 and 1, each row with both signs."""
    signs = torch.randint(2, (count, classes), generator=generator) * 2 - 1
    signs *= (torch.rand(count, classes, generator=generator) < max(_SHARE, 2 / classes)).long()
    for row in signs:
        if not bool((row > 0).any() and (row < 0).any()):
            two = torch.randperm(classes, generator=generator)[:2]
            row.zero_()
            row[two[0]], row[two[1]] = 1, -1
    return signs


def _fit(site: LayerSite, target: Tensor, generator: torch.Generator) -> Candidates:
    """A neuron for each column of the target (n, count), high where that is positive and low where it is negative."""
    inputs, count = site.inputs.flatten(1).double(), target.shape[1]
    mean = inputs.mean(0)
    centred = inputs - mean
    width = inputs.shape[1]
    gram, right = centred.T @ centred / len(inputs), centred.T @ target / len(inputs)
    ridge = max(_RIDGE * float(gram.diagonal().mean()), 1e-12)
    directions = inputs.new_zeros(count, width)
    for k in range(count):
        seen = (torch.rand(width, generator=generator) < _SHARE).nonzero()[:, 0].to(inputs.device)
        part = gram[seen][:, seen]
        part.diagonal().add_(ridge)
        directions[k, seen] = torch.linalg.solve(part, right[seen, k])
    scores = centred @ directions.T
    high, low = _mean(scores, target > 0), _mean(scores, target < 0)
    apart = high - low > 1e-12
    unit = (2 / (high - low))[apart]
    directions = directions[apart] * unit[:, None]
    offsets = directions @ mean + unit * (high + low)[apart] / 2
    return place_boundaries(site, directions.to(site.inputs), offsets.to(site.inputs), generator)


def _mean(scores: Tensor, chosen: Tensor) -> Tensor:
    """Mean of each column over the rows chosen for it."""
    return torch.where(chosen, scores, 0.0).sum(0) / chosen.sum(0)


def gaussian_standard(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """Standard Gaussian directions, which are steep where the inputs vary much."""
    points, directions = _directions(site, count, generator)
    return _through(site, points, directions, generator)


def gaussian_normalised(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """Directions of one length, uniform on the sphere."""
    points, directions = _directions(site, count, generator)
    return _through(site, points, directions / directions.norm(dim=1, keepdim=True), generator)


def gaussian_orthogonal(site: LayerSite, count: int, generator: torch.Generator) -> Candidates:
    """Directions of one length, orthogonal to each other in sets of as many as there are inputs."""
    points, directions = _directions(site, count, generator)
    blocks = [torch.linalg.qr(block.double().T)[0].T for block in torch.split(directions, directions.shape[1])]
    return _through(site, points, torch.cat(blocks).to(points), generator)


def _directions(site: LayerSite, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random samples as rows see them, and as many standard Gaussian directions, (count, D) each."""
    chosen = torch.randint(len(site.inputs), (count,), generator=generator).to(site.inputs.device)
    points = site.take_points(chosen, generator)
    return points, torch.randn(count, points.shape[1], generator=generator).to(points)


def _through(site: LayerSite, points: Tensor, directions: Tensor, generator: torch.Generator) -> Candidates:
    """Boundaries through the points, all directions scaled by their typical spread."""
    directions = directions / measure_spread(points, directions).square().mean().sqrt()
    return place_boundaries(site, directions, (directions * points).sum(1), generator)


EXTRA_SAMPLERS = {
    "only pairs": only_pairs,
    "a pool of all": pool_of_all,
    "codes": codes,
    "gaussian_standard": gaussian_standard,
    "gaussian_normalised": gaussian_normalised,
    "gaussian_orthogonal": gaussian_orthogonal,
}
