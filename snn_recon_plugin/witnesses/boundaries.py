"""Rows from directions and boundaries, in units of the neuron.

A boundary is where the row's current is the rheobase; a slope of one is the current of half the maximal rate one unit further.
Slopes are drawn over two octaves, so that it is the selection which decides how steep a neuron should be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .site import Candidates, Site

__all__ = ["between", "rows_at", "through"]

_OCTAVES = 1.0  # slopes go from 2^-1 to 2^1 of the usual one


def through(site: Site, points: Tensor, directions: Tensor, generator: torch.Generator) -> Candidates:
    """Rows with their boundaries through a point each."""
    return rows_at(site, directions, (directions * points).sum(1), generator)


def between(site: Site, low: Tensor, high: Tensor, generator: torch.Generator) -> Candidates:
    """Rows with their boundaries half-way between two points each, one unit of slope from the boundary to either."""
    gap = high - low
    size = gap.square().sum(1, keepdim=True)
    apart = size[:, 0] > 1e-12  # identical samples with different labels have no boundary between them
    gap, size, low, high = gap[apart], size[apart], low[apart], high[apart]
    directions = 2 * gap / size
    return rows_at(site, directions, (directions * (low + high) / 2).sum(1), generator)


def rows_at(site: Site, directions: Tensor, offsets: Tensor, generator: torch.Generator) -> Candidates:
    """Rows whose current is the rheobase where ``directions @ x = offsets``, and that of half the maximal rate one unit above."""
    octaves = (2 * torch.rand(len(directions), generator=generator) - 1) * _OCTAVES
    step = max(site.response.half - site.response.rest, site.response.rest) * 2.0 ** octaves.to(directions)
    if site.has_bias:
        return Candidates((directions * step[:, None]).reshape(-1, *site.row_shape), site.response.rest - step * offsets)
    # Without a bias one length of the row, and one sign, puts the boundary where it should be.
    some = offsets.abs() > 1e-12
    weight = directions[some] * (site.response.rest / offsets[some])[:, None]
    return Candidates(weight.reshape(-1, *site.row_shape), None)
