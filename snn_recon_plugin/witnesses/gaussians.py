"""Random directions, of several kinds, with their boundaries through samples drawn by chance."""

from __future__ import annotations

import torch
from torch import Tensor

from .boundaries import through
from .site import Candidates, Site

__all__ = ["gaussian", "gaussian_normalised", "gaussian_orthogonal", "gaussian_standard"]


def gaussian(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """Gaussian directions, their boundary through a sample drawn by chance; all equally steep over the samples.

    A slope of one is a standard deviation of the current over the samples: a sampler for inputs of any size and covariance.
    """
    points, directions = _directions(site, count, generator)
    return through(site, points, directions / _spread(points, directions)[:, None], generator)


def gaussian_standard(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """Standard Gaussian directions (arXiv 2605.08022, section 4): as ``gaussian``, and steep where the inputs vary much."""
    points, directions = _directions(site, count, generator)
    return through(site, points, directions / _typical(points, directions), generator)


def gaussian_normalised(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """As ``gaussian_standard``, of one length: uniform on the sphere."""
    points, directions = _directions(site, count, generator)
    directions = directions / directions.norm(dim=1, keepdim=True)
    return through(site, points, directions / _typical(points, directions), generator)


def gaussian_orthogonal(site: Site, count: int, generator: torch.Generator) -> Candidates:
    """As ``gaussian_normalised``, orthogonal to each other as many at a time as there are inputs."""
    points, directions = _directions(site, count, generator)
    blocks = [torch.linalg.qr(block.double().T)[0].T for block in torch.split(directions, directions.shape[1])]
    directions = torch.cat(blocks).to(points)
    return through(site, points, directions / _typical(points, directions), generator)


def _directions(site: Site, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a row sees of samples drawn by chance, and as many standard Gaussian directions, (count, D) each."""
    chosen = torch.randint(len(site.inputs), (count,), generator=generator).to(site.inputs.device)
    points = site.points(chosen, generator)
    return points, torch.randn(count, points.shape[1], generator=generator).to(points)


def _spread(points: Tensor, directions: Tensor) -> Tensor:
    """Standard deviation of each direction's current over the points, (count,)."""
    return ((points - points.mean(0)) @ directions.T).std(0, correction=0).clamp_min(1e-12)


def _typical(points: Tensor, directions: Tensor) -> Tensor:
    """One spread for all directions."""
    return _spread(points, directions).square().mean().sqrt()
